package org.pocketphi.core

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertSame
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Assume.assumeNotNull
import org.junit.BeforeClass
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.io.File

/**
 * The real engine, by way of JNI, on a multimodal file. tests/engine/test_jni.py makes that and writes into the file that
 * `pocketphi.expected` names what the Python engine made of the same picture, sound and words.
 */
class MediaEngineChecks {
    @get:Rule val folder = TemporaryFolder()
    private val picture = Contract.current.standard(Mode.VISION, 0).single() as Part.Picture
    private val sound = StandardMedia.sound(16_000, 2.0, 440.0, 0.5)

    private fun engine(work: (NativeEngine, Loaded) -> Unit) =
        NativeEngine(MODEL, TOKENIZER, File(folder.root, "packed"), EngineSettings()).use { work(it, it.load()) }

    /** A turn of the conversation in EXPECTED: its parts, and what the session must hold when it has been answered. */
    private fun turn(name: String): Pair<String, LongArray> {
        val turn = EXPECTED[name] as Map<*, *>
        return turn["text"] as String to (turn["held"] as List<*>).map { it as Long }.toLongArray()
    }

    private fun NativeEngine.ask(vararg parts: Part): Generated = generate(parts.toList(), null, NEW, Sampling()) { }

    @Test
    fun whatTheFileTakes() = engine { engine, loaded ->
        assertEquals(Takes(pictures = true, sound = true, soundRate = 16_000), loaded.takes)
        assertEquals(545, engine.pictureTokens(448, 448))
        assertThrows(EngineError::class.java) { engine.pictureTokens(20_000, 1) }
    }

    @Test
    fun aConversationThatChangesItsModeIsThatOfPython() = engine { engine, _ ->
        val (heard, first) = turn("sound")
        val told = ArrayList<Part>()
        val prompt = listOf(sound, Part.Words(heard))
        val encoded = engine.encode(prompt) { told.add(it.part) }.single()
        assertEquals(setOf<Part>(sound), told.toSet())
        assertFalse(encoded.reused)
        assertTrue(encoded.prepareMs > 0 && encoded.encodeMs > 0 && encoded.parts > 0)
        val made = engine.generate(prompt, null, NEW, Sampling()) { }
        assertArrayEquals(first, engine.held())
        assertEquals(first.size - (made.generatedTokens - 1), made.promptTokens)
        // With a picture the same sound is other rows, and all before it is fed anew.
        val (seen, second) = turn("picture")
        told.clear()
        assertEquals(2, engine.encode(listOf(picture, Part.Words(seen))) { told.add(it.part) }.size)
        assertEquals(listOf(sound, picture), told.distinct())
        engine.ask(picture, Part.Words(seen))
        assertArrayEquals(second, engine.held())
        // What the session holds is encoded no more, though its rows are gone.
        val (said, third) = turn("words")
        assertEquals(emptyList<Encoded>(), engine.encode(listOf(Part.Words(said))))
        engine.ask(Part.Words(said))
        assertArrayEquals(third, engine.held())
    }

    @Test
    fun afterAResetAllIsNew() = engine { engine, _ ->
        val (heard, first) = turn("sound")
        repeat(2) {
            assertFalse(engine.encode(listOf(sound, Part.Words(heard))).single().reused)
            engine.ask(sound, Part.Words(heard))
            assertArrayEquals(first, engine.held())
            engine.reset()
        }
        engine.ask(Part.Words("words alone"))
        assertTrue("${engine.held().toList()}", engine.held().all { it >= 0 })
    }

    @Test
    fun whatIsStoppedIsTakenUp() = engine { engine, _ ->
        val (heard, first) = turn("sound")
        // Ended in the prompt: its rows are needed again.
        assertThrows(IllegalStateException::class.java) {
            engine.generate(listOf(sound, Part.Words(heard)), null, NEW, Sampling()) { throw IllegalStateException("mine") }
        }
        engine.reset()
        engine.ask(sound, Part.Words(heard))
        assertArrayEquals(first, engine.held())
    }

    @Test
    fun failuresAreSentencesAndTheConversationStays() = engine { engine, _ ->
        val (heard, first) = turn("sound")
        engine.ask(sound, Part.Words(heard))
        val narrow = Part.Picture(ByteArray(3 * 2000), 2000, 1)
        val refused = assertThrows(EngineError::class.java) { engine.encode(listOf(narrow, Part.Words("?"))) }
        assertTrue(refused.message, "too narrow" in refused.message)
        val few = assertThrows(EngineError::class.java) { engine.encode(listOf(Part.Picture(ByteArray(5), 2, 1))) }
        assertEquals("The picture has fewer bytes than its width and height need.", few.message)
        val rate = assertThrows(EngineError::class.java) { engine.encode(listOf(Part.Sound(FloatArray(44_100), 44_100))) }
        assertTrue(rate.message, "44100" in rate.message || "44,100" in rate.message)
        assertArrayEquals(first, engine.held())
        val (seen, second) = turn("picture")
        engine.ask(picture, Part.Words(seen))
        assertArrayEquals(second, engine.held())
        // 8 x 545 tokens, of 4096.
        val large = assertThrows(EngineError::class.java) { engine.ask(*Array<Part>(8) { Part.Picture(picture.rgb, 448, 448) }, Part.Words("?")) }
        assertTrue(large.message, large.message.startsWith("The prompt of 4361 tokens does not fit the model's context of 4096 tokens"))
    }

    @Test
    fun encodingIsStoppedAndWhatAListenerThrowsComesOut() = engine { engine, _ ->
        assertThrows(EngineStopped::class.java) { engine.encode(listOf(picture)) { engine.stop() } }
        val mine = IllegalStateException("mine")
        assertSame(mine, assertThrows(IllegalStateException::class.java) { engine.encode(listOf(picture)) { throw mine } })
        val steps = ArrayList<Encoding>()
        assertEquals(2, engine.encode(listOf(picture)) { steps.add(it) }.single().parts)
        assertEquals(listOf(0 to 2, 1 to 2), steps.map { it.done to it.of })
        assertTrue("its rows are here", engine.encode(listOf(picture)).single().reused)
    }

    @Test
    fun aChatHasThem() = engine { engine, _ ->
        val chat = ChatSession(engine, "Be brief.")
        chat.ask("What is said?", NEW, Sampling(), listOf(sound)) { }
        assertTrue(chat.encodeMs!! > 0)
        chat.ask("And now?", NEW, Sampling()) { }
        assertNull(chat.encodeMs)
        chat.ask("And shown?", NEW, Sampling(), listOf(picture)) { }
        assertTrue(engine.held().count { it < 0 } > 545)
    }

    private companion object {
        const val NEW = 4
        lateinit var MODEL: String
        lateinit var TOKENIZER: String
        lateinit var EXPECTED: Map<*, *>

        @BeforeClass
        @JvmStatic
        fun library() {
            assumeNotNull(System.getProperty("pocketphi.expected"))
            System.load(System.getProperty("pocketphi.library"))
            MODEL = System.getProperty("pocketphi.model")
            TOKENIZER = System.getProperty("pocketphi.tokenizer")
            EXPECTED = Json.read(File(System.getProperty("pocketphi.expected")).readText()) as Map<*, *>
        }
    }
}

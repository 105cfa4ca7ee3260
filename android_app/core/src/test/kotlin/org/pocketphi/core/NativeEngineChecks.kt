package org.pocketphi.core

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
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
import java.util.concurrent.CountDownLatch
import kotlin.concurrent.thread

/**
 * The real engine, by way of JNI, on phi4-tiny with a context of 256. tests/engine/test_jni.py builds the library, names
 * it in `pocketphi.library` and says what the answers must be; without it nothing here runs.
 */
class NativeEngineChecks {
    @get:Rule val folder = TemporaryFolder()
    private val packed by lazy { File(folder.root, "packed") }

    private fun engine(settings: EngineSettings = EngineSettings(), model: String = MODEL) = NativeEngine(model, TOKENIZER, packed, settings)

    private fun NativeEngine.answer(prompt: String, newTokens: Int, sampling: Sampling = Sampling()): Pair<Generated, String> {
        val text = StringBuilder()
        return generate(prompt, null, newTokens, sampling) { text.append(it) } to text.toString()
    }

    @Test
    fun theSameTextAsFromTheCommandLineColdAndWarm() {
        for (packing in listOf(Packing.COLD, Packing.WARM)) {
            engine().use { engine ->
                val loaded = engine.load()
                assertEquals(packing, loaded.packing)
                assertNull(loaded.note)
                assertTrue(loaded.packedBytes > 1_000_000)
                assertEquals(PackedWeights(packed).bytes() / 1_000_000, loaded.packedBytes / 1_000_000)
                val (done, text) = engine.answer(PROMPT, 64)
                assertEquals(ANSWER, text)
                assertEquals(StopReason.END_OF_TURN, done.stopReason)
                assertEquals(done.generatedTokens - 1, done.tokenMs!!.size)
                assertTrue(done.prefillMs!! > 0)
            }
        }
        assertEquals(Packing.NONE, NativeEngine(MODEL, TOKENIZER, null, EngineSettings(threads = 1)).use { it.load() }.packing)
    }

    @Test
    fun guessesAreCountedAndChangeNoAnswer() = engine(EngineSettings(draftTokens = 7)).use { engine ->
        engine.load()
        val (done, text) = engine.answer(PROMPT, 64)
        assertEquals(ANSWER, text)
        val right = done.accepted!!
        assertTrue(right in 1 until done.generatedTokens && right <= done.drafted!!)
    }

    @Test
    fun charactersOfSeveralTokensComeWhole() = engine().use { engine ->
        engine.load()
        val text = "👩🏽\u200d🚀 你好 a\u0000b"
        val words = Native.loadTokenizer(TOKENIZER.encodeToByteArray())
        val ids = Native.encode(words, text.encodeToByteArray())
        assertTrue(ids.size > 10)
        assertEquals(0, Native.encode(words, ByteArray(0)).size)
        Native.freeTokenizer(words)
        val pieces = ArrayList<String>()
        engine.generate("<|user|>Say 🙂 again<|end|><|assistant|>", null, 40, Sampling(temperature = 5f, seed = 3)) { pieces.add(it) }
        assertTrue("$pieces", pieces.isNotEmpty())
    }

    @Test
    fun aConversationKeepsItsContext() = engine().use { engine ->
        engine.load()
        val chat = ChatSession(engine, "You know capitals.")
        val first = chat.ask("What is the capital of France?", 40, Sampling()) { }
        chat.ask("Tell me a story.", 3, Sampling()) { }
        val third = chat.ask("What is the capital of Italy?", 40, Sampling()) { }
        assertTrue(third.promptTokens!! < first.promptTokens!! + 10)
        // The context is what one prompt with everything said would have made.
        val whole = ChatFormat.render(chat.messages.dropLast(1))
        val answer = chat.messages.last().content
        engine.reset()
        assertEquals(answer, engine.answer(whole, 40).second)
    }

    @Test
    fun aFullContextIsRefusedBeforeTheRun() = engine().use { engine ->
        engine.load()
        val refused = assertThrows(EngineError::class.java) { engine.answer("word ".repeat(400), 8) }
        assertTrue(refused.message, Regex("The prompt of \\d+ tokens does not fit the model's context of 256 tokens\\.").matches(refused.message))
        val (done, _) = engine.answer("word ".repeat(100), 100_000)
        val used = done.promptTokens!! + done.generatedTokens
        assertTrue("$used", used <= 256)
        assertEquals(ANSWER, engine.also { it.reset() }.answer(PROMPT, 64).second)
    }

    @Test
    fun samplingAndItsSeed() = engine().use { engine ->
        engine.load()
        fun text(seed: Long): String {
            engine.reset()
            return engine.answer("<|user|>Tell me a story.<|end|><|assistant|>", 30, Sampling(1.5f, 50, 0.95f, seed)).second
        }
        assertEquals(text(7), text(7))
        assertTrue((1L..5L).map { text(it) }.toSet().size > 1)
        val wrong = assertThrows(EngineError::class.java) { engine.answer("a", 4, Sampling(topP = 2f)) }
        assertTrue(wrong.message, "top_p" in wrong.message)
    }

    @Test
    fun anExceptionInACallbackEndsTheAnswerAndComesOut() = engine().use { engine ->
        engine.load()
        val mine = IllegalStateException("mine")
        var pieces = 0
        val seen = assertThrows(IllegalStateException::class.java) {
            engine.generate(PROMPT, null, 64, Sampling()) { if (++pieces == 2) throw mine }
        }
        assertSame(mine, seen)
        assertEquals(2, pieces)
        engine.reset()
        assertEquals(ANSWER, engine.answer(PROMPT, 64).second)
    }

    @Test
    fun stopFromAnotherThreadAndGoOn() = engine().use { engine ->
        engine.load()
        val (done, text) = stopped(engine)
        assertEquals(StopReason.STOPPED, done.stopReason)
        assertTrue(done.generatedTokens in 3..200)
        // What was made but not yet fed is fed with the next prompt.
        val rest = engine.answer("", 5)
        engine.reset()
        val (_, whole) = engine.answer(STORY, done.generatedTokens + 5)
        assertEquals(whole, text + rest.second)
    }

    private fun stopped(engine: NativeEngine): Pair<Generated, String> {
        val third = CountDownLatch(1)
        val gone = CountDownLatch(1)
        thread {
            third.await()
            engine.stop()
            gone.countDown()
        }
        val text = StringBuilder()
        var pieces = 0
        val done = engine.generate(STORY, null, 200, Sampling()) {
            text.append(it)
            if (++pieces == 3) {
                third.countDown()
                gone.await()
            }
        }
        return done to text.toString()
    }

    @Test
    fun closeFromAnotherThreadAndWhatIsClosed() {
        val engine = engine()
        engine.load()
        val begun = CountDownLatch(1)
        var inside: EngineError? = null
        val asking = thread {
            engine.generate(STORY, null, 200, Sampling()) {
                if (begun.count == 1L) inside = assertThrows(EngineError::class.java) { engine.close() }
                begun.countDown()
            }
        }
        begun.await()
        assertEquals("The engine is busy with another call.", assertThrows(EngineError::class.java) { engine.reset() }.message)
        engine.close()
        asking.join()
        assertEquals("An engine cannot be closed from within its callbacks.", inside!!.message)
        for (call in listOf<() -> Any?>({ engine.load() }, { engine.answer("a", 1) }, { engine.reset() })) {
            assertEquals("The engine is closed.", assertThrows(EngineError::class.java) { call() }.message)
        }
        engine.stop()
        engine.close()
    }

    @Test
    fun manyThreadsStopAndClose() {
        repeat(20) { round ->
            val engine = engine()
            engine.load()
            val threads = List(3) {
                thread {
                    try {
                        while (true) engine.generate(STORY, null, 50, Sampling()) { }
                    } catch (_: EngineError) {
                    }
                }
            } + thread { repeat(20) { engine.stop() } }
            Thread.sleep(round % 5L)
            engine.close()
            threads.forEach { it.join() }
        }
    }

    @Test
    fun aLoadIsStopped() {
        val engine = engine()
        var again = true
        val stopper = thread { while (again) engine.stop() }
        assertThrows(EngineStopped::class.java) { engine.load() }
        again = false
        stopper.join()
        assertEquals(0, PackedWeights(packed).bytes())
        assertEquals(Packing.COLD, engine.load().packing)
        engine.close()
    }

    @Test
    fun failuresAreSentences() {
        val none = assertThrows(EngineError::class.java) { engine(model = "/none/🙂.pte").use { it.load() } }
        assertEquals("/none/🙂.pte cannot be read: No such file or directory.", none.message)
        val words = assertThrows(EngineError::class.java) { NativeEngine(MODEL, "/none/t.json", packed, EngineSettings()).use { it.load() } }
        assertEquals("/none/t.json cannot be read: No such file or directory.", words.message)
        val unloaded = assertThrows(EngineError::class.java) { engine().use { it.answer("a", 1) } }
        assertEquals("No model is loaded.", unloaded.message)
    }

    @Test
    fun noLocalReferencesAreLeft() = engine().use { engine ->
        engine.load()
        val sampling = Sampling(temperature = 3f, seed = 1)
        repeat(20) {
            engine.reset()
            engine.generate(STORY, null, 200, sampling) { }
        }
        assertArrayEquals(Native.encode(words(), "a".encodeToByteArray()), Native.encode(words(), "a".encodeToByteArray()))
    }

    private fun words() = Native.loadTokenizer(TOKENIZER.encodeToByteArray())

    companion object {
        private val MODEL = System.getProperty("pocketphi.model").orEmpty()
        private val TOKENIZER = System.getProperty("pocketphi.tokenizer").orEmpty()
        private val ANSWER = System.getProperty("pocketphi.answer").orEmpty()
        private const val PROMPT = "<|user|>What is the capital of France?<|end|><|assistant|>"
        private const val STORY = "<|user|>Tell me a long story about a dog.<|end|><|assistant|>"

        @JvmStatic
        @BeforeClass
        fun library() {
            val library = System.getProperty("pocketphi.library")
            assumeNotNull(library)
            System.load(library)
            assertTrue(NativeEngine.isThere())
        }
    }
}

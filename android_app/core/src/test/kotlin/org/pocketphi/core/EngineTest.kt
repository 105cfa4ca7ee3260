package org.pocketphi.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class EngineTest {
    @Test
    fun statisticsLine() {
        val line = "{\"prompt_tokens\":12,\"generated_tokens\":31,\"model_load_start_ms\":5,\"model_load_end_ms\":9," +
            "\"inference_start_ms\":1000,\"inference_end_ms\":2700,\"prompt_eval_end_ms\":1150,\"first_token_ms\":1150," +
            "\"aggregate_sampling_time_ms\":3,\"SCALING_FACTOR_UNITS_PER_SECOND\":1000}"
        assertEquals(EngineStats(12, 32, 150.0, 1550.0), EngineStats.parse(line))
        assertNull(EngineStats.parse("{\"prompt_tokens\":12}"))
        assertNull(EngineStats.parse("not JSON"))
        assertNull(EngineStats.parse("[1]"))
    }

    @Test
    fun codesAreSentences() {
        val load = EngineErrors.loading(0x23, "phi.pte")
        assertEquals("phi.pte could not be loaded: this is not a valid .pte, or only a part of one; push it again (code 0x23).", load.message)
        assertEquals(0x23, load.code)
        val full = EngineErrors.generating(0x12, 4000, 200).message
        assertTrue(full, "4000 prompt and 200 new tokens" in full && "does not fit" in full)
        assertTrue("(code 0x7f)" in EngineErrors.loading(0x7f, "x").message)
        assertTrue("not enough memory" in EngineErrors.generating(0x21, null, 5).message)
    }

    @Test
    fun promptsHaveTheWantedLength() {
        for (extra in listOf(0, 2, 5)) {
            for (wanted in listOf(16, 64, 512, 4000)) {
                var asked = 0
                val made = Prompts.ofLength(wanted) { asked++; it.split(' ').size + extra }
                assertEquals(wanted, made.tokens)
                assertEquals(wanted, made.text.split(' ').size + extra)
                assertTrue("$asked prefills", asked <= 3)
            }
        }
    }

    @Test
    fun promptsComeNearWhereTokensAreNotWords() {
        // Every third word has two tokens, and only even numbers exist.
        val made = Prompts.ofLength(101) { text -> text.split(' ').size.let { (it + it / 3) / 2 * 2 } }
        assertTrue(made.tokens in 99..103)
        assertEquals(1, Prompts.ofLength(1) { it.split(' ').size + 6 }.text.split(' ').size)
    }

    @Test
    fun conversationFeedsOnlyWhatIsNew() {
        val fed = StringBuilder()
        val answers = ArrayDeque(
            listOf(
                listOf("Par", "is", "<|end|>") to StopReason.END_OF_TURN,
                listOf("4", " is") to StopReason.NEW_TOKENS,
                listOf("ok") to StopReason.STOPPED,
            ),
        )
        val engine = object : LlmEngine {
            override fun load() = Loaded()
            override fun stop() = Unit
            override fun reset() = Unit
            override fun close() = Unit
            override fun generate(prompt: List<Part>, promptTokens: Int?, newTokens: Int, sampling: Sampling, onPiece: (String) -> Unit): Generated {
                fed.append((prompt.single() as Part.Words).text)
                val (pieces, reason) = answers.removeFirst()
                pieces.forEach(onPiece)
                // The engine has read all but the last token it made.
                fed.append(pieces.dropLast(1).joinToString(""))
                return Generated(1, pieces.size, pieces.size, null, null, reason, pieces.last())
            }
        }
        val chat = ChatSession(engine, "Be brief.")
        val seen = ArrayList<String>()
        chat.ask("Capital of France?", 9, Sampling()) { seen.add(it) }
        chat.ask("2 + 2?", 2, Sampling()) { }
        chat.ask("More", 9, Sampling()) { }
        assertEquals(listOf("Par", "is", "<|end|>"), seen)
        assertEquals(listOf("Paris", "4 is", "ok"), chat.messages.filter { it.role == Role.ASSISTANT }.map { it.content })
        // All but the last answer stands in the context as the format wants it.
        assertEquals(ChatFormat.render(chat.messages.dropLast(1)), fed.toString())
    }

    @Test
    fun picturesAndSoundStandBeforeTheText() {
        val picture = Part.Picture(ByteArray(12), 2, 2)
        val sound = Part.Sound(FloatArray(8000), 16_000)
        val given = ArrayList<List<Part>>()
        val engine = object : FakeEngine(FakeClock()) {
            override fun generate(prompt: List<Part>, promptTokens: Int?, newTokens: Int, sampling: Sampling, onPiece: (String) -> Unit) =
                super.generate(prompt.also { given.add(it) }, promptTokens, newTokens, sampling, onPiece)
        }
        val chat = ChatSession(engine, "Be brief.")
        val told = ArrayList<Encoding?>()
        chat.ask("What is this?", 3, Sampling(), listOf(sound, picture), { told.add(it) }) { }
        assertEquals(listOf(Encoding(sound, 0, 2), Encoding(sound, 1, 2), Encoding(picture, 0, 2), Encoding(picture, 1, 2), null), told)
        assertEquals(800.0, chat.encodeMs!!, 0.0)
        val wanted = listOf(
            Part.Words("<|system|>Be brief.<|end|><|user|>"), sound, picture, Part.Words("What is this?<|end|><|assistant|>"),
        )
        assertEquals(wanted, given.single())
        assertEquals(listOf(sound, picture), chat.messages[1].media)
        chat.ask("Sure?", 3, Sampling()) { }
        assertNull("nothing was new", chat.encodeMs)
        assertEquals(0.5, sound.seconds, 0.0)
        assertEquals(listOf(Mode.TEXT, Mode.SPEECH, Mode.VISION), listOf(emptyList(), listOf(sound), listOf(sound, picture)).map { Mode.of(it) })
    }

    @Test
    fun whatCannotBeUsedLeavesTheConversation() {
        val engine = FakeEngine(FakeClock())
        val chat = ChatSession(engine, null)
        chat.ask("Hello", 3, Sampling()) { }
        engine.onEncode = { throw EngineError("The picture is too narrow.") }
        val picture = Part.Picture(ByteArray(3), 1, 1)
        val refused = assertThrows(MediaRefused::class.java) { chat.ask("And this?", 3, Sampling(), listOf(picture)) { } }
        assertEquals("The picture is too narrow.", refused.message)
        assertThrows(EngineStopped::class.java) { chat.ask("And this?", 3, Sampling(), listOf(picture), { throw EngineStopped() }) { } }
        assertEquals(listOf("Hello", "t1 t2 t3 "), chat.messages.map { it.content })
        chat.ask("More", 3, Sampling()) { }
        assertEquals("t3 <|end|><|user|>More<|end|><|assistant|>", engine.prompts.last())
        val upstream = object : LlmEngine by engine {
            override fun encode(prompt: List<Part>, onPart: (Encoding) -> Unit) = super<LlmEngine>.encode(prompt, onPart)
        }
        assertThrows(EngineError::class.java) { upstream.encode(listOf(picture)) }
    }
}

package org.pocketphi.bench

import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.pocketphi.core.EngineError
import org.pocketphi.core.Manifest
import org.pocketphi.core.Sampling
import org.pocketphi.core.StopReason
import org.pocketphi.core.generate
import org.pocketphi.stubs.NativeLlm
import org.pytorch.executorch.ExecutorchRuntimeException
import org.pytorch.executorch.extension.llm.LlmCallback
import org.robolectric.RobolectricTestRunner
import org.robolectric.annotation.Config

/** The engine against a runner that behaves as ExecuTorch 1.5.1's does (`extension/llm/runner/text_llm_runner.cpp`). */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [34])
class ExecuTorchEngineTest {
    private val runner = Runner()

    /** [chunk] and [context] in tokens; a word is a token. With [halfCharacters] two steps make one piece. */
    private class Runner(val chunk: Int = 256, val context: Int = 4096) : NativeLlm {
        var loadCode = 0
        var generateCode = 0
        var callbackCode = 0
        var halfCharacters = false
        var endAfter = Int.MAX_VALUE
        var position = 0
        var seqLen = 0
        var closed = false
        @Volatile var stop = false
        val onPiece = ArrayList<() -> Unit>()

        override fun load() {
            if (loadCode != 0) throw ExecutorchRuntimeException(loadCode, "Failed to load model")
        }

        override fun generate(prompt: String, seqLen: Int, echo: Boolean, temperature: Float, callback: LlmCallback) {
            check(!echo && temperature == 0f) { "echo $echo, temperature $temperature" }
            this.seqLen = seqLen
            if (callbackCode != 0) return callback.onError(callbackCode, "generate() failed")
            if (generateCode != 0) throw ExecutorchRuntimeException(generateCode, "Failed to generate")
            val tokens = prompt.split(' ').size
            position += tokens
            // Files that take prompts in chunks do not have the prompt counted.
            val occupied = if (chunk < context) 0 else position
            val limit = minOf(seqLen, context) - occupied
            if (limit <= 0) throw ExecutorchRuntimeException(0x12, "Failed to generate")
            stop = true
            callback.onResult("w0 ")
            // The generation loop forgets a stop that came before it.
            stop = false
            var steps = 0
            while (steps < limit - 1 && steps + 1 < endAfter) {
                steps++
                if (!halfCharacters || steps % 2 == 0) callback.onResult("w$steps ")
                onPiece.forEach { it() }
                if (stop) break
            }
            position += steps
            callback.onStats(
                "{\"prompt_tokens\":$tokens,\"generated_tokens\":$steps,\"inference_start_ms\":1000,\"prompt_eval_end_ms\":1200," +
                    "\"first_token_ms\":1200,\"inference_end_ms\":2200,\"SCALING_FACTOR_UNITS_PER_SECOND\":1000}",
            )
        }

        override fun stop() {
            stop = true
        }

        override fun resetContext() {
            position = 0
        }

        override fun close() {
            closed = true
        }
    }

    private fun open(runner: Runner, manifest: Manifest?): ExecuTorchEngine {
        NativeLlm.open = { model, tokenizer, temperature ->
            check(model == "/m/phi.pte" && tokenizer == "/m/t.json" && temperature == 0f)
            runner
        }
        return ExecuTorchEngine("/m/phi.pte", "/m/t.json", manifest)
    }

    private fun manifest(chunk: Int = 256, context: Int = 4096) = Manifest(null, null, context, chunk, null, null)

    @Before
    fun nothingNative() {
        NativeLlm.open = { _, _, _ -> throw UnsatisfiedLinkError("no libexecutorch.so") }
    }

    @Test
    fun asManyTokensAsAskedFor() {
        // With and without a manifest, prompts in chunks and whole: always the same number.
        for (chunk in listOf(256, 4096)) {
            for (manifest in listOf(manifest(chunk), null)) {
                val runner = Runner(chunk)
                val engine = open(runner, manifest)
                engine.load()
                for (known in listOf(3, null)) {
                    engine.reset()
                    val pieces = ArrayList<String>()
                    val made = engine.generate("one two three", known, 20, Sampling()) { pieces.add(it) }
                    assertEquals("$chunk, $manifest", 20, made.generatedTokens)
                    assertEquals(20, pieces.size)
                    assertEquals(StopReason.NEW_TOKENS, made.stopReason)
                    assertEquals(3, made.promptTokens)
                    assertEquals(200.0, made.prefillMs!!, 0.0)
                    assertEquals(1000.0, made.decodeMs!!, 0.0)
                }
                engine.close()
                assertTrue(runner.closed)
            }
        }
    }

    @Test
    fun withAManifestHalfCharactersDoNotChangeTheNumber() {
        for (chunk in listOf(256, 4096)) {
            val engine = open(Runner(chunk).apply { halfCharacters = true }, manifest(chunk))
            engine.load()
            val made = engine.generate("one two", 2, 21, Sampling()) { }
            assertEquals(21, made.generatedTokens)
            assertEquals(11, made.pieces)
        }
    }

    @Test
    fun theModelEndsItsTurn() {
        val engine = open(runner.apply { endAfter = 5 }, manifest())
        engine.load()
        val made = engine.generate("one two", 2, 20, Sampling()) { }
        assertEquals(5, made.generatedTokens)
        assertEquals(StopReason.END_OF_TURN, made.stopReason)
    }

    @Test
    fun aStopDuringThePrefillIsNotForgotten() {
        val engine = open(runner, manifest())
        engine.load()
        var pieces = 0
        val made = engine.generate("one two", 2, 2000, Sampling()) { if (pieces++ == 0) engine.stop() }
        assertEquals(StopReason.STOPPED, made.stopReason)
        assertEquals(2, made.generatedTokens)
    }

    @Test
    fun conversationsStayInsideTheContext() {
        val small = Runner(chunk = 16, context = 64)
        val engine = open(small, manifest(16, 64))
        engine.load()
        engine.generate("one two three four five six seven eight nine ten", null, 30, Sampling()) { }
        val rest = engine.generate("one two three four five six seven eight nine ten", null, 1000, Sampling()) { }
        assertTrue("${small.position}", small.position <= 64)
        assertEquals(StopReason.NEW_TOKENS, rest.stopReason)
        val full = assertThrows(EngineError::class.java) { engine.generate("one two three four five six seven eight nine ten", 10, 5, Sampling()) { } }
        assertEquals("The prompt of 10 tokens does not fit the model's context of 64 tokens after the ${small.position} it holds.", full.message)
        engine.reset()
        assertEquals(0, small.position)
    }

    @Test
    fun failuresAreSentences() {
        val engine = open(runner.apply { loadCode = 0x23 }, manifest())
        val load = assertThrows(EngineError::class.java) { engine.load() }
        assertEquals("phi.pte could not be loaded: this is not a valid .pte, or only a part of one; push it again (code 0x23).", load.message)
        runner.loadCode = 0
        engine.load()
        runner.generateCode = 0x12
        assertTrue(assertThrows(EngineError::class.java) { engine.generate("a", 1, 9, Sampling()) { } }.message.startsWith("The prompt does not fit"))
        runner.callbackCode = 0x21
        assertEquals(0x21, assertThrows(EngineError::class.java) { engine.generate("a", 1, 9, Sampling()) { } }.code)
        NativeLlm.open = { _, _, _ -> throw IllegalArgumentException("Cannot load model path: path is not readable: /m/phi.pte") }
        val refused = assertThrows(EngineError::class.java) { ExecuTorchEngine("/m/phi.pte", "/m/t.json", null).load() }
        assertEquals("ExecuTorch refuses it: Cannot load model path: path is not readable: /m/phi.pte", refused.message)
    }

    @Test
    fun withoutTheLibrary() {
        val engine = ExecuTorchEngine("/m/phi.pte", "/m/t.json", null)
        assertTrue(assertThrows(EngineError::class.java) { engine.load() }.message.startsWith("This app holds no ExecuTorch library"))
        assertEquals("The model is not loaded.", assertThrows(EngineError::class.java) { engine.generate("a", 1, 1, Sampling()) { } }.message)
        engine.stop()
        engine.close()
        assertFalse(runner.closed)
    }
}

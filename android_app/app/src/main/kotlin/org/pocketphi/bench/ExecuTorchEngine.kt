package org.pocketphi.bench

import org.pocketphi.core.EngineError
import org.pocketphi.core.EngineErrors
import org.pocketphi.core.EngineStats
import org.pocketphi.core.Generated
import org.pocketphi.core.LlmEngine
import org.pocketphi.core.Loaded
import org.pocketphi.core.Manifest
import org.pocketphi.core.Part
import org.pocketphi.core.Sampling
import org.pocketphi.core.StopReason
import org.pytorch.executorch.ExecutorchRuntimeException
import org.pytorch.executorch.extension.llm.LlmCallback
import org.pytorch.executorch.extension.llm.LlmGenerationConfig
import org.pytorch.executorch.extension.llm.LlmModule
import java.io.File

/**
 * [LlmEngine] over ExecuTorch's LlmModule, for libraries without the engine of export/engine/cpp: the only file that
 * touches ExecuTorch. Of a [Sampling] it knows the temperature alone, and a load cannot be stopped.
 */
class ExecuTorchEngine(
    private val model: String,
    private val tokenizer: String,
    private val manifest: Manifest?,
) : LlmEngine {
    @Volatile private var module: LlmModule? = null
    private var position = 0
    @Volatile private var stopAsked = false

    override fun load(): Loaded {
        guarded({ EngineErrors.loading(it, File(model).name) }) { open() }
        return Loaded()
    }

    private fun open() {
        // Not the constructor with a LlmModuleConfig: its data path is "" by default and becomes the name of a file.
        val made = LlmModule(model, tokenizer, GREEDY)
        module = made
        made.load()
    }

    override fun generate(
        prompt: List<Part>, promptTokens: Int?, newTokens: Int, sampling: Sampling, onPiece: (String) -> Unit,
    ): Generated {
        val module = module ?: throw EngineError("The model is not loaded.")
        val text = prompt.joinToString("") { (it as? Part.Words ?: throw EngineErrors.textOnly()).text }
        val limit = minOf(newTokens, room(text, promptTokens))
        val collector = Collector(module, limit, onPiece)
        stopAsked = false
        val config = LlmGenerationConfig.create().echo(false).temperature(sampling.temperature).seqLen(seqLen(promptTokens, limit)).build()
        val failure = { code: Int -> EngineErrors.generating(code, promptTokens, newTokens) }
        guarded(failure) { module.generate(text, config, collector) }
        collector.errorCode?.let { throw failure(it) }
        val stats = collector.stats
        val generated = stats?.generatedTokens ?: collector.pieces
        position += (stats?.promptTokens ?: promptTokens ?: 0) + maxOf(0, generated - 1)
        val reason = when {
            stopAsked -> StopReason.STOPPED
            generated >= limit -> StopReason.NEW_TOKENS
            else -> StopReason.END_OF_TURN
        }
        // The runner has not read the last token it made.
        return Generated(stats?.promptTokens, generated, collector.pieces, stats?.prefillMs, stats?.decodeMs, reason, collector.last)
    }

    override fun stop() {
        stopAsked = true
        module?.stop()
    }

    override fun reset() {
        val module = module ?: return
        guarded({ EngineErrors.generating(it, null, 0) }) { module.resetContext() }
        position = 0
    }

    override fun close() {
        module?.close()
        module = null
    }

    /**
     * maxNewTokens never reaches the runner, which knows only a length of the whole sequence. It counts the prompt
     * in, except for files that take prompts in chunks shorter than their context: there it is the new tokens.
     * Where that is not known the longer length is asked for, and the collector ends the generation.
     */
    private fun seqLen(promptTokens: Int?, limit: Int): Int {
        val chunk = manifest?.prefillChunkTokens
        val context = manifest?.contextTokens
        if (chunk != null && context != null && chunk < context) return limit
        return if (promptTokens == null) Int.MAX_VALUE else position + promptTokens + limit
    }

    /** How many tokens the context still takes: the runner fails only when the cache is full, in the middle of an answer. */
    private fun room(prompt: String, promptTokens: Int?): Int {
        val context = manifest?.contextTokens ?: return Int.MAX_VALUE
        val prompted = promptTokens ?: (prompt.toByteArray().size / BYTES_PER_TOKEN)
        val room = context - position - prompted
        if (room < 1) throw EngineErrors.full(prompted, context.toLong(), position)
        return room
    }

    private fun guarded(failure: (Int) -> EngineError, body: () -> Unit) {
        try {
            body()
        } catch (problem: ExecutorchRuntimeException) {
            throw EngineError(failure(problem.errorCode).message, problem.errorCode, problem)
        } catch (problem: IllegalArgumentException) {
            throw EngineError("ExecuTorch refuses it: ${firstLine(problem)}", cause = problem)
        } catch (problem: IllegalStateException) {
            throw EngineError("ExecuTorch cannot do this now: ${firstLine(problem)}", cause = problem)
        } catch (problem: LinkageError) {
            val abis = android.os.Build.SUPPORTED_ABIS.joinToString()
            throw EngineError("This app holds no ExecuTorch library for this device ($abis).", cause = problem)
        }
    }

    private fun firstLine(problem: Throwable) = problem.message.orEmpty().lineSequence().first()

    private inner class Collector(
        private val module: LlmModule, private val limit: Int, private val onPiece: (String) -> Unit,
    ) : LlmCallback {
        var pieces = 0
        var last = ""
        var stats: EngineStats? = null
        var errorCode: Int? = null

        override fun onResult(result: String) {
            pieces++
            last = result
            onPiece(result)
            // A stop during the prefill is forgotten by the runner, so it is repeated with each token.
            if (stopAsked || pieces >= limit) {
                try {
                    module.stop()
                } catch (_: IllegalStateException) {
                    Thread { module.stop() }.start()
                }
            }
        }

        override fun onStats(stats: String) {
            this.stats = EngineStats.parse(stats)
        }

        override fun onError(errorCode: Int, message: String) {
            this.errorCode = errorCode
        }
    }

    companion object {
        const val NAME = "LlmModule"

        /** The release of org.pytorch:executorch-android that the build takes, and of the exporter's executorch. */
        const val EXECUTORCH = "1.5.1"

        private const val GREEDY = 0f
        private const val BYTES_PER_TOKEN = 3
    }
}

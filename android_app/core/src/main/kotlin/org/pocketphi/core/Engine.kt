package org.pocketphi.core

import java.io.Closeable

enum class StopReason(val json: String) {
    NEW_TOKENS("new_tokens"), END_OF_TURN("end_of_turn"), STOPPED("stopped"), ERROR("error")
}

/**
 * What an engine tells after a generation. [pieces] is how often the callback ran: fewer than [generatedTokens] where
 * a character was spread over several tokens. Times in milliseconds, null where the engine does not tell.
 */
data class Generated(
    val promptTokens: Int?,
    val generatedTokens: Int,
    val pieces: Int,
    val prefillMs: Double?,
    val decodeMs: Double?,
    val stopReason: StopReason,
    /** The text of the last token, where the context lacks it and the caller must feed it with what comes next. */
    val unread: String,
    /** Between consecutive tokens, by an engine that counts them itself. */
    val tokenMs: List<Double>? = null,
    /** Tokens guessed ahead, and the right ones among them, by an engine that was told to. */
    val drafted: Int? = null,
    val accepted: Int? = null,
)

/** How a token is chosen: 0 [temperature] always takes the likeliest; 0 [topK] and 1 [topP] leave nothing out. */
data class Sampling(val temperature: Float = 0f, val topK: Int = 0, val topP: Float = 1f, val seed: Long = 0)

/** 0 [threads]: as many as the phone has fast cores. [draftTokens] are guessed ahead at most. */
data class EngineSettings(val threads: Int = 0, val draftTokens: Int = 0)

/** By the order of `pocketphi_packing`. */
enum class Packing(val json: String) { NONE("none"), COLD("cold"), WARM("warm") }

/** What a load tells: of [packing] only an engine that keeps packed weights in a file; [note] is why there is none. */
data class Loaded(
    val packing: Packing? = null, val note: String? = null, val packedBytes: Long = 0, val threads: Int? = null,
    val takes: Takes = Takes.TEXT,
)

/** Runs one model. Not for several threads, but for [stop]. Every failure is an [EngineError]. */
interface LlmEngine : Closeable {
    /** Slow: seconds, and most of the memory. [EngineStopped] where [stop] ended it. */
    fun load(): Loaded

    /**
     * Encodes the pictures and sounds of a [prompt] that [generate] is about to be given, and those before it that must
     * be encoded anew; [onPart] is told before each part of one, and what it throws ends the encoding. Slow: seconds.
     * Without this [generate] does it.
     */
    fun encode(prompt: List<Part>, onPart: (Encoding) -> Unit = {}): List<Encoded> {
        if (prompt.any { it !is Part.Words }) throw EngineErrors.textOnly()
        return emptyList()
    }

    /**
     * How many tokens a picture of so many pixels would be; null where the file takes none. Nothing is encoded.
     * [EngineError] where no picture can be so narrow.
     */
    fun pictureTokens(width: Int, height: Int): Int? = null

    /**
     * Feeds [prompt] after what the context holds already and makes at most [newTokens] tokens. [promptTokens] is how
     * many tokens the prompt has, where that is known. A prompt that does not fit the context is refused before the run.
     */
    fun generate(prompt: List<Part>, promptTokens: Int?, newTokens: Int, sampling: Sampling, onPiece: (String) -> Unit): Generated

    /** Ends a generation after the token it is at and, where the engine can, a load or encoding; from any thread. */
    fun stop()

    /** Empties the context. */
    fun reset()
}

/** A prompt that is text alone. */
fun LlmEngine.generate(prompt: String, promptTokens: Int?, newTokens: Int, sampling: Sampling, onPiece: (String) -> Unit): Generated =
    generate(listOf(Part.Words(prompt)), promptTokens, newTokens, sampling, onPiece)

/** Makes an engine for a model and its tokenizer, without loading it. */
fun interface EngineFactory {
    fun create(model: String, tokenizer: String, manifest: Manifest?, settings: EngineSettings): LlmEngine
}

/** The numbers of the statistics line that ExecuTorch's runners give (`extension/llm/runner/stats.h`). */
data class EngineStats(val promptTokens: Int, val generatedTokens: Int, val prefillMs: Double?, val decodeMs: Double?) {
    companion object {
        /** Null where the text is not such a line. */
        fun parse(text: String): EngineStats? {
            val json = try {
                Json.read(text) as? Map<*, *>
            } catch (_: JsonError) {
                null
            } ?: return null
            fun number(key: String) = (json[key] as? Number)?.toLong()
            fun between(from: String, to: String): Double? {
                val start = number(from) ?: return null
                val end = number(to) ?: return null
                return (end - start).toDouble().takeIf { start > 0 && end > start }
            }
            val prompt = number("prompt_tokens") ?: return null
            // The runner counts decoding steps; the first new token comes from the prefill.
            val generated = (number("generated_tokens") ?: return null) + 1
            return EngineStats(
                prompt.toInt(), generated.toInt(),
                between("inference_start_ms", "prompt_eval_end_ms"), between("first_token_ms", "inference_end_ms"),
            )
        }
    }
}

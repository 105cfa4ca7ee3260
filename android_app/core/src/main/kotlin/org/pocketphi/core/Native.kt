package org.pocketphi.core

/** export/engine/cpp/jni/jni.cpp: its functions by their names. Handles are addresses: 0 is none, and a closed one must not be used. */
internal object Native {
    const val LOADED = 11
    const val ENCODED = 5
    const val ANSWERED = 7

    /** Told on the thread that called; an exception ends the call and comes out of it. */
    interface Listener {
        fun progress(bytes: Long, of: Long) = Unit

        fun token(id: Long, ms: Double) = Unit

        /** Before a part of a picture or sound is encoded: so many [of] all are done. */
        fun part(done: Long, of: Long) = Unit

        /** Whole characters in UTF-8. */
        fun text(piece: ByteArray) = Unit
    }

    @JvmStatic external fun create(): Long

    @JvmStatic external fun close(engine: Long)

    @JvmStatic external fun stop(engine: Long)

    @JvmStatic external fun load(
        engine: Long, model: ByteArray, cacheDir: ByteArray?, threads: Int, prefillChunk: Int, numbers: DoubleArray, listener: Listener,
    ): ByteArray

    /** [rgb] has three bytes a pixel, row by row. The first media id; the rest goes into [numbers]. */
    @JvmStatic external fun picture(engine: Long, rgb: ByteArray, width: Int, height: Int, numbers: DoubleArray, listener: Listener): Long

    /** For prompts of the [mode] with that number. The first media id; the rest goes into [numbers]. */
    @JvmStatic external fun sound(engine: Long, samples: FloatArray, rate: Int, mode: Int, numbers: DoubleArray, listener: Listener): Long

    @JvmStatic external fun pictureTokens(engine: Long, width: Int, height: Int): Long

    @JvmStatic external fun soundTokens(engine: Long, samples: Int, rate: Int): Long

    @JvmStatic external fun forgetMedia(engine: Long)

    @JvmStatic external fun generate(
        engine: Long, tokenizer: Long, prompt: LongArray, maxNewTokens: Long, temperature: Float, topK: Int, topP: Float, seed: Long,
        draftTokens: Int, numbers: DoubleArray, listener: Listener,
    )

    @JvmStatic external fun tokens(engine: Long): LongArray

    @JvmStatic external fun rewind(engine: Long, count: Long)

    @JvmStatic external fun loadTokenizer(path: ByteArray): Long

    @JvmStatic external fun freeTokenizer(tokenizer: Long)

    @JvmStatic external fun encode(tokenizer: Long, text: ByteArray): LongArray

    /** What the functions above call where they fail. */
    @JvmStatic
    fun fail(status: Int, sentence: ByteArray) {
        // Not where a sentence begins with an option's name or a path.
        val text = sentence.decodeToString().replace(Regex("^[a-z]+ ")) { it.value.replaceFirstChar(Char::uppercaseChar) } + "."
        throw if (status == STOPPED) EngineStopped() else EngineError(text)
    }

    private const val STOPPED = 2 // POCKETPHI_STOPPED
}

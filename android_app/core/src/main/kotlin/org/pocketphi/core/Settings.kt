package org.pocketphi.core

/**
 * What a person sets for the engine and for conversations; [system] is what the model is told first, [pictureSide] how many
 * pixels the longer side of a picture has at most: larger ones show more, and take longer and more of the context.
 */
data class Settings(
    val engine: EngineSettings = EngineSettings(), val sampling: Sampling = Sampling(), val system: String = "",
    val pictureSide: Int = PICTURE_SIDE,
) {
    /** By the names of [parse]. */
    fun texts(): Map<String, String> = linkedMapOf(
        "threads" to engine.threads.toString(), "draft_tokens" to engine.draftTokens.toString(),
        "temperature" to sampling.temperature.toString(), "top_k" to sampling.topK.toString(), "top_p" to sampling.topP.toString(),
        "seed" to sampling.seed.toString(), "system" to system, "picture_side" to pictureSide.toString(),
    )

    companion object {
        private const val PICTURE_SIDE = 896

        /** Of what stands in the fields; a key that lacks has its default. Throws [BadInput] that names the key, its text and the range. */
        fun parse(texts: Map<String, String>): Settings {
            fun number(key: String, default: String, range: ClosedFloatingPointRange<Double>, whole: Boolean): Double {
                val text = (texts[key] ?: default).trim()
                val found = text.toDoubleOrNull()?.takeIf { it in range && (!whole || it == Math.rint(it)) }
                val what = if (whole) "a whole number" else "a number"
                return found ?: throw BadInput("$key is \"$text\"; it wants $what from ${short(range.start)} to ${short(range.endInclusive)}.")
            }
            return Settings(
                EngineSettings(number("threads", "0", 0.0..64.0, true).toInt(), number("draft_tokens", "0", 0.0..64.0, true).toInt()),
                Sampling(
                    number("temperature", "0", 0.0..10.0, false).toFloat(), number("top_k", "0", 0.0..1e6, true).toInt(),
                    number("top_p", "1", 0.0..1.0, false).toFloat(), number("seed", "0", 0.0..9e15, true).toLong(),
                ),
                texts["system"].orEmpty().trim(), number("picture_side", "$PICTURE_SIDE", 32.0..8192.0, true).toInt(),
            )
        }

        private fun short(number: Double) = if (number == Math.rint(number)) number.toLong().toString() else number.toString()
    }
}

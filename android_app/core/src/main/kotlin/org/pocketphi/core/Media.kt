package org.pocketphi.core

/** What a prompt is made of. Pictures and sounds are the same where they are the same object. */
sealed interface Part {
    data class Words(val text: String) : Part

    /** Upright, three bytes (red, green, blue) a pixel, row by row. */
    class Picture(val rgb: ByteArray, val width: Int, val height: Int) : Part

    /** One channel, -1 to 1, [rate] samples a second. */
    class Sound(val samples: FloatArray, val rate: Int) : Part {
        val seconds: Double get() = samples.size / rate.toDouble()
    }
}

/** How a prompt is answered, by the order of `pocketphi_mode`: a picture decides, with or without sound. */
enum class Mode(val json: String) {
    TEXT("text"), VISION("vision"), SPEECH("speech");

    companion object {
        fun of(parts: List<Part>): Mode = when {
            parts.any { it is Part.Picture } -> VISION
            parts.any { it is Part.Sound } -> SPEECH
            else -> TEXT
        }
    }
}

/** What a file takes beside text; [soundRate] samples a second, 0 where it takes no sound. */
data class Takes(val pictures: Boolean, val sound: Boolean, val soundRate: Int) {
    operator fun contains(mode: Mode): Boolean = when (mode) {
        Mode.TEXT -> true
        Mode.VISION -> pictures
        Mode.SPEECH -> sound
    }

    companion object {
        val TEXT = Takes(pictures = false, sound = false, soundRate = 0)
    }
}

/** A picture or sound that is being encoded: [done] of its [of] crops or pieces. */
data class Encoding(val part: Part, val done: Int, val of: Int)

/**
 * A picture or sound that an engine has made [tokens] of, of so many [parts] (crops or pieces): [reused] where it was
 * encoded before. Milliseconds of scaling and cutting (or the spectrogram), and of encoding.
 */
data class Encoded(val tokens: Int, val parts: Int, val reused: Boolean, val prepareMs: Double, val encodeMs: Double) {
    val ms: Double get() = prepareMs + encodeMs
}

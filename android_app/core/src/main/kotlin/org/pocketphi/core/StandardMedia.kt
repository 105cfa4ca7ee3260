package org.pocketphi.core

/** The picture and the sound that a measurement encodes: formulas of contract.json, the same on every device. */
object StandardMedia {
    fun picture(width: Int, height: Int): Part.Picture {
        val rgb = ByteArray(3 * width * height)
        var at = 0
        for (y in 0 until height) for (x in 0 until width) for (channel in 0 until 3) {
            rgb[at++] = Math.abs((3 * x + 2 * y + 85 * channel) % 510 - 255).toByte()
        }
        return Part.Picture(rgb, width, height)
    }

    fun sound(rate: Int, seconds: Double, hertz: Double, loudness: Double) = Part.Sound(
        FloatArray(Math.round(rate * seconds).toInt()) { (loudness * Math.sin(2 * Math.PI * hertz * it / rate)).toFloat() }, rate,
    )
}

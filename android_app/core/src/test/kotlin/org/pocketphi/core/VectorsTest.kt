package org.pocketphi.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Test

/** What export/bench/contract/vectors.json says, and Python's and Swift's tests check too. */
class VectorsTest {
    @Test
    fun statistics() {
        for (vector in Repository.vectors("statistics")) {
            val values = (vector["values"] as List<*>).map { (it as Number).toDouble() }
            val wanted = vector["statistics"] as Map<*, *>?
            val found = Statistics.of(values)?.toJson()
            if (wanted == null) assertNull(found)
            wanted?.forEach { (key, value) -> assertEquals("$key of $values", (value as Number).toDouble(), found!![key] as Double, 1e-12) }
        }
    }

    @Test
    fun chat() {
        for (vector in Repository.vectors("chat")) {
            val messages = (vector["messages"] as List<*>).map { it as Map<*, *> }.map { message ->
                Message(Role.entries.first { it.tag == message["role"] }, message["content"] as String)
            }
            assertEquals(vector["text"], ChatFormat.render(messages))
        }
    }

    @Test
    fun answers() {
        for (vector in Repository.vectors("answers")) {
            val pieces = vector["pieces"] as List<*>
            val shown = pieces.indices.map { ChatFormat.visible(pieces.take(it + 1).joinToString("")) }
            assertEquals(vector["shown"], shown)
            val answer = pieces.joinToString("")
            assertEquals(vector["stopped"], ChatFormat.stopped(answer))
            assertEquals(vector["whole"] ?: shown.last(), ChatFormat.whole(answer))
        }
    }

    @Test
    fun theStandardPictureAndSound() {
        val picture = Contract.current.standard(Mode.VISION, 0).single() as Part.Picture
        assertEquals(3 * picture.width * picture.height, picture.rgb.size)
        for (vector in Repository.vectors("picture")) {
            val at = 3 * ((vector["y"] as Long).toInt() * picture.width + (vector["x"] as Long).toInt())
            assertEquals(vector["rgb"], (0..2).map { (picture.rgb[at + it].toInt() and 255).toLong() })
        }
        for (vector in Repository.vectors("sound")) {
            val sound = Contract.current.standard(Mode.SPEECH, (vector["rate"] as Long).toInt()).single() as Part.Sound
            assertEquals(vector["count"], sound.samples.size.toLong())
            assertEquals((vector["sample"] as Number).toDouble(), sound.samples[(vector["at"] as Long).toInt()].toDouble(), 1e-7)
        }
        assertEquals(emptyList<Part>(), Contract.current.standard(Mode.TEXT, 16_000))
    }
}

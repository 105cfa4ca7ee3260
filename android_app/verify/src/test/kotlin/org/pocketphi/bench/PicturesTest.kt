package org.pocketphi.bench

import android.graphics.Bitmap
import android.graphics.Color
import android.media.ExifInterface
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.junit.runner.RunWith
import org.pocketphi.core.BadInput
import org.pocketphi.core.Part
import org.robolectric.RobolectricTestRunner
import org.robolectric.annotation.Config
import java.io.ByteArrayInputStream
import java.io.ByteArrayOutputStream
import java.io.File
import java.io.FileNotFoundException

/** Pictures as files have them: turned, transparent, large, damaged; decoded by Android's own code. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [34])
class PicturesTest {
    @get:Rule val folder = TemporaryFolder()

    /** Left half [left], right half [right]. */
    private fun halves(width: Int, height: Int, left: Int, right: Int): Bitmap =
        Bitmap.createBitmap(IntArray(width * height) { if (it % width < width / 2) left else right }, width, height, Bitmap.Config.ARGB_8888)

    private fun file(of: Bitmap, format: Bitmap.CompressFormat) = ByteArrayOutputStream().also { of.compress(format, 100, it) }.toByteArray()

    private fun read(bytes: ByteArray, side: Int = 896): Part.Picture = Pictures.pixels(Pictures.read(side) { ByteArrayInputStream(bytes) })

    private fun Part.Picture.at(x: Int, y: Int) = (0..2).map { rgb[3 * (y * width + x) + it].toInt() and 255 }

    private fun near(wanted: List<Int>, found: List<Int>) =
        assertTrue("$found instead of $wanted", wanted.zip(found).all { (one, other) -> Math.abs(one - other) < 12 })

    @Test
    fun pixelsAreThoseOfTheFile() {
        val colours = IntArray(6 * 4) { Color.rgb(10 * it, 255 - 9 * it, it) }
        val picture = read(file(Bitmap.createBitmap(colours, 6, 4, Bitmap.Config.ARGB_8888), Bitmap.CompressFormat.PNG))
        assertEquals(6 to 4, picture.width to picture.height)
        for (y in 0..3) for (x in 0..5) (6 * y + x).let { assertEquals(listOf(10 * it, 255 - 9 * it, it), picture.at(x, y)) }
    }

    @Test
    fun whatIsTransparentIsWhite() {
        val picture = read(file(halves(8, 4, Color.argb(0, 0, 0, 0), Color.argb(128, 255, 0, 0)), Bitmap.CompressFormat.PNG))
        assertEquals(listOf(255, 255, 255), picture.at(1, 1))
        near(listOf(255, 127, 127), picture.at(6, 1))
    }

    @Test
    fun everyOrientationIsTurnedUpright() {
        // The file's left half is red; where red must be in what is upright.
        val red = mapOf(
            1 to "left", 2 to "right", 3 to "right", 4 to "left", 5 to "top", 6 to "top", 7 to "bottom", 8 to "bottom",
        )
        for ((orientation, side) in red) {
            val file = File(folder.root, "$orientation.jpg").apply { writeBytes(file(halves(64, 32, Color.RED, Color.BLUE), Bitmap.CompressFormat.JPEG)) }
            ExifInterface(file.path).apply {
                setAttribute(ExifInterface.TAG_ORIENTATION, orientation.toString())
                saveAttributes()
            }
            val picture = read(file.readBytes())
            assertEquals("$orientation", if (orientation < 5) 64 to 32 else 32 to 64, picture.width to picture.height)
            val (right, bottom) = picture.width - 3 to picture.height - 3
            val (isRed, isBlue) = when (side) {
                "left" -> (2 to bottom) to (right to 2)
                "right" -> (right to 2) to (2 to bottom)
                "top" -> (right to 2) to (2 to bottom)
                else -> (2 to bottom) to (right to 2)
            }
            near(listOf(254, 0, 0), picture.at(isRed.first, isRed.second))
            near(listOf(0, 0, 254), picture.at(isBlue.first, isBlue.second))
        }
    }

    @Test
    fun flipsDifferFromTurns() {
        // Red above left alone tells the four that show the same halves apart.
        val corner = Bitmap.createBitmap(IntArray(64 * 64) { if (it % 64 < 32 && it / 64 < 32) Color.RED else Color.BLUE }, 64, 64, Bitmap.Config.ARGB_8888)
        val places = mapOf(
            1 to (8 to 8), 2 to (56 to 8), 3 to (56 to 56), 4 to (8 to 56), 5 to (8 to 8), 6 to (56 to 8), 7 to (56 to 56), 8 to (8 to 56),
        )
        for ((orientation, place) in places) {
            val file = File(folder.root, "c$orientation.jpg").apply { writeBytes(file(corner, Bitmap.CompressFormat.JPEG)) }
            ExifInterface(file.path).apply {
                setAttribute(ExifInterface.TAG_ORIENTATION, orientation.toString())
                saveAttributes()
            }
            val picture = read(file.readBytes())
            val red = listOf(8 to 8, 56 to 8, 56 to 56, 8 to 56).filter { (x, y) -> picture.at(x, y)[0] > 128 }
            assertEquals("$orientation", listOf(place), red)
        }
    }

    @Test
    fun largeOnesAreDecodedSmall() {
        val large = file(halves(1000, 250, Color.RED, Color.BLUE), Bitmap.CompressFormat.PNG)
        val picture = read(large, side = 96)
        assertEquals(96 to 24, picture.width to picture.height)
        near(listOf(255, 0, 0), picture.at(40, 12))
        near(listOf(0, 0, 255), picture.at(56, 12))
        assertEquals(listOf(1, 1, 2, 4, 8), listOf(95, 191, 192, 500, 800).map { Pictures.sample(it, 96) })
        val small = read(file(halves(20, 10, Color.RED, Color.BLUE), Bitmap.CompressFormat.PNG), side = 96)
        assertEquals("never made larger", 20 to 10, small.width to small.height)
        assertEquals("never nothing", 96 to 1, read(file(halves(4000, 3, 0, 0), Bitmap.CompressFormat.PNG), side = 96).run { width to height })
    }

    @Test
    fun whatCannotBeReadIsASentence() {
        fun refused(open: () -> java.io.InputStream) = assertThrows(BadInput::class.java) { Pictures.read(96, open) }.message
        assertEquals("This is no picture that Android can read.", refused { ByteArrayInputStream("nonsense".toByteArray()) })
        assertEquals("This is no picture that Android can read.", refused { ByteArrayInputStream(ByteArray(0)) })
        val whole = file(halves(64, 64, Color.RED, Color.BLUE), Bitmap.CompressFormat.PNG)
        assertEquals("This is no picture that Android can read.", refused { ByteArrayInputStream(whole.copyOf(20)) })
        assertEquals("The picture could not be read: it is gone.", refused { throw FileNotFoundException("it is gone") })
        assertTrue(refused { throw SecurityException("no") }.startsWith("The picture could not be read: the app that has it"))
    }
}

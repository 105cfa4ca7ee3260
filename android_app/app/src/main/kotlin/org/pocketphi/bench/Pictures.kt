package org.pocketphi.bench

import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Matrix
import android.graphics.Paint
import android.media.ExifInterface
import org.pocketphi.core.BadInput
import org.pocketphi.core.Part
import java.io.IOException
import java.io.InputStream

/** Files of pictures to pixels: upright, on white, no larger than is wanted. Not for the main thread. */
object Pictures {
    /** [open] is called three times. The longer side has at most [side] pixels. Throws [BadInput] with a sentence for a person. */
    fun read(side: Int, open: () -> InputStream): Bitmap {
        try {
            val bounds = BitmapFactory.Options().apply { inJustDecodeBounds = true }
            open().use { BitmapFactory.decodeStream(it, null, bounds) }
            if (bounds.outWidth <= 0 || bounds.outHeight <= 0) throw BadInput(UNKNOWN)
            val orientation = open().use { orientation(it) }
            val options = BitmapFactory.Options().apply { inSampleSize = sample(maxOf(bounds.outWidth, bounds.outHeight), side) }
            val decoded = open().use { BitmapFactory.decodeStream(it, null, options) } ?: throw BadInput(UNKNOWN)
            return upright(decoded, orientation, side)
        } catch (problem: IOException) {
            throw BadInput("The picture could not be read: ${problem.message}.")
        } catch (_: SecurityException) {
            throw BadInput("The picture could not be read: the app that has it does not allow that.")
        } catch (_: OutOfMemoryError) {
            throw BadInput("The picture is too large for the memory that is free.")
        }
    }

    /** The bitmap's pixels as the engine takes them. */
    fun pixels(of: Bitmap): Part.Picture {
        val rgb = ByteArray(3 * of.width * of.height)
        val row = IntArray(of.width)
        var at = 0
        for (y in 0 until of.height) {
            of.getPixels(row, 0, of.width, 0, y, of.width, 1)
            for (pixel in row) {
                rgb[at++] = (pixel shr 16).toByte()
                rgb[at++] = (pixel shr 8).toByte()
                rgb[at++] = pixel.toByte()
            }
        }
        return Part.Picture(rgb, of.width, of.height)
    }

    /** The most that can be left out while decoding, a power of 2, so that at least [side] pixels are left. */
    fun sample(longer: Int, side: Int): Int {
        var sample = 1
        while (longer / (2 * sample) >= side) sample *= 2
        return sample
    }

    /** 1 to 8, as in EXIF; 1 where the file does not tell. */
    private fun orientation(file: InputStream): Int = try {
        ExifInterface(file).getAttributeInt(ExifInterface.TAG_ORIENTATION, ExifInterface.ORIENTATION_NORMAL)
    } catch (_: IOException) {
        ExifInterface.ORIENTATION_NORMAL
    }

    private fun upright(decoded: Bitmap, orientation: Int, side: Int): Bitmap {
        val matrix = Matrix()
        when (orientation) {
            ExifInterface.ORIENTATION_FLIP_HORIZONTAL -> matrix.setScale(-1f, 1f)
            ExifInterface.ORIENTATION_ROTATE_180 -> matrix.setRotate(180f)
            ExifInterface.ORIENTATION_FLIP_VERTICAL -> matrix.setScale(1f, -1f)
            ExifInterface.ORIENTATION_TRANSPOSE -> matrix.apply { setRotate(90f); postScale(-1f, 1f) }
            ExifInterface.ORIENTATION_ROTATE_90 -> matrix.setRotate(90f)
            ExifInterface.ORIENTATION_TRANSVERSE -> matrix.apply { setRotate(270f); postScale(-1f, 1f) }
            ExifInterface.ORIENTATION_ROTATE_270 -> matrix.setRotate(270f)
        }
        val turned = orientation in ExifInterface.ORIENTATION_TRANSPOSE..ExifInterface.ORIENTATION_ROTATE_270
        val (wide, high) = if (turned) decoded.height to decoded.width else decoded.width to decoded.height
        val scale = minOf(1f, side / maxOf(wide, high).toFloat())
        val width = maxOf(1, Math.round(wide * scale))
        val height = maxOf(1, Math.round(high * scale))
        // Turned about the middle, then laid onto the whole canvas.
        matrix.preTranslate(-decoded.width / 2f, -decoded.height / 2f)
        matrix.postScale(width / wide.toFloat(), height / high.toFloat())
        matrix.postTranslate(width / 2f, height / 2f)
        val made = Bitmap.createBitmap(width, height, Bitmap.Config.ARGB_8888)
        Canvas(made).apply {
            drawColor(Color.WHITE)
            drawBitmap(decoded, matrix, Paint(Paint.FILTER_BITMAP_FLAG))
        }
        if (decoded !== made) decoded.recycle()
        return made
    }

    private const val UNKNOWN = "This is no picture that Android can read."
}

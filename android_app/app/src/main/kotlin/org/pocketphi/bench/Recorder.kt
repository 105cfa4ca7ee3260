package org.pocketphi.bench

import android.annotation.SuppressLint
import android.media.AudioFormat
import android.media.AudioRecord
import android.media.MediaRecorder
import org.pocketphi.core.BadInput
import org.pocketphi.core.Part

/**
 * The microphone, on a thread of its own: one channel at [RATE], [MOST_SECONDS] at most. [onHeard] is told how many
 * samples there are and how loud the newest were, 0 to 1; [onEnd] the sound, null where nothing was heard, and a sentence
 * where that failed. Both come from that thread. The permission must have been given.
 */
class Recorder(private val onHeard: (Int, Float) -> Unit, private val onEnd: (Part.Sound?, String?) -> Unit) {
    @Volatile private var stopped = false
    private val thread = Thread({ record() }, "microphone")

    fun start() = thread.start()

    /** What was heard by now comes to [onEnd]. */
    fun stop() {
        stopped = true
    }

    private fun record() {
        val heard = ShortArray(RATE * MOST_SECONDS)
        var count = 0
        var problem: String? = null
        try {
            count = listen(heard)
        } catch (failure: BadInput) {
            problem = failure.message
        } catch (failure: IllegalStateException) {
            problem = "The microphone failed: ${failure.message}."
        }
        val sound = if (count == 0) null else Part.Sound(FloatArray(count) { heard[it] / FULL }, RATE)
        onEnd(sound, problem ?: if (sound == null) "Nothing was recorded." else null)
    }

    @SuppressLint("MissingPermission")
    private fun listen(heard: ShortArray): Int {
        val least = AudioRecord.getMinBufferSize(RATE, AudioFormat.CHANNEL_IN_MONO, AudioFormat.ENCODING_PCM_16BIT)
        if (least <= 0) throw BadInput("This phone's microphone does not record at $RATE Hz.")
        val microphone = AudioRecord(
            MediaRecorder.AudioSource.VOICE_RECOGNITION, RATE, AudioFormat.CHANNEL_IN_MONO, AudioFormat.ENCODING_PCM_16BIT, maxOf(least, 2 * STEP),
        )
        try {
            if (microphone.state != AudioRecord.STATE_INITIALIZED) throw BadInput("The microphone could not be opened: another app may be using it.")
            microphone.startRecording()
            var count = 0
            while (!stopped && count < heard.size) {
                val got = microphone.read(heard, count, minOf(STEP, heard.size - count))
                if (got < 0) throw BadInput("The microphone failed while it was recording (code $got).")
                if (got > 0) onHeard(count + got, loudness(heard, count, got))
                count += got
            }
            microphone.stop()
            return count
        } finally {
            microphone.release()
        }
    }

    private fun loudness(samples: ShortArray, from: Int, count: Int): Float {
        var sum = 0.0
        for (at in from until from + count) sum += samples[at].toDouble() * samples[at]
        return (Math.sqrt(sum / count) / FULL).toFloat()
    }

    companion object {
        const val RATE = 16_000

        /** The model takes more, but so much of its memory and of a person's patience is enough for a question. */
        const val MOST_SECONDS = 60
        private const val STEP = RATE / 10
        private const val FULL = 32768f
    }
}

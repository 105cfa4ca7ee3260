package org.pocketphi.bench

import android.graphics.Bitmap
import android.os.Handler
import android.os.Looper
import org.pocketphi.core.BadInput
import org.pocketphi.core.Part
import java.io.FileNotFoundException
import java.io.InputStream
import java.util.WeakHashMap
import java.util.concurrent.Executors

/** What the next question will carry; [reading] pictures are not there yet. [recorded] samples so far, null unless it records. */
data class MediaState(
    val pending: List<Part> = emptyList(), val reading: Int = 0, val recorded: Int? = null, val loudness: Float = 0f, val problem: String? = null,
)

/** Pictures and sounds that a person attaches; they outlive the screen. Main thread, but for reading and recording. */
class MediaHolder(private val app: BenchApp) {
    private val main = Handler(Looper.getMainLooper())
    private val reader = Executors.newSingleThreadExecutor()
    private val listeners = LinkedHashSet<(MediaState) -> Unit>()
    private val small = WeakHashMap<Part.Picture, Bitmap>()
    private var recorder: Recorder? = null

    var state = MediaState()
        private set

    fun listen(listener: (MediaState) -> Unit) {
        listeners.add(listener)
        listener(state)
    }

    fun unlisten(listener: (MediaState) -> Unit) {
        listeners.remove(listener)
    }

    /** A small copy of a picture that was attached. */
    fun thumbnail(of: Part.Picture): Bitmap? = small[of]

    /** Reads a picture and attaches it; [then] runs when it has been read, or could not be. */
    fun read(then: () -> Unit = {}, open: () -> InputStream?) {
        tell(state.copy(reading = state.reading + 1, problem = null))
        val side = app.settings.current.pictureSide
        reader.execute {
            var problem: String? = null
            var made: Pair<Part.Picture, Bitmap>? = null
            try {
                val bitmap = Pictures.read(side) { open() ?: throw FileNotFoundException("the other app gives no data") }
                made = Pictures.pixels(bitmap) to shrunk(bitmap)
            } catch (wrong: BadInput) {
                problem = wrong.message
            }
            then()
            main.post {
                made?.let { (picture, thumbnail) -> small[picture] = thumbnail }
                tell(state.copy(pending = state.pending + listOfNotNull(made?.first), reading = state.reading - 1, problem = problem))
            }
        }
    }

    /** The permission must have been given. */
    fun record() {
        if (state.recorded != null) return
        tell(state.copy(recorded = 0, loudness = 0f, problem = null))
        recorder = Recorder(
            onHeard = { count, loudness -> main.post { if (state.recorded != null) tell(state.copy(recorded = count, loudness = loudness)) } },
            onEnd = { sound, problem ->
                main.post { tell(state.copy(pending = state.pending + listOfNotNull(sound), recorded = null, problem = problem)) }
            },
        ).apply { start() }
    }

    fun stopRecording() {
        recorder?.stop()
    }

    fun remove(part: Part) = tell(state.copy(pending = state.pending.filter { it !== part }))

    fun fail(problem: String) = tell(state.copy(problem = problem))

    /** What is attached, which is then taken. */
    fun take(): List<Part> = state.pending.also { tell(state.copy(pending = emptyList(), problem = null)) }

    /** What could not be used stays attached, for the person to remove. */
    fun putBack(parts: List<Part>) = tell(state.copy(pending = parts + state.pending))

    private fun shrunk(bitmap: Bitmap): Bitmap {
        val scale = minOf(1f, THUMBNAIL / minOf(bitmap.width, bitmap.height).toFloat())
        val (width, height) = listOf(bitmap.width, bitmap.height).map { maxOf(1, (it * scale).toInt()) }
        val made = Bitmap.createScaledBitmap(bitmap, width, height, true)
        if (made !== bitmap) bitmap.recycle()
        return made
    }

    private fun tell(next: MediaState) {
        state = next
        listeners.toList().forEach { it(next) }
    }

    private companion object {
        const val THUMBNAIL = 216 // pixels of the shorter side: 72 dp on most phones
    }
}

package org.pocketphi.bench

import android.app.Activity
import android.app.ActivityManager
import android.content.Context
import android.os.Looper
import org.pocketphi.core.Encoded
import org.pocketphi.core.Encoding
import org.pocketphi.core.EngineError
import org.pocketphi.core.Generated
import org.pocketphi.core.Json
import org.pocketphi.core.LlmEngine
import org.pocketphi.core.Loaded
import org.pocketphi.core.Part
import org.pocketphi.core.Sampling
import org.pocketphi.core.StopReason
import org.pocketphi.core.Takes
import org.junit.rules.ExternalResource
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.shadows.ShadowLog
import java.io.File
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit

/** Stands for the model: writes words, and can be held in the middle of a generation or fail there. */
class ScriptedEngine : LlmEngine {
    @Volatile private var stopAsked = false
    @Volatile var loads = 0
    @Volatile var closes = 0
    @Volatile var prompts = ArrayList<String>()
    val parts = ArrayList<Part>()
    var takes = Takes.TEXT
    val samplings = ArrayList<Sampling>()
    var tokenMs = 1L
    var words = "The boats come home from the sea in the morning light, and the harbour is quiet. ".split(' ')
    var failAt: Pair<Int, EngineError>? = null
    var endOfTurnAfter = Int.MAX_VALUE

    /** Generations from this one on wait at their third token until [release]. */
    var holdFrom = Int.MAX_VALUE
    val held = CountDownLatch(1)
    private val gate = CountDownLatch(1)
    private var generations = 0

    fun release() = gate.countDown()

    /** Loads wait until [release]. */
    var holdLoads = false

    override fun load(): Loaded {
        loads++
        Thread.sleep(20)
        if (holdLoads) check(gate.await(30, TimeUnit.SECONDS)) { "nobody let the engine go on" }
        return Loaded(takes = takes)
    }

    override fun generate(prompt: List<Part>, promptTokens: Int?, newTokens: Int, sampling: Sampling, onPiece: (String) -> Unit): Generated {
        samplings.add(sampling)
        val generation = generations++
        val text = prompt.joinToString("") { part ->
            when (part) {
                is Part.Words -> part.text
                is Part.Picture -> "[picture ${part.width}x${part.height}]"
                is Part.Sound -> "[sound ${part.samples.size}]"
            }
        }
        prompts.add(text)
        parts.addAll(prompt)
        stopAsked = false
        val tokens = text.split(' ').size
        Thread.sleep(tokens / 8L)
        var made = 0
        val limit = minOf(newTokens, endOfTurnAfter)
        while (made < limit && !stopAsked) {
            failAt?.let { if (generation >= it.first && made == 2) throw it.second }
            if (generation >= holdFrom && made == 3) {
                held.countDown()
                check(gate.await(30, TimeUnit.SECONDS)) { "nobody let the engine go on" }
            }
            if (made > 0) Thread.sleep(tokenMs)
            onPiece(words[made++ % words.size] + " ")
        }
        val reason = if (stopAsked) StopReason.STOPPED else if (made < newTokens) StopReason.END_OF_TURN else StopReason.NEW_TOKENS
        return Generated(tokens, made, made, null, null, reason, if (made > 0) words[(made - 1) % words.size] + " " else "")
    }

    /** Runs for each picture and sound. */
    @Volatile var onEncode: () -> Unit = {}

    override fun encode(prompt: List<Part>, onPart: (Encoding) -> Unit): List<Encoded> = prompt.filter { it !is Part.Words }.map {
        onPart(Encoding(it, 0, 2))
        onEncode()
        onPart(Encoding(it, 1, 2))
        Encoded(545, 2, false, 10.0, 40.0)
    }

    override fun stop() {
        stopAsked = true
        release()
    }

    override fun reset() = Unit

    override fun close() {
        closes++
    }
}

val app: BenchApp get() = RuntimeEnvironment.getApplication() as BenchApp

/** What the system says of its memory; Robolectric's says nothing by itself. */
fun systemMemory(free: Long, low: Boolean = false) = shadowOf(app.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager)
    .setMemoryInfo(ActivityManager.MemoryInfo().apply { availMem = free; totalMem = 8_000_000_000; lowMemory = low })

/** A model, its tokenizer and its manifest in the app's folder. */
fun pushModel(name: String = "phi4-mini-8da4w", media: Boolean = false): File {
    app.models.mkdirs()
    File(app.models, "tokenizer.json").writeText("{}")
    File(app.models, "$name.json").writeText(
        "{\"checkpoint\":{\"name\":\"microsoft/Phi-4-mini-instruct\"},\"options\":{\"context\":4096,\"prefill_chunk\":256," +
            "\"kv_cache\":\"bf16\",\"recipe\":{\"quantized\":true,\"group_size\":32,\"embedding_bits\":8,\"head_bits\":4}}," +
            "\"recipe\":\"8da4w g32, embedding int8, lm_head int4\"," +
            (if (media) "\"media\":{\"image\":{\"crop\":448},\"image_id\":1,\"audio\":{\"rate\":16000},\"audio_id\":2}," else "") +
            "\"planned\":{\"kv_cache_bytes\":536870912,\"activation_bytes\":18104320}}",
    )
    return File(app.models, "$name.pte").apply { writeBytes(ByteArray(4_801_440)) }
}

/** Runs what was posted to the main thread until [ready]; fails after 20 s. */
fun waitFor(what: String, ready: () -> Boolean) {
    val end = System.nanoTime() + 20_000_000_000
    while (true) {
        shadowOf(Looper.getMainLooper()).idle()
        if (ready()) return idle()
        check(System.nanoTime() < end) { "waited too long for: $what; the run: ${app.runs.state.copy(result = null)}" }
        Thread.sleep(5)
    }
}

fun idle() = shadowOf(Looper.getMainLooper()).idle()

fun Activity.text(id: Int) = findViewById<android.widget.TextView>(id).text.toString()

fun Activity.type(id: Int, text: String) {
    findViewById<android.widget.TextView>(id).text = text
}

fun Activity.click(id: Int) {
    check(findViewById<android.view.View>(id).performClick())
    idle()
}

/** The progress lines in the system's log so far, of [run] or all. */
fun lines(run: String? = null): List<Map<*, *>> =
    ShadowLog.getLogsForTag(Logcat.TAG).map { Json.read(it.msg) as Map<*, *> }.filter { run == null || it["run"] == run }

/** No run may go on into the next test. */
class NoRunLeft : ExternalResource() {
    override fun after() {
        app.runs.stop()
        waitFor("the run's end") { !app.runs.state.active }
    }
}

/** Where tests leave what a person or another program looks at. */
fun leave(name: String): File = File(File(System.getProperty("pocketphi.out")!!, "left"), name).apply { parentFile!!.mkdirs() }

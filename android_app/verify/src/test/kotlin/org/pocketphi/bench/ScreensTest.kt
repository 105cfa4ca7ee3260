package org.pocketphi.bench

import android.app.Activity
import android.content.Intent
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Color
import android.view.View
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Rule
import org.junit.Test
import org.junit.runner.RunWith
import org.pocketphi.core.Configuration
import org.pocketphi.core.EngineErrors
import org.pocketphi.core.EngineFactory
import org.pocketphi.core.EngineSettings
import org.pocketphi.core.LoadMode
import org.pocketphi.core.Memory
import org.pocketphi.core.Packing
import org.pocketphi.core.Phase
import org.pocketphi.core.Probes
import org.pocketphi.core.Repeat
import org.pocketphi.core.Result
import org.pocketphi.core.Run
import org.pocketphi.core.Sample
import org.pocketphi.core.Sampling
import org.pocketphi.core.Settings
import org.pocketphi.core.StopReason
import org.pocketphi.core.Thermal
import org.pocketphi.core.ThermalStatus
import org.pocketphi.core.known
import org.robolectric.ParameterizedRobolectricTestRunner
import org.robolectric.Robolectric
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode

/** Draws every screen, light and dark, phone and tablet, into `left/screens` for a person to look at. */
@RunWith(ParameterizedRobolectricTestRunner::class)
@Config(sdk = [34])
@GraphicsMode(GraphicsMode.Mode.NATIVE)
class ScreensTest(private val name: String, private val qualifiers: String) {
    @get:Rule val noRunLeft = NoRunLeft()
    private val engine = ScriptedEngine()

    @Before
    fun device() {
        RuntimeEnvironment.setQualifiers(qualifiers)
        app.ownEngine = true
        app.engines = EngineFactory { _, _, _, _ -> engine }
        app.probes = object : Probes {
            override fun memory(walk: Boolean) =
                Memory(2_201_000_000, 2_311_000_000, 96_000_000, 90_000_000, 4_410_000_000, 141_000_000, 141_000_000, 2_170_000_000, 0)
            override fun thermal() = Thermal(ThermalStatus.NONE, 31.4, 80.0, false)
            override fun resetPeakRss() = true
            override fun peakRss() = 2_311_000_000
        }
    }

    @Test
    fun mainWithoutModel() = Robolectric.buildActivity(MainActivity::class.java).use { draw(it.setup().get(), "main-no-model") }

    @Test
    fun mainBeforeAndDuring() {
        pushModel()
        engine.holdFrom = 2
        engine.tokenMs = 58
        app.sampleEveryMs = 20
        Robolectric.buildActivity(MainActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            draw(screen, "main-before")
            screen.type(R.id.prompt_tokens, "64")
            screen.type(R.id.new_tokens, "16")
            screen.type(R.id.warmups, "0")
            screen.type(R.id.cooldown, "0")
            screen.click(R.id.start)
            waitFor("the second repeat") { engine.held.count == 0L && app.runs.state.memory != null && app.runs.state.tokens == 3 }
            draw(screen, "main-during")
        }
    }

    @Test
    fun headless() {
        val model = pushModel()
        engine.holdFrom = 2
        engine.tokenMs = 58
        val intent = Intent().putExtra("run", "a").putExtra("model", model.path).putExtra("tokenizer", "${app.models}/tokenizer.json")
            .putExtra("prompt_tokens", "64").putExtra("new_tokens", 16).putExtra("warmups", 0).putExtra("cooldown_s", 0)
        Robolectric.buildActivity(HeadlessActivity::class.java, intent).use { controller ->
            val screen = controller.setup().get()
            waitFor("the second repeat") { engine.held.count == 0L || app.runs.state.doneRepeats == 1 }
            draw(screen, "headless")
        }
    }

    @Test
    fun mainWithResult() {
        pushModel()
        engine.words = listOf("word")
        Robolectric.buildActivity(MainActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            ResultCards(screen.findViewById(R.id.results)).show(result(64, 17.3, hot = 4))
            screen.findViewById<View>(R.id.open_result).visible(true)
            draw(screen, "main-result")
        }
    }

    @Test
    fun settings() {
        app.ownEngine = true
        java.io.File(app.noBackupFilesDir, "packed").apply { mkdirs() }.resolve("a.packed").outputStream().use { it.channel.position(2_170_000_000 - 1); it.write(0) }
        app.settings.keep(Settings(EngineSettings(4, 8), Sampling(0.7f, 40, 0.95f, 1), "You are a helpful assistant. Answer briefly."))
        Robolectric.buildActivity(SettingsActivity::class.java).use { draw(it.setup().get(), "settings") }
        app.packed.delete()
        app.ownEngine = false
        Robolectric.buildActivity(SettingsActivity::class.java).use { draw(it.setup().get(), "settings-upstream") }
    }

    @Test
    fun mainWithProblem() {
        pushModel()
        Robolectric.buildActivity(MainActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            screen.type(R.id.repeats, "0")
            screen.click(R.id.start)
            draw(screen, "main-problem")
        }
    }

    @Test
    fun historyResultAndComparison() {
        Robolectric.buildActivity(HistoryActivity::class.java).use { draw(it.setup().get(), "history-empty") }
        val old = app.results.write("run-20261119-101500", result(64, 15.1).copy(created = "2026-11-19T10:15:00Z"))
        val new = app.results.write("run-20261121-143000", result(64, 17.3, hot = 4))
        val stopped = "The run was stopped after 5 of 6 repeats."
        app.results.write("run-20261120-090000", result(512, 16.9).copy(created = "2026-11-20T09:00:00Z", problem = stopped))
        Robolectric.buildActivity(HistoryActivity::class.java).use { draw(it.setup().get(), "history") }
        val intent = Intent().putExtra(ResultActivity.FILE, new.path)
        Robolectric.buildActivity(ResultActivity::class.java, intent).use { controller ->
            val screen = controller.setup().get()
            draw(screen, "result")
            ResultCards(screen.findViewById(R.id.list)).apply { clear() }
                .compare(app.results.read(old), app.results.read(new), "run-20261119-101500")
            draw(screen, "compare")
        }
    }

    @Test
    fun chat() {
        pushModel()
        Robolectric.buildActivity(ChatActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            draw(screen, "chat-empty")
            engine.words = "The capital of France is Paris. It lies on the Seine and has about two million people. ".trim().split(' ')
            engine.endOfTurnAfter = engine.words.size
            engine.tokenMs = 5
            screen.type(R.id.question, "What is the capital of France?")
            screen.click(R.id.send)
            waitFor("the answer") { !app.chat.state.busy }
            engine.holdFrom = 0
            screen.type(R.id.question, "And of Italy?")
            screen.click(R.id.send)
            waitFor("the answer's beginning") { app.chat.state.tokens == 3 }
            draw(screen, "chat")
            engine.release()
            waitFor("the answer") { !app.chat.state.busy }
            engine.failAt = 0 to EngineErrors.generating(0x12, null, 1024)
            screen.type(R.id.question, "Tell me all you know of both.")
            screen.click(R.id.send)
            waitFor("the error") { !app.chat.state.busy }
            draw(screen, "chat-forgotten")
        }
    }

    @Test
    fun chatWithMedia() {
        pushModel(media = true)
        engine.takes = org.pocketphi.core.Takes(pictures = true, sound = true, soundRate = 16_000)
        Robolectric.buildActivity(MainActivity::class.java).use { draw(it.setup().get(), "main-multimodal") }
        Robolectric.buildActivity(ChatActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            attach(420, 280)
            engine.words = "A red sun over a blue sea. It is evening, and the water is calm. ".trim().split(' ')
            engine.endOfTurnAfter = engine.words.size
            screen.type(R.id.question, "What is shown?")
            screen.click(R.id.send)
            waitFor("the answer") { !app.chat.state.busy }
            attach(200, 400)
            setMicrophone(Microphone(pieces = 42))
            shadowOf(app as android.app.Application).grantPermissions(android.Manifest.permission.RECORD_AUDIO)
            screen.record()
            waitFor("some sound") { app.media.state.recorded == 42 * 1600 }
            draw(screen, "chat-recording")
            screen.click(R.id.recorder_stop)
            waitFor("the recording's end") { app.media.state.recorded == null }
            screen.type(R.id.question, "And is that what I said?")
            draw(screen, "chat-media")
        }
    }

    /** A painted picture, as if a person had chosen it. */
    private fun attach(width: Int, height: Int) {
        val painted = Bitmap.createBitmap(width, height, Bitmap.Config.ARGB_8888)
        Canvas(painted).apply {
            drawColor(Color.rgb(250, 214, 165))
            val paint = android.graphics.Paint(android.graphics.Paint.ANTI_ALIAS_FLAG)
            drawCircle(width * 0.6f, height * 0.5f, height * 0.2f, paint.apply { color = Color.rgb(214, 64, 48) })
            drawRect(0f, height * 0.6f, width.toFloat(), height.toFloat(), paint.apply { color = Color.rgb(38, 84, 124) })
        }
        val bytes = java.io.ByteArrayOutputStream().also { painted.compress(Bitmap.CompressFormat.PNG, 100, it) }.toByteArray()
        app.media.read { java.io.ByteArrayInputStream(bytes) }
        waitFor("the picture") { app.media.state.reading == 0 }
    }

    private fun draw(screen: Activity, what: String) {
        idle()
        val view = screen.window.decorView
        val bitmap = Bitmap.createBitmap(view.width, view.height, Bitmap.Config.ARGB_8888)
        view.draw(Canvas(bitmap))
        leave("screens/$what-$name.png").outputStream().use { bitmap.compress(Bitmap.CompressFormat.PNG, 100, it) }
        checkColours(bitmap)
        checkNothingIsCutOff(view)
    }

    /** A picture of one colour would mean that nothing was drawn. */
    private fun checkColours(bitmap: Bitmap) {
        val seen = HashSet<Int>()
        for (y in 0 until bitmap.height step 3) for (x in 0 until bitmap.width step 3) seen.add(bitmap.getPixel(x, y))
        assertTrue("${seen.size} colours", seen.size > 20)
        val corner = bitmap.getPixel(1, bitmap.height - 2)
        val dark = Color.luminance(corner) < 0.2
        assertTrue("the background of $name is ${Integer.toHexString(corner)}", dark == name.endsWith("dark"))
    }

    private fun checkNothingIsCutOff(view: View) {
        if (view is android.view.ViewGroup) for (index in 0 until view.childCount) checkNothingIsCutOff(view.getChildAt(index))
        if (view !is android.widget.TextView || !view.isShown || view.layout == null) return
        val wide = (0 until view.layout.lineCount).maxOfOrNull { view.layout.getLineWidth(it) } ?: 0f
        val room = view.width - view.compoundPaddingLeft - view.compoundPaddingRight
        assertTrue("\"${view.text}\" is $wide wide, but has $room", wide <= room + 1 || view.layout.getEllipsisCount(0) > 0)
    }

    companion object {
        private const val PHONE = "w411dp-h891dp-port-xhdpi"
        private const val TABLET = "w1280dp-h800dp-land-mdpi"

        @JvmStatic
        @ParameterizedRobolectricTestRunner.Parameters(name = "{0}")
        fun devices() = listOf(
            arrayOf("phone-light", "$PHONE-notnight".order()), arrayOf("phone-dark", "$PHONE-night".order()),
            arrayOf("tablet-light", "$TABLET-notnight".order()), arrayOf("tablet-dark", "$TABLET-night".order()),
        )

        // Qualifiers have one order: the night mode stands before the density.
        private fun String.order(): String {
            val parts = split('-')
            return (parts.dropLast(2) + parts.last() + parts[parts.size - 2]).joinToString("-")
        }

        /** Invented numbers of an invented phone. */
        fun result(promptTokens: Int, rate: Double, hot: Int = -1): Result {
            val repeats = List(5) { index ->
                val decode = rate - listOf(0.0, 0.4, 0.2, 0.9, 2.6)[index]
                val firstMs = promptTokens / 0.117
                val samples = List(12) { step ->
                    val phase = if (step < 3) Phase.PREFILL else Phase.DECODE
                    Sample(step * 650.0, phase, Memory(2_201_000_000, null, null, null, 4_400_000_000, (38 + 9L * step - 4L * (index % 2)) * 1_000_000))
                }
                val thermal = Thermal(if (index == hot) ThermalStatus.MODERATE else ThermalStatus.NONE, 31.2 + index * 1.6, 76.0, false)
                Repeat(
                    known(
                        "load_ms" to if (index == 0) 1_130.0 else null, "time_to_first_token_ms" to firstMs,
                        "prefill_tokens_per_s" to 117.0, "decode_tokens_per_s" to decode,
                    ),
                    promptTokens, 128, List(127) { 1000 / decode + it % 5 }, samples, samples.fold(Memory.UNKNOWN) { worst, one -> worst.worst(one.memory) }
                        .copy(rss = 2_311_000_000), thermal, thermal, if (index == 3) 1 else 0, StopReason.NEW_TOKENS, emptyList(),
                    if (index == 0) Packing.WARM else null,
                )
            }
            return Result(
                "2026-11-21T14:30:00Z", null, app.surroundings().device.copy(model = "Invented phone"), app.surroundings().build,
                org.pocketphi.core.Model(
                    "phi4-mini-8da4w.pte", 2_776_258_976, null, "tokenizer.json",
                    org.pocketphi.core.Manifest("phi", "8da4w g32, embedding int8, lm_head int4", 4096, 256, "bf16", 554_975_232),
                ),
                listOf(Run(Configuration(promptTokens, 128, 5, 1, 10, LoadMode.ONCE), repeats)),
            )
        }
    }
}

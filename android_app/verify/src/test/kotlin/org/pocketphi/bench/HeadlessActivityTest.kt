package org.pocketphi.bench

import android.content.Intent
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Rule
import org.junit.Test
import org.junit.runner.RunWith
import org.pocketphi.core.EngineErrors
import org.pocketphi.core.EngineFactory
import org.pocketphi.core.Json
import org.pocketphi.core.StopReason
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.annotation.Config
import org.robolectric.shadows.ShadowProcess
import java.io.File

/** docs/app_protocol.md, as a program on the other end of adb sees it. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [34])
class HeadlessActivityTest {
    @get:Rule val noRunLeft = NoRunLeft()
    private val engine = ScriptedEngine()
    private lateinit var model: File

    @Before
    fun engine() {
        app.engines = EngineFactory { _, _, _, _ -> engine }
        app.sampleEveryMs = 20
        systemMemory(free = 4_000_000_000)
        model = pushModel()
    }

    private fun intent(run: String?, change: Intent.() -> Unit = {}) = Intent(Intent.ACTION_MAIN)
        .putExtra("run", run)
        .putExtra("model", model.path)
        .putExtra("tokenizer", File(app.models, "tokenizer.json").path)
        .putExtra("prompt_tokens", "16,40")
        .putExtra("new_tokens", 12)
        .putExtra("repeats", 2)
        .putExtra("warmups", 1)
        .putExtra("cooldown_s", 0)
        .apply(change)

    private fun start(intent: Intent) = Robolectric.buildActivity(HeadlessActivity::class.java, intent).setup()

    @Test
    fun endToEnd() {
        engine.tokenMs = 5
        ShadowProcess.setPid(4711)
        val controller = start(intent("run-7") { putExtra("model_sha256", "ab".repeat(32)) })
        waitFor("the run's end") { !app.runs.state.active && controller.get().isFinishing }
        val lines = lines()
        assertTrue(lines.all { it["run"] == "run-7" })
        val events = lines.map { it["event"] }.filter { it != "memory" }
        val run = listOf("warmup", "repeat", "repeat")
        assertEquals(listOf("started", "loading", "loaded") + run + run + "done", events)
        assertTrue(lines.any { it["event"] == "memory" })
        val keys = setOf("run", "event", "private_bytes", "available_bytes", "phase")
        assertTrue(lines.filter { it["event"] == "memory" }.all { it.keys == keys })
        assertEquals("0.1.0", lines[0]["app_version"])
        assertEquals(4711L, lines[0]["pid"])
        val repeats = lines.filter { it["event"] == "repeat" }.map { it["configuration"] to it["repeat"] }
        assertEquals(listOf(0L to 0L, 0L to 1L, 1L to 0L, 1L to 1L), repeats)
        val file = File(lines.last()["file"] as String)
        assertEquals("run-7.json", file.name)
        assertEquals("results", file.parentFile!!.name)
        assertEquals(setOf("run-7.json", "run-7.progress.jsonl"), file.parentFile!!.list()!!.toSet())
        // For phones that keep no log: the same lines.
        assertEquals(lines, File(file.parentFile, "run-7.progress.jsonl").readLines().map { Json.read(it) })
        val result = app.results.read(file)
        assertTrue(result.complete)
        assertEquals(listOf(16, 40), result.runs.map { it.configuration.promptTokens })
        assertEquals("ab".repeat(32), result.model.sha256)
        assertEquals(4096, result.model.manifest!!.contextTokens)
        file.copyTo(leave("headless.json"), overwrite = true)
        leave("headless.lines").writeText(lines.joinToString("\n", postfix = "\n") { org.pocketphi.core.Json.write(it) })
    }

    @Test
    fun promptsAndLoadingEachTime() {
        val prompt = File(app.models, "p.txt").apply { writeText("one two three four") }
        start(
            intent("each") {
                putExtra("prompt_tokens", "4").putExtra("prompt_files", prompt.path).putExtra("load_mode", "each").putExtra("warmups", 0)
            },
        )
        waitFor("the run's end") { !app.runs.state.active }
        assertEquals(listOf("one two three four", "one two three four"), engine.prompts)
        assertEquals(2, engine.loads)
        val result = app.results.read(app.results.file("each"))
        assertTrue(result.runs.single().repeats.all { it.loadMs!! >= 20 })
        app.results.file("each").copyTo(leave("each.json"), overwrite = true)
    }

    @Test
    fun aSecondStartLeavesTheFirstAlone() {
        engine.holdFrom = 3
        val controller = start(intent("first"))
        waitFor("the first repeat") { engine.held.count == 0L }
        controller.newIntent(intent("second"))
        idle()
        assertEquals(
            mapOf("run" to "second", "event" to "error", "message" to "The run first is still under way; only one runs at a time."),
            lines().last { it["run"] == "second" },
        )
        assertFalse(controller.get().isFinishing)
        val other = start(intent("third"))
        assertEquals("error", lines().last { it["run"] == "third" }["event"])
        other.pause().stop()
        engine.release()
        waitFor("the run's end") { !app.runs.state.active }
        assertTrue(app.results.read(app.results.file("first")).complete)
        assertFalse(app.results.file("second").exists())
        assertEquals("done", lines().last { it["run"] == "first" }["event"])
    }

    @Test
    fun rotation() {
        engine.holdFrom = 2
        val controller = start(intent("turned"))
        waitFor("the first repeat") { engine.held.count == 0L }
        val before = controller.get()
        controller.recreate()
        assertTrue(before !== controller.get())
        assertEquals("Repeat 1 of 2 · 16 → 12 tokens", controller.get().text(R.id.live_stage))
        engine.release()
        waitFor("the run's end") { !app.runs.state.active && controller.get().isFinishing }
        assertEquals(1, lines().count { it["event"] == "started" })
        assertTrue(app.results.read(app.results.file("turned")).complete)
        assertFalse(lines().any { it["event"] == "error" })
    }

    @Test
    fun anEngineErrorIsALineAndAnIncompleteResult() {
        engine.failAt = 3 to EngineErrors.generating(0x12, 16, 12)
        start(intent("broken"))
        waitFor("the run's end") { !app.runs.state.active }
        val message = lines().last()["message"] as String
        assertEquals("error", lines().last()["event"])
        assertTrue(message, "does not fit the model's context" in message)
        val result = app.results.read(app.results.file("broken"))
        assertEquals(message, result.problem)
        assertEquals(listOf(StopReason.NEW_TOKENS, StopReason.ERROR), result.runs[0].repeats.map { it.stopReason })
        app.results.file("broken").copyTo(leave("broken.json"), overwrite = true)
    }

    @Test
    fun wrongExtrasAreErrorLines() {
        val wrong = mapOf<String, Intent.() -> Unit>(
            "new_tokens is \"0\"; it wants a whole number from 1 to 131072." to { putExtra("new_tokens", 0) },
            "new_tokens is \"many\"; it wants a whole number from 1 to 131072." to { putExtra("new_tokens", "many") },
            "load_mode is \"never\", but only \"once\" and \"each\" exist." to { putExtra("load_mode", "never") },
            "The extra \"model\" is missing: it names a file on the device." to { removeExtra("model") },
        )
        for ((message, change) in wrong) {
            val controller = start(intent("wrong", change))
            assertEquals(mapOf("run" to "wrong", "event" to "error", "message" to message), lines().last())
            assertTrue(controller.get().isFinishing)
        }
        start(intent("Not A Name"))
        assertEquals("Not A Name", lines().last()["run"])
        assertTrue((lines().last()["message"] as String).startsWith("The run's name is \"Not A Name\""))
        start(intent(null))
        assertEquals("", lines().last()["run"])
        assertNull(app.runs.state.request)
    }

    @Test
    fun aModelThatIsNotThere() {
        start(intent("gone") { putExtra("model", "/data/local/tmp/pocketphi/none.pte") })
        waitFor("the run's end") { !app.runs.state.active }
        val wanted = "The model /data/local/tmp/pocketphi/none.pte is not on this device, or apps may not see it."
        assertEquals(wanted, lines().last()["message"])
        assertEquals(0, engine.loads)
    }

    @Test
    fun aProcessThatWasKilled() {
        val state = android.os.Bundle()
        Robolectric.buildActivity(HeadlessActivity::class.java, intent("killed")).create(state)
        assertEquals("killed", lines().last()["run"])
        assertEquals("The system ended the app while the run was under way; finished repeats are kept.", lines().last()["message"])
        assertEquals(lines(), File(app.results.folder, "killed.progress.jsonl").readLines().map { Json.read(it) })
    }
}

package org.pocketphi.bench

import android.content.pm.ActivityInfo
import android.view.View
import android.view.WindowManager
import android.widget.CheckBox
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNotEquals
import org.junit.Assert.assertSame
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Rule
import org.junit.Test
import org.junit.runner.RunWith
import org.pocketphi.core.EngineErrors
import org.pocketphi.core.EngineFactory
import org.pocketphi.core.StopReason
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.shadows.ShadowAlertDialog

@RunWith(RobolectricTestRunner::class)
@Config(sdk = [34])
class MainActivityTest {
    @get:Rule val noRunLeft = NoRunLeft()
    private val engine = ScriptedEngine()

    @Before
    fun engine() {
        app.engines = EngineFactory { _, _, _, _ -> engine }
        app.sampleEveryMs = 50
        systemMemory(free = 4_000_000_000)
    }

    private fun MainActivity.fill(repeats: Int = 2) {
        type(R.id.prompt_tokens, "16")
        type(R.id.new_tokens, "12")
        type(R.id.repeats, repeats.toString())
        type(R.id.warmups, "0")
        type(R.id.cooldown, "0")
    }

    private fun MainActivity.screenStaysOn() = window.attributes.flags and WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON != 0

    @Test
    fun withoutAModelItSaysWhereToPushOne() {
        Robolectric.buildActivity(MainActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            assertEquals(View.VISIBLE, screen.findViewById<View>(R.id.no_model).visibility)
            assertTrue(screen.text(R.id.no_model_commands).contains("adb push phi4-mini.pte tokenizer.json /data/local/tmp/pocketphi/"))
            screen.click(R.id.start)
            assertEquals("No model on this phone yet.", screen.text(R.id.problem))
            pushModel()
            screen.click(R.id.look_again)
            assertEquals(View.GONE, screen.findViewById<View>(R.id.no_model).visibility)
            assertEquals("phi4-mini-8da4w.pte", screen.text(R.id.model))
            assertEquals("4.8 MB · 8da4w g32, embedding int8, lm_head int4 · 4096 tokens", screen.text(R.id.model_facts))
            assertEquals("tokenizer.json", screen.text(R.id.tokenizer))
        }
    }

    @Test
    fun aWholeRun() {
        pushModel()
        Robolectric.buildActivity(MainActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            screen.fill()
            engine.holdFrom = 1
            screen.click(R.id.start)
            waitFor("the first repeat") { engine.held.count == 0L }
            assertTrue(screen.screenStaysOn())
            assertFalse(screen.findViewById<View>(R.id.start).isEnabled)
            engine.release()
            waitFor("the run's end") { !app.runs.state.active }
            assertFalse(screen.screenStaysOn())
            assertEquals(View.GONE, screen.findViewById<View>(R.id.live).visibility)
            assertEquals("", screen.text(R.id.problem))
            assertTrue(screen.findViewById<android.widget.LinearLayout>(R.id.results).childCount >= 2)
            val saved = app.results.list().single()
            screen.click(R.id.open_result)
            assertEquals(saved.file.path, shadowOf(screen).nextStartedActivity.getStringExtra(ResultActivity.FILE))
            assertTrue(saved.result.complete)
            val run = saved.result.runs.single()
            assertEquals(2, run.repeats.size)
            assertTrue(run.repeats.all { it.stopReason == StopReason.NEW_TOKENS && it.generatedTokens == 12 && it.tokenMs.size == 11 })
            assertTrue(run.repeats.all { it.peak.rss!! > 0 && it.peak.available != null })
            assertEquals(1, engine.loads)
            assertEquals(1, engine.closes)
            assertEquals("org.pocketphi.bench", saved.result.build.app)
            assertEquals("1.5.1", saved.result.build.executorch)
        }
    }

    @Test
    fun rotationInTheMiddle() {
        pushModel()
        engine.holdFrom = 1
        Robolectric.buildActivity(MainActivity::class.java).use { controller ->
            val before = controller.setup().get()
            before.fill()
            before.type(R.id.prompt_tokens, "24")
            before.findViewById<CheckBox>(R.id.load_each).isChecked = true
            before.click(R.id.start)
            waitFor("the third token") { engine.held.count == 0L && app.runs.state.tokens == 3 }
            assertEquals(ActivityInfo.SCREEN_ORIENTATION_UNSPECIFIED, before.requestedOrientation)
            RuntimeEnvironment.setQualifiers("+land")
            controller.configurationChange(before.resources.configuration.apply { orientation = 2 })
            val after = controller.get()
            assertNotEquals(System.identityHashCode(before), System.identityHashCode(after))
            assertTrue(before.isDestroyed)
            assertTrue(after.screenStaysOn())
            assertEquals(View.VISIBLE, after.findViewById<View>(R.id.live).visibility)
            assertEquals("Repeat 1 of 2 · 24 → 12 tokens", after.text(R.id.live_stage))
            assertEquals("The boats come ", after.text(R.id.live_text))
            assertEquals("24", after.text(R.id.prompt_tokens))
            engine.release()
            waitFor("the run's end") { !app.runs.state.active }
            val saved = app.results.list().single().result
            assertTrue(saved.complete)
            assertEquals(emptyList<String>(), saved.runs.single().repeats.flatMap { it.notes })
            assertTrue(after.findViewById<android.widget.LinearLayout>(R.id.results).childCount >= 2)
        }
    }

    @Test
    fun anErrorInTheMiddle() {
        pushModel()
        engine.failAt = 2 to EngineErrors.generating(0x21, 16, 12)
        Robolectric.buildActivity(MainActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            screen.fill(repeats = 3)
            screen.click(R.id.start)
            waitFor("the run's end") { !app.runs.state.active }
            val wanted = "The model stopped with an error (16 prompt and 12 new tokens were asked for): there is not enough memory (code 0x21)."
            assertEquals(wanted, screen.text(R.id.problem))
            assertEquals(View.VISIBLE, screen.findViewById<View>(R.id.problem).visibility)
            val saved = app.results.list().single().result
            assertEquals(wanted, saved.problem)
            assertEquals(listOf(StopReason.NEW_TOKENS, StopReason.ERROR), saved.runs.single().repeats.map { it.stopReason })
            assertEquals(1, engine.closes)
        }
    }

    @Test
    fun stopping() {
        pushModel()
        engine.holdFrom = 2
        Robolectric.buildActivity(MainActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            screen.fill(repeats = 3)
            screen.click(R.id.start)
            waitFor("the second repeat") { engine.held.count == 0L }
            screen.click(R.id.stop)
            waitFor("the run's end") { !app.runs.state.active }
            assertEquals("The run was stopped after 1 of 3 repeats.", screen.text(R.id.problem))
            assertEquals(1, app.results.list().single().result.runs.single().repeats.size)
        }
    }

    @Test
    fun lowMemoryAndTheBackground() {
        pushModel()
        engine.holdFrom = 1
        Robolectric.buildActivity(MainActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            screen.fill()
            screen.click(R.id.start)
            waitFor("the third token") { engine.held.count == 0L }
            app.onTrimMemory(15)
            app.onTrimMemory(20)
            app.onLowMemory()
            controller.pause().stop()
            engine.release()
            waitFor("the run's end") { !app.runs.state.active }
            controller.start().resume()
            idle()
            val (first, second) = app.results.list().single().result.runs.single().repeats
            assertEquals(2, first.lowMemoryEvents)
            assertEquals(listOf("The app went to the background, where the system may slow or stop it."), first.notes)
            assertEquals(0, second.lowMemoryEvents)
            assertEquals(listOf("running_critical", "low_memory"), lines().filter { it["event"] == "low_memory" }.map { it["level"] })
            assertTrue(screen.findViewById<android.widget.LinearLayout>(R.id.results).childCount >= 2)
        }
    }

    @Test
    fun onlyOneRunAtATime() {
        pushModel()
        engine.holdFrom = 0
        Robolectric.buildActivity(MainActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            screen.fill()
            screen.click(R.id.start)
            waitFor("the engine") { engine.held.count == 0L || engine.loads == 1 }
            val before = app.runs.state.request
            screen.findViewById<View>(R.id.start).isEnabled = true
            screen.click(R.id.start)
            assertTrue(screen.text(R.id.problem).endsWith("is still under way; only one runs at a time."))
            assertSame(before, app.runs.state.request)
            screen.click(R.id.stop)
            waitFor("the run's end") { !app.runs.state.active }
        }
    }

    @Test
    fun tooLittleMemoryIsAskedAbout() {
        pushModel()
        systemMemory(free = 100_000_000)
        Robolectric.buildActivity(MainActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            screen.fill()
            screen.click(R.id.start)
            assertFalse(app.runs.state.active)
            val dialog = ShadowAlertDialog.getLatestAlertDialog()
            assertTrue(shadowOf(dialog).message.toString(), "are free: close apps." in shadowOf(dialog).message)
            dialog.getButton(android.app.AlertDialog.BUTTON_POSITIVE).performClick()
            idle()
            waitFor("the run's end") { !app.runs.state.active && app.runs.state.result != null }
            assertTrue(app.results.list().single().result.complete)
        }
    }

    @Test
    fun wrongFieldsAreSentences() {
        pushModel()
        Robolectric.buildActivity(MainActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            screen.type(R.id.repeats, "0")
            screen.click(R.id.start)
            assertEquals("repeats is \"0\"; it wants a whole number from 1 to 1000.", screen.text(R.id.problem))
            assertFalse(app.runs.state.active)
        }
    }

    @Test
    fun theOtherScreensOpen() {
        Robolectric.buildActivity(MainActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            screen.click(R.id.action_one)
            assertEquals(ChatActivity::class.java.name, shadowOf(screen).nextStartedActivity.component!!.className)
            screen.click(R.id.action_two)
            assertEquals(HistoryActivity::class.java.name, shadowOf(screen).nextStartedActivity.component!!.className)
        }
    }
}

package org.pocketphi.bench

import android.content.Intent
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.runner.RunWith
import org.pocketphi.core.EngineFactory
import org.pocketphi.core.ThermalStatus
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.annotation.Config
import java.io.File

/** The classes of Android 8 lack what later ones have: a call to any of it ends these tests. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [26])
class OldestPhoneTest {
    @get:Rule val noRunLeft = NoRunLeft()
    private val engine = ScriptedEngine()

    @Test
    fun everyScreen() {
        app.engines = EngineFactory { _, _, _, _ -> engine }
        val model = pushModel()
        Robolectric.buildActivity(MainActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            screen.type(R.id.prompt_tokens, "16")
            screen.type(R.id.cooldown, "0")
            screen.click(R.id.start)
            waitFor("the run's end") { !app.runs.state.active }
            assertEquals("", screen.text(R.id.problem))
        }
        val saved = app.results.list().single()
        assertEquals(ThermalStatus.UNKNOWN, saved.result.runs.single().repeats[0].after.status)
        assertEquals("8.0.0", saved.result.device.osVersion)
        Robolectric.buildActivity(HistoryActivity::class.java).use { it.setup() }
        Robolectric.buildActivity(SettingsActivity::class.java).use { it.setup() }
        Robolectric.buildActivity(ResultActivity::class.java, Intent().putExtra(ResultActivity.FILE, saved.file.path)).use { controller ->
            controller.setup().get().click(R.id.action_two)
        }
        Robolectric.buildActivity(ChatActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            engine.endOfTurnAfter = 5
            screen.type(R.id.question, "Hello")
            screen.click(R.id.send)
            waitFor("the answer") { !app.chat.state.busy }
            assertTrue(app.chat.state.messages.last().content.startsWith("The boats"))
        }
        val intent = Intent().putExtra("run", "old").putExtra("model", model.path).putExtra("tokenizer", File(app.models, "tokenizer.json").path)
            .putExtra("prompt_tokens", "16").putExtra("cooldown_s", 0).putExtra("repeats", 1)
        Robolectric.buildActivity(HeadlessActivity::class.java, intent).setup()
        waitFor("the run's end") { !app.runs.state.active }
        assertTrue(app.results.read(app.results.file("old")).complete)
    }
}

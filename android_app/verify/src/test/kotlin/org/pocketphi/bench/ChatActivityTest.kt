package org.pocketphi.bench

import android.view.View
import android.widget.LinearLayout
import android.widget.TextView
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Rule
import org.junit.Test
import org.junit.runner.RunWith
import org.pocketphi.core.EngineErrors
import org.pocketphi.core.EngineFactory
import org.pocketphi.core.EngineSettings
import org.pocketphi.core.Sampling
import org.pocketphi.core.Settings
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.annotation.Config

@RunWith(RobolectricTestRunner::class)
@Config(sdk = [34])
class ChatActivityTest {
    @get:Rule val noRunLeft = NoRunLeft()
    private val engine = ScriptedEngine().apply { endOfTurnAfter = 4 }

    @Before
    fun engine() {
        app.engines = EngineFactory { _, _, _, _ -> engine }
    }

    private fun ChatActivity.bubbles() = findViewById<LinearLayout>(R.id.turns)
        .let { turns -> (0 until turns.childCount).map { (turns.getChildAt(it).findViewById<TextView>(R.id.bubble) ?: turns.getChildAt(it) as TextView).text.toString() } }

    private fun ChatActivity.ask(text: String) {
        type(R.id.question, text)
        click(R.id.send)
    }

    @Test
    fun twoTurnsStreamAndStayAfterRotation() {
        pushModel()
        Robolectric.buildActivity(ChatActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            assertEquals("Nothing leaves the phone: the model runs here.", screen.text(R.id.chat_state))
            screen.ask("Hello")
            waitFor("the answer") { !app.chat.state.busy }
            assertEquals(listOf("Hello", "The boats come home "), screen.bubbles())
            engine.holdFrom = 1
            screen.ask("More")
            waitFor("the third token") { app.chat.state.tokens == 3 }
            assertEquals(listOf("Hello", "The boats come home ", "More", "The boats come "), screen.bubbles())
            assertEquals("Stop", screen.findViewById<View>(R.id.send).contentDescription)
            controller.recreate()
            val turned = controller.get()
            assertEquals(listOf("Hello", "The boats come home ", "More", "The boats come "), turned.bubbles())
            turned.click(R.id.send)
            waitFor("the stop") { !app.chat.state.busy }
            assertEquals("<|user|>Hello<|end|><|assistant|>", engine.prompts[0])
            assertEquals("<|end|><|user|>More<|end|><|assistant|>", engine.prompts[1])
            assertEquals(1, engine.loads)
            assertTrue(turned.text(R.id.chat_state), turned.text(R.id.chat_state).contains("tokens, "))
            turned.click(R.id.action_one)
            assertEquals(emptyList<String>(), turned.bubbles())
        }
    }

    @Test
    fun aStopWhileLoadingCounts() {
        pushModel()
        engine.holdLoads = true
        Robolectric.buildActivity(ChatActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            screen.ask("Hello")
            waitFor("the load") { engine.loads == 1 }
            screen.click(R.id.send)
            waitFor("the stop") { !app.chat.state.busy }
            assertEquals("nothing was asked of it", emptyList<String>(), engine.prompts)
            assertEquals(listOf("Hello"), screen.bubbles())
            assertEquals("", screen.text(R.id.problem))
            assertEquals(1, engine.closes)
        }
    }

    @Test
    fun settingsHoldForTheConversation() {
        pushModel()
        app.settings.keep(Settings(EngineSettings(threads = 2), Sampling(0.5f, seed = 3), "Be brief."))
        val given = ArrayList<EngineSettings>()
        app.engines = EngineFactory { _, _, _, settings -> engine.also { given.add(settings) } }
        Robolectric.buildActivity(ChatActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            screen.ask("Hello")
            waitFor("the answer") { !app.chat.state.busy }
            assertEquals("<|system|>Be brief.<|end|><|user|>Hello<|end|><|assistant|>", engine.prompts.single())
            assertEquals(listOf(Sampling(0.5f, seed = 3)), engine.samplings)
            app.settings.keep(Settings(EngineSettings(threads = 4)))
            screen.ask("More")
            waitFor("the answer") { !app.chat.state.busy }
            assertEquals("other threads want another load", listOf(2, 4), given.map { it.threads })
            assertEquals(Sampling(), engine.samplings.last())
        }
    }

    @Test
    fun tooLittleMemoryIsSaidAndTried() {
        pushModel()
        systemMemory(free = 100_000_000)
        Robolectric.buildActivity(ChatActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            screen.ask("Hello")
            waitFor("the answer") { !app.chat.state.busy }
            val wanted = "phi4-mini-8da4w.pte needs 559.8 MB of memory (4.8 MB of weights, 555.0 MB planned), 100.0 MB are free: close apps."
            assertEquals(wanted, screen.text(R.id.problem))
            assertEquals(2, screen.bubbles().size)
        }
    }

    @Test
    fun withoutModel() {
        Robolectric.buildActivity(ChatActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            screen.ask("Hello")
            assertEquals("Choose a model on the first screen.", screen.text(R.id.problem))
            assertEquals("Hello", screen.text(R.id.question))
        }
    }

    @Test
    fun anErrorIsASentenceAndTheNextQuestionLoadsAgain() {
        pushModel()
        engine.failAt = 0 to EngineErrors.generating(0x12, null, 1024)
        Robolectric.buildActivity(ChatActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            screen.ask("Hello")
            waitFor("the error") { !app.chat.state.busy }
            assertTrue(screen.text(R.id.problem).startsWith("The prompt does not fit the model's context"))
            assertEquals(1, engine.closes)
            engine.failAt = null
            screen.ask("Again")
            waitFor("the answer") { !app.chat.state.busy }
            assertEquals(2, engine.loads)
            assertEquals("", screen.text(R.id.problem))
        }
    }

    /** By an error, or since other settings want another load: what the screen still shows, the model does not know. */
    @Test
    fun whatTheModelHasForgottenIsSaid() {
        pushModel()
        val line = "The conversation begins anew: the model has forgotten what stands above."
        val answer = "The boats come home "
        Robolectric.buildActivity(ChatActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            screen.ask("Hello")
            waitFor("the answer") { !app.chat.state.busy }
            engine.failAt = 0 to EngineErrors.generating(0x12, null, 1024)
            screen.ask("Long")
            waitFor("the error") { !app.chat.state.busy }
            assertEquals(listOf("Hello", answer, "Long", line), screen.bubbles())
            engine.failAt = null
            screen.ask("Again")
            waitFor("the answer") { !app.chat.state.busy }
            assertEquals("<|user|>Again<|end|><|assistant|>", engine.prompts.last())
            assertEquals(listOf("Hello", answer, "Long", line, "Again", answer), screen.bubbles())
            app.settings.keep(Settings(EngineSettings(threads = 4)))
            screen.ask("More")
            waitFor("the answer") { !app.chat.state.busy }
            val anew = listOf("Hello", answer, "Long", "Again", answer, line, "More", answer)
            assertEquals(anew, screen.bubbles())
            controller.recreate()
            assertEquals(anew, controller.get().bubbles())
            controller.get().click(R.id.action_one)
            assertEquals(emptyList<String>(), controller.get().bubbles())
        }
    }

    @Test
    fun aMeasurementTakesTheMemoryBack() {
        pushModel()
        Robolectric.buildActivity(ChatActivity::class.java).use { chat ->
            val talking = chat.setup().get()
            talking.ask("Hello")
            waitFor("the answer") { !app.chat.state.busy }
            Robolectric.buildActivity(MainActivity::class.java).use { main ->
                val screen = main.setup().get()
                engine.holdFrom = 1
                screen.click(R.id.start)
                waitFor("the chat's engine to be closed") { engine.closes == 1 }
                talking.ask("And now?")
                assertEquals("A measurement is under way; chat when it has ended.", talking.text(R.id.problem))
                screen.click(R.id.stop)
                waitFor("the run's end") { !app.runs.state.active }
            }
        }
    }
}

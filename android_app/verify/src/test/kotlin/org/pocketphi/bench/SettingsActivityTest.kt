package org.pocketphi.bench

import android.view.View
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.pocketphi.core.EngineSettings
import org.pocketphi.core.Sampling
import org.pocketphi.core.Settings
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.annotation.Config
import java.io.File

@RunWith(RobolectricTestRunner::class)
@Config(sdk = [34])
class SettingsActivityTest {
    private fun open(test: (SettingsActivity) -> Unit) = Robolectric.buildActivity(SettingsActivity::class.java).use { test(it.setup().get()) }

    @Test
    fun whatIsSavedIsKept() {
        app.ownEngine = true
        open { screen ->
            assertEquals("0.0", screen.text(R.id.temperature))
            screen.type(R.id.temperature, "0.7")
            screen.type(R.id.top_p, "2")
            screen.click(R.id.save)
            assertEquals("top_p is \"2\"; it wants a number from 0 to 1.", screen.text(R.id.problem))
            assertFalse(screen.isFinishing)
            screen.type(R.id.top_p, "0.9")
            screen.type(R.id.threads, "4")
            screen.type(R.id.system, "Be brief.")
            screen.click(R.id.save)
            assertTrue(screen.isFinishing)
        }
        val wanted = Settings(EngineSettings(4, 0), Sampling(0.7f, 0, 0.9f, 0), "Be brief.")
        assertEquals(wanted, app.settings.current)
        assertEquals("after a start", wanted, SettingsStore(app).current)
    }

    @Test
    fun packedWeightsAreDeleted() {
        app.ownEngine = true
        val folder = File(app.noBackupFilesDir, "packed").apply { mkdirs() }
        File(folder, "a.packed").writeBytes(ByteArray(3_000_000))
        open { screen ->
            assertEquals("Packed weights: 3.0 MB", screen.text(R.id.packed))
            screen.click(R.id.delete_packed)
            assertEquals("No packed weights are kept.", screen.text(R.id.packed))
            assertEquals(View.GONE, screen.findViewById<View>(R.id.delete_packed).visibility)
        }
        assertEquals(emptyList<File>(), folder.listFiles()!!.toList())
    }

    @Test
    fun withoutOurEngineItSaysWhatHasNoEffect() = open { screen ->
        assertEquals("ExecuTorch's LlmModule", screen.text(R.id.engine))
        assertFalse(screen.findViewById<View>(R.id.threads).isEnabled)
        assertTrue(screen.findViewById<View>(R.id.temperature).isEnabled)
        assertEquals("LlmModule", app.surroundings().build.engine)
        app.ownEngine = true
        assertEquals("pocketphi", app.surroundings().build.engine)
        assertEquals(File(app.noBackupFilesDir, "packed"), app.surroundings().packed!!.folder)
    }
}

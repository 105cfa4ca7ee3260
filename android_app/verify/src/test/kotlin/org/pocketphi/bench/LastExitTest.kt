package org.pocketphi.bench

import android.app.ActivityManager
import android.app.ApplicationExitInfo
import android.content.Context
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.shadows.ShadowActivityManager

@RunWith(RobolectricTestRunner::class)
@Config(sdk = [34])
class LastExitTest {
    private val activities = shadowOf(app.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager)

    private fun exit(reason: Int, description: String? = null, status: Int = 0, at: Long = 1) = activities.addApplicationExitInfo(
        ShadowActivityManager.ApplicationExitInfoBuilder.newBuilder().setReason(reason).setDescription(description).setStatus(status)
            .setTimestamp(at).setRss(2_500_000).build(),
    )

    private fun sentence(reason: Int, description: String? = null, status: Int = 0): String? {
        exit(reason, description, status)
        return LastExit.sentence(app)
    }

    @Test
    fun whatEndedTheApp() {
        assertNull(LastExit.sentence(app))
        val limiter = sentence(ApplicationExitInfo.REASON_OTHER, "MemoryLimiter:AnonSwap")
        val wanted = "The system ended the app because it used too much memory of its own and swap (MemoryLimiter:AnonSwap). It had 2.56 GB in memory."
        assertEquals(wanted, limiter)
        assertEquals("The system ended the app to free memory. It had 2.56 GB in memory.", sentence(ApplicationExitInfo.REASON_LOW_MEMORY))
        assertEquals("The app crashed in native code. It had 2.56 GB in memory.", sentence(ApplicationExitInfo.REASON_CRASH_NATIVE))
        assertEquals("The app was ended by signal 9. It had 2.56 GB in memory.", sentence(ApplicationExitInfo.REASON_SIGNALED, null, 9))
        assertNull("a person swiped it away", sentence(ApplicationExitInfo.REASON_USER_REQUESTED))
    }

    @Test
    fun theFirstScreenTellsItOnce() {
        exit(ApplicationExitInfo.REASON_LOW_MEMORY, at = 5)
        val told = "The system ended the app to free memory. It had 2.56 GB in memory."
        repeat(2) { time ->
            Robolectric.buildActivity(MainActivity::class.java).use { assertEquals(if (time == 0) told else "", it.setup().get().text(R.id.problem)) }
        }
        exit(ApplicationExitInfo.REASON_LOW_MEMORY, at = 6)
        Robolectric.buildActivity(MainActivity::class.java).use { assertEquals(told, it.setup().get().text(R.id.problem)) }
    }

    @Test
    @Config(sdk = [29])
    fun olderSystemsDoNotTell() = assertNull(LastExit.news(app))
}

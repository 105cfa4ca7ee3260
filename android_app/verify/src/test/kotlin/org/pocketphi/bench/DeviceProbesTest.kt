package org.pocketphi.bench

import android.app.ActivityManager
import android.content.Context
import android.content.Intent
import android.os.BatteryManager
import android.os.PowerManager
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.pocketphi.core.ThermalStatus
import org.robolectric.RobolectricTestRunner
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config

@RunWith(RobolectricTestRunner::class)
@Config(sdk = [34])
class DeviceProbesTest {
    private val power = app.getSystemService(Context.POWER_SERVICE) as PowerManager
    private val probes = DeviceProbes(app)

    @Test
    fun thermalAndBattery() {
        assertNull(probes.thermal().batteryCelsius)
        @Suppress("DEPRECATION")
        app.sendStickyBroadcast(
            Intent(Intent.ACTION_BATTERY_CHANGED)
                .putExtra(BatteryManager.EXTRA_TEMPERATURE, 387)
                .putExtra(BatteryManager.EXTRA_LEVEL, 42)
                .putExtra(BatteryManager.EXTRA_SCALE, 50),
        )
        val levels = mapOf(0 to ThermalStatus.NONE, 2 to ThermalStatus.MODERATE, 6 to ThermalStatus.SHUTDOWN)
        for ((level, status) in levels) {
            shadowOf(power).setCurrentThermalStatus(level)
            assertEquals(status, probes.thermal().status)
        }
        shadowOf(power).setCurrentThermalStatus(0)
        shadowOf(power).setIsPowerSaveMode(true)
        val thermal = probes.thermal()
        assertEquals(38.7, thermal.batteryCelsius!!, 1e-9)
        assertEquals(84.0, thermal.batteryPercent!!, 1e-9)
        assertEquals(true, thermal.lowPowerMode)
    }

    @Test
    fun memory() {
        val system = ActivityManager.MemoryInfo().apply { availMem = 1_234; totalMem = 5_678 }
        shadowOf(app.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager).setMemoryInfo(system)
        val memory = probes.memory(walk = true)
        assertEquals(1_234L, memory.available)
        // /proc is this machine's own: a Java process has more than 50 MB, and never more than its peak.
        assertTrue("${memory.rss}", memory.rss!! > 50_000_000)
        assertTrue(probes.peakRss()!! >= memory.rss!! / 2)
        assertNull("the shadow gives 0, as Debug does where it cannot read", memory.pss)
        val quick = probes.memory(walk = false)
        assertEquals(quick.anonymous!! + (quick.swap ?: 0), quick.privateBytes)
        assertTrue("${quick.anonymous} and ${quick.file} of ${quick.rss}", quick.anonymous!! > 20_000_000 && quick.file!! > 1_000_000)
        assertNull(quick.nativeHeap)
        assertEquals(false, probes.lowMemory())
        systemMemory(free = 9, low = true)
        assertEquals(true, probes.lowMemory())
        systemMemory(free = 1_234)
        val device = DeviceProbes.device(app)
        assertEquals(8_000_000_000L, device.ramBytes)
        assertEquals("14", device.osVersion)
        assertTrue(device.cores!! > 0)
    }

    @Test
    fun levels() {
        val names = listOf(5, 10, 15, 20, 40, 60, 80).map { TrimLevel.name(it) }
        assertEquals(listOf("running_moderate", "running_low", "running_critical", null, "background", "moderate", "complete"), names)
    }
}

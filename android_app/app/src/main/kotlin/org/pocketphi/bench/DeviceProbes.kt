package org.pocketphi.bench

import android.app.ActivityManager
import android.content.Context
import android.content.Intent
import android.content.IntentFilter
import android.os.BatteryManager
import android.os.Build
import android.os.Debug
import android.os.PowerManager
import org.pocketphi.core.Device
import org.pocketphi.core.Memory
import org.pocketphi.core.Probes
import org.pocketphi.core.Thermal
import org.pocketphi.core.ThermalStatus
import java.io.File
import java.io.IOException

/** [Probes] by Android's services and /proc. */
class DeviceProbes(private val context: Context) : Probes {
    private val activities = context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager
    private val power = context.getSystemService(Context.POWER_SERVICE) as PowerManager

    override fun memory(walk: Boolean): Memory {
        val process = if (walk) Debug.MemoryInfo().also { Debug.getMemoryInfo(it) } else null
        val status = status()
        val anonymous = status["RssAnon"]
        return Memory(
            pss = process?.totalPss?.kilobytes(),
            rss = status["VmRSS"],
            privateDirty = process?.totalPrivateDirty?.kilobytes(),
            nativeHeap = if (walk) Debug.getNativeHeapAllocatedSize() else null,
            available = system().availMem.takeIf { it > 0 },
            privateBytes = anonymous?.plus(status["VmSwap"] ?: 0),
            anonymous = anonymous,
            file = status["RssFile"],
            swap = status["VmSwap"],
        )
    }

    override fun lowMemory(): Boolean = system().lowMemory

    private fun system() = ActivityManager.MemoryInfo().also { activities.getMemoryInfo(it) }

    override fun thermal(): Thermal {
        val battery = context.registerReceiver(null, IntentFilter(Intent.ACTION_BATTERY_CHANGED))
        val tenths = battery?.getIntExtra(BatteryManager.EXTRA_TEMPERATURE, UNKNOWN) ?: UNKNOWN
        val level = battery?.getIntExtra(BatteryManager.EXTRA_LEVEL, UNKNOWN) ?: UNKNOWN
        val scale = battery?.getIntExtra(BatteryManager.EXTRA_SCALE, 100) ?: 100
        return Thermal(
            thermalStatus(),
            if (tenths == UNKNOWN) null else tenths / 10.0,
            if (level < 0 || scale <= 0) null else (100.0 * level / scale).coerceAtMost(100.0),
            power.isPowerSaveMode,
        )
    }

    // Writing 5 there resets VmHWM (proc(5)); phones that forbid it leave the peak of the process's whole life.
    override fun resetPeakRss(): Boolean = try {
        File("/proc/self/clear_refs").writeText("5")
        true
    } catch (_: IOException) {
        false
    }

    override fun peakRss(): Long? = status()["VmHWM"]

    private fun thermalStatus(): ThermalStatus {
        if (Build.VERSION.SDK_INT < Build.VERSION_CODES.Q) return ThermalStatus.UNKNOWN
        return ThermalStatus.entries.getOrElse(power.currentThermalStatus) { ThermalStatus.UNKNOWN }
    }

    /** Bytes by the kernel's names; what this kernel does not count lacks. */
    private fun status(): Map<String, Long> = try {
        File("/proc/self/status").readLines().mapNotNull { LINE.matchEntire(it) }.associate { it.groupValues[1] to it.groupValues[2].toLong() * 1024 }
    } catch (_: IOException) {
        emptyMap()
    }

    // Debug gives 0 where it could not read the process's maps.
    private fun Int.kilobytes(): Long? = if (this <= 0) null else this * 1024L

    companion object {
        private const val UNKNOWN = Int.MIN_VALUE
        private val LINE = Regex("(\\w+):\\s+(\\d+) kB")

        fun device(context: Context): Device {
            val activities = context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager
            val memory = ActivityManager.MemoryInfo().also { activities.getMemoryInfo(it) }
            val soc = if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.S) Build.SOC_MODEL else null
            return Device(
                listOf(Build.MANUFACTURER, Build.MODEL).distinct().joinToString(" "),
                (soc ?: Build.HARDWARE).takeIf { it.isNotEmpty() && it != Build.UNKNOWN },
                memory.totalMem.takeIf { it > 0 },
                Build.VERSION.RELEASE,
                Build.SUPPORTED_ABIS.firstOrNull().orEmpty(),
                Runtime.getRuntime().availableProcessors().takeIf { it > 0 },
            )
        }
    }
}

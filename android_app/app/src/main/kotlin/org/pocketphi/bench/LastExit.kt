package org.pocketphi.bench

import android.app.ActivityManager
import android.app.ApplicationExitInfo
import android.content.Context
import android.os.Build
import java.util.Locale

/** What ended this app's process last time, as the system remembers it (Android 11 and newer). */
object LastExit {
    /** A sentence; null where the system does not tell, or the end was an ordinary one. */
    fun sentence(context: Context): String? = last(context)?.let { sentence(context, it) }

    /** The same once for each end: null where it has been told. */
    fun news(context: Context): String? {
        val exit = last(context) ?: return null
        val told = context.getSharedPreferences("exits", Context.MODE_PRIVATE)
        if (told.getLong("told", 0) >= exit.timestamp) return null
        told.edit().putLong("told", exit.timestamp).apply()
        return sentence(context, exit)
    }

    private fun last(context: Context): ApplicationExitInfo? {
        if (Build.VERSION.SDK_INT < Build.VERSION_CODES.R) return null
        val activities = context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager
        return activities.getHistoricalProcessExitReasons(null, 0, 1).firstOrNull()
    }

    private fun sentence(context: Context, exit: ApplicationExitInfo): String? {
        val description = exit.description.orEmpty()
        val what = when (exit.reason) {
            ApplicationExitInfo.REASON_LOW_MEMORY -> context.getString(R.string.exit_low_memory)
            ApplicationExitInfo.REASON_CRASH -> context.getString(R.string.exit_crash)
            ApplicationExitInfo.REASON_CRASH_NATIVE -> context.getString(R.string.exit_crash_native)
            ApplicationExitInfo.REASON_ANR -> context.getString(R.string.exit_anr)
            ApplicationExitInfo.REASON_SIGNALED -> context.getString(R.string.exit_signal, exit.status)
            ApplicationExitInfo.REASON_EXCESSIVE_RESOURCE_USAGE -> context.getString(R.string.exit_resources)
            // Android 17 ends processes by their anonymous memory and swap, and names that only here.
            ApplicationExitInfo.REASON_OTHER ->
                if (LIMITER in description) context.getString(R.string.exit_limiter) else context.getString(R.string.exit_other)
            else -> return null
        }
        // The system counts in kilobytes.
        val seen = if (exit.rss > 0) " " + context.getString(R.string.exit_memory, Format.bytes(exit.rss * 1024)) else ""
        val words = if (description.isEmpty()) "" else String.format(Locale.ROOT, " (%s)", description)
        return "$what$words.$seen"
    }

    private const val LIMITER = "MemoryLimiter"
}

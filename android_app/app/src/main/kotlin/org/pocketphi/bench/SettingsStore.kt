package org.pocketphi.bench

import android.content.Context
import org.pocketphi.core.BadInput
import org.pocketphi.core.Settings

/** The person's settings, kept between starts. */
class SettingsStore(context: Context) {
    private val kept = context.getSharedPreferences("settings", Context.MODE_PRIVATE)

    var current: Settings = try {
        Settings.parse(kept.all.mapValues { it.value.toString() })
    } catch (_: BadInput) {
        Settings() // of a version with other ranges
    }
        private set

    fun keep(settings: Settings) {
        current = settings
        kept.edit().apply { settings.texts().forEach { (key, text) -> putString(key, text) } }.apply()
    }
}

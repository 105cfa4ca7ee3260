package org.pocketphi.bench

import android.app.Activity
import android.os.Bundle
import android.view.View
import android.widget.Button
import android.widget.TextView
import org.pocketphi.core.BadInput
import org.pocketphi.core.Settings

/** What the engine is, how it runs and how it chooses tokens in a chat; the packed weights it keeps. */
class SettingsActivity : Activity() {
    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(R.layout.settings)
        header(getString(R.string.settings))
        findViewById<TextView>(R.id.engine).setText(if (app.ownEngine) R.string.engine_own else R.string.engine_upstream)
        findViewById<TextView>(R.id.engine_facts).setText(if (app.ownEngine) R.string.engine_own_facts else R.string.engine_upstream_facts)
        if (state == null) app.settings.current.texts().forEach { (key, text) -> findViewById<TextView>(FIELDS.getValue(key)).text = text }
        if (!app.ownEngine) OWN_ONLY.forEach { findViewById<View>(FIELDS.getValue(it)).isEnabled = false }
        findViewById<View>(R.id.save).setOnClickListener { save() }
        findViewById<View>(R.id.delete_packed).setOnClickListener {
            app.packed.delete()
            showPacked()
        }
        showPacked()
    }

    private fun showPacked() {
        val bytes = app.packed.bytes()
        findViewById<TextView>(R.id.packed).text = if (bytes > 0) getString(R.string.packed_size, Format.bytes(bytes)) else getString(R.string.packed_none)
        findViewById<Button>(R.id.delete_packed).visible(bytes > 0)
    }

    private fun save() = try {
        app.settings.keep(Settings.parse(FIELDS.mapValues { findViewById<TextView>(it.value).text.toString() }))
        finish()
    } catch (wrong: BadInput) {
        findViewById<TextView>(R.id.problem).showOrHide(wrong.message)
    }

    private companion object {
        val FIELDS = mapOf(
            "threads" to R.id.threads, "draft_tokens" to R.id.draft_tokens, "temperature" to R.id.temperature, "top_k" to R.id.top_k,
            "top_p" to R.id.top_p, "seed" to R.id.seed, "system" to R.id.system,
            "picture_side" to R.id.picture_side,
        )

        /** What upstream's LlmModule takes no word of. */
        val OWN_ONLY = listOf("threads", "draft_tokens", "top_k", "top_p", "seed", "picture_side")
    }
}

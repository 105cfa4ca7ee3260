package org.pocketphi.bench

import android.app.Activity
import android.content.Intent
import android.os.Bundle
import android.util.Log
import org.pocketphi.core.BadInput
import org.pocketphi.core.Event
import org.pocketphi.core.LineSink
import org.pocketphi.core.ProgressFile
import org.pocketphi.core.ProgressLines
import org.pocketphi.core.RunRequest

/** A run that a program starts (docs/app_protocol.md): shows how far it is and is gone when it has ended. */
class HeadlessActivity : Activity() {
    private lateinit var live: LiveViews
    private val listener = { state: RunState -> show(state) }

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(R.layout.headless)
        live = LiveViews(findViewById(R.id.live))
        if (state == null) {
            begin(intent)
        } else if (app.runs.state.request == null) {
            // The system killed the process and brought only the screen back.
            val why = LastExit.sentence(this)?.let { "$it ${getString(R.string.repeats_kept)}" } ?: getString(R.string.error_killed)
            ended(intent.getStringExtra("run").orEmpty(), why)
        }
    }

    override fun onNewIntent(intent: Intent) {
        super.onNewIntent(intent)
        begin(intent)
    }

    override fun onStart() {
        super.onStart()
        app.runs.listen(listener)
    }

    override fun onStop() {
        app.runs.unlisten(listener)
        super.onStop()
    }

    private fun begin(intent: Intent) {
        try {
            val request = RunRequest.parse(extras(intent))
            app.runs.start(request, sink(request.name, anew = request.name != app.runs.state.request?.name))
        } catch (problem: BadInput) {
            ended(intent.getStringExtra("run").orEmpty(), problem.message)
        }
    }

    private fun show(state: RunState) {
        live.show(state)
        keepScreenOn(state.active)
        if (!state.active && state.last != null) finish()
    }

    private fun ended(run: String, problem: String) {
        ProgressLines(run, if (RunRequest.isName(run)) sink(run, anew = false) else Logcat).on(Event.Failed(problem))
        if (!app.runs.state.active) finish()
    }

    /** Lines go to the system's log and, for phones that keep none, into a file beside the result. */
    private fun sink(run: String, anew: Boolean): LineSink {
        val file = ProgressFile(app.results.folder, run)
        if (anew) file.clear()
        return LineSink { text ->
            Logcat.line(text)
            file.line(text)
        }
    }

    private fun extras(intent: Intent): Map<String, Any?> = buildMap {
        for (key in TEXTS) intent.getStringExtra(key)?.let { put(key, it) }
        for (key in NUMBERS) {
            if (!intent.hasExtra(key)) continue
            val number = intent.getIntExtra(key, Int.MIN_VALUE)
            put(key, if (number == Int.MIN_VALUE) intent.getStringExtra(key).orEmpty() else number)
        }
    }

    private companion object {
        val TEXTS = listOf("run", "model", "tokenizer", "model_sha256", "prompt_tokens", "prompt_files", "load_mode", "modes")
        val NUMBERS = listOf("new_tokens", "repeats", "warmups", "cooldown_s", "threads", "draft_tokens", "ignore_memory")
    }
}

/** Progress lines in the system's log, where a program follows them. */
object Logcat : LineSink {
    const val TAG = "Pocketphi"

    override fun line(text: String) {
        Log.i(TAG, text)
    }
}

package org.pocketphi.bench

import android.app.Activity
import android.content.Intent
import android.os.Bundle
import android.view.View
import android.widget.LinearLayout
import android.widget.TextView
import org.pocketphi.core.SavedResult

/** All results on this phone, newest first. */
class HistoryActivity : Activity() {
    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(R.layout.list)
        header(getString(R.string.history))
    }

    override fun onStart() {
        super.onStart()
        val list = findViewById<LinearLayout>(R.id.list)
        list.removeAllViews()
        val saved = app.results.list()
        if (saved.isEmpty()) item(list, getString(R.string.no_history), getString(R.string.no_history_how), "", null)
        saved.forEach { one ->
            item(list, one.result.model.file, line(one), "${Format.moment(one.result.created)} · ${one.name}") {
                startActivity(Intent(this, ResultActivity::class.java).putExtra(ResultActivity.FILE, one.file.path))
            }
        }
    }

    private fun line(saved: SavedResult): String {
        val runs = saved.result.runs.mapNotNull { run ->
            val rate = run.summary["decode_tokens_per_s"]?.median?.let(Format::number) ?: return@mapNotNull null
            getString(R.string.history_line, rate, Format.lengths(this, run.configuration))
        }
        return (runs + listOfNotNull(if (saved.result.complete) null else getString(R.string.incomplete))).joinToString("\n")
    }

    private fun item(list: LinearLayout, title: String, line: String, time: String, onClick: (() -> Unit)?) {
        val view = layoutInflater.inflate(R.layout.history_item, list, false)
        view.findViewById<TextView>(R.id.item_title).text = title
        view.findViewById<TextView>(R.id.item_line).showOrHide(line)
        view.findViewById<TextView>(R.id.item_when).showOrHide(time)
        view.findViewById<View>(R.id.item_arrow).visible(onClick != null)
        if (onClick != null) view.setOnClickListener { onClick() }
        list.addView(view)
    }
}

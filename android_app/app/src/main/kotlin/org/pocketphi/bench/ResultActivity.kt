package org.pocketphi.bench

import android.app.Activity
import android.app.AlertDialog
import android.os.Bundle
import android.widget.LinearLayout
import android.widget.TextView
import android.widget.Toast
import org.pocketphi.core.BadInput
import org.pocketphi.core.Comparison
import org.pocketphi.core.Result
import org.pocketphi.core.SavedResult
import java.io.File

/** One saved result, alone or beside another. */
class ResultActivity : Activity() {
    private lateinit var file: File
    private lateinit var cards: ResultCards
    private var comparedWith: String? = null

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(R.layout.list)
        header(getString(R.string.result))
        cards = ResultCards(findViewById<LinearLayout>(R.id.list))
        file = File(intent.getStringExtra(FILE).orEmpty())
        comparedWith = state?.getString(COMPARED)
        try {
            val result = app.results.read(file)
            action(R.id.action_one, R.drawable.ic_compare, R.string.compare) { pickOther(result) }
            action(R.id.action_two, R.drawable.ic_share, R.string.share) { share(file) }
            show(result, comparedWith?.let { SavedResult(File(it), app.results.read(File(it))) })
        } catch (problem: BadInput) {
            val text = layoutInflater.inflate(R.layout.problem, findViewById(R.id.list), true).findViewById<TextView>(R.id.problem)
            text.showOrHide(problem.message)
        }
    }

    override fun onSaveInstanceState(state: Bundle) {
        super.onSaveInstanceState(state)
        state.putString(COMPARED, comparedWith)
    }

    private fun show(result: Result, other: SavedResult?) {
        comparedWith = other?.file?.path
        cards.show(result)
        if (other != null) {
            cards.clear()
            cards.compare(other.result, result, other.name)
            header(file.name.removeSuffix(".json"))
        }
    }

    private fun pickOther(result: Result) {
        val others = app.results.list().filter { it.file != file && Comparison.of(it.result, result).isNotEmpty() }
        if (others.isEmpty()) {
            Toast.makeText(this, R.string.nothing_to_compare, Toast.LENGTH_LONG).show()
            return
        }
        val names = others.map { "${it.result.model.file}\n${Format.moment(it.result.created)}" }
        AlertDialog.Builder(this)
            .setTitle(R.string.compare_with)
            .setItems(names.toTypedArray<CharSequence>()) { _, index -> show(result, others[index]) }
            .show()
    }

    companion object {
        const val FILE = "file"
        private const val COMPARED = "compared"
    }
}

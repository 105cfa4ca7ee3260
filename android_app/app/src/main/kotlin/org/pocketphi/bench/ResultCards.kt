package org.pocketphi.bench

import android.content.Context
import android.view.Gravity
import android.view.View
import android.view.ViewGroup
import android.widget.LinearLayout
import android.widget.TextView
import org.pocketphi.core.Comparison
import org.pocketphi.core.Contract
import org.pocketphi.core.Metric
import org.pocketphi.core.Packing
import org.pocketphi.core.Result
import org.pocketphi.core.Run
import org.pocketphi.core.ThermalStatus
import java.util.Locale

/** Fills a column with the cards of a result. */
class ResultCards(private val into: LinearLayout) {
    private val context: Context = into.context

    fun clear() = into.removeAllViews()

    /** [withProblem]: false where the screen tells it elsewhere. */
    fun show(result: Result, withProblem: Boolean = true) {
        clear()
        val facts = card()
        text(facts, result.model.file, R.style.Text_Heading)
        result.model.manifest?.recipe?.let { text(facts, it, R.style.Text_Faint) }
        text(
            facts,
            context.getString(
                R.string.facts, result.device.model, result.device.osVersion, result.build.executorch ?: "?", result.build.engine,
            ),
            R.style.Text_Faint,
        )
        result.problem?.takeIf { withProblem }?.let { text(facts, it, R.style.Text).setTextColor(context.getColor(R.color.bad)) }
        result.runs.filter { it.repeats.isNotEmpty() }.forEach { run(it) }
    }

    fun compare(before: Result, after: Result, beforeName: String) {
        val notes = Comparison.differences(before, after)
        val head = card()
        text(head, context.getString(R.string.compared_with, beforeName), R.style.Text_Heading)
        text(head, Format.moment(before.created) + " · " + before.device.model, R.style.Text_Faint)
        notes.forEach { text(head, it, R.style.Text_Faint).setTextColor(context.getColor(R.color.second)) }
        for (pair in Comparison.of(before, after)) {
            val card = card()
            text(card, Format.lengths(context, pair.configuration), R.style.Text_Heading)
            row(
                card, "", listOf(R.string.column_before, R.string.column_after, R.string.column_change).map { context.getString(it) },
                R.style.Text_Faint,
            )
            for (compared in pair.rows.filter { it.before != null || it.after != null }) {
                val change = compared.change?.let { change(it) }
                val cells = row(
                    card, compared.metric.title,
                    listOf(compared.before, compared.after).map { number(compared.metric, it) } + (change ?: unknown), R.style.Text,
                )
                val better = compared.better
                if (better != null) cells.last().setTextColor(context.getColor(if (better) R.color.good else R.color.bad))
            }
        }
    }

    private fun change(fraction: Double): String {
        val percent = Math.round(fraction * 1000) / 10.0
        if (percent == 0.0) return context.getString(R.string.no_change)
        return String.format(Locale.ROOT, "%+.1f %%", percent).replace('-', '−')
    }

    private fun run(run: Run) {
        val card = card()
        text(card, Format.lengths(context, run.configuration), R.style.Text_Heading)
        val summary = run.summary
        row(card, "", listOf(R.string.column_median, R.string.column_range).map { context.getString(it) }, R.style.Text_Faint, WIDE_LAST)
        for (metric in Contract.current.metrics) {
            val values = summary[metric.name] ?: continue
            val range = number(metric, values.min) + " – " + number(metric, values.max)
            row(card, metric.title, listOf(number(metric, values.median), range), R.style.Text, WIDE_LAST)
        }
        chart(card, R.string.chart_rates) { it.showRates(run) }
        if (run.repeats.any { repeat -> repeat.samples.any { it.memory.headline != null } }) {
            chart(card, R.string.chart_memory) { it.showMemory(run) }
        }
        thermal(run)?.let { text(card, it, R.style.Text_Faint) }
        loads(run)?.let { text(card, it, R.style.Text_Faint) }
        run.repeats.mapNotNull { it.packingNote }.distinct().forEach { warning(card, Contract.current.remark("not_packed", "note" to it)) }
        val drafted = run.repeats.sumOf { it.drafted ?: 0 }
        if (drafted > 0) {
            val accepted = run.repeats.sumOf { it.accepted ?: 0 }
            text(card, Contract.current.remark("drafts", "drafted" to drafted, "accepted" to accepted), R.style.Text_Faint)
        }
        val hot = run.repeats.indices.filter { run.repeats[it].throttled }.joinToString { "${it + 1}" }
        if (hot.isNotEmpty()) warning(card, Contract.current.remark("hot", "repeats" to hot))
        val warnings = run.repeats.sumOf { it.lowMemoryEvents }
        if (warnings > 0) warning(card, Contract.current.remark("low_memory", "count" to warnings))
        run.repeats.flatMap { it.notes }.distinct().forEach { text(card, it, R.style.Text_Faint) }
    }

    private fun thermal(run: Run): String? {
        val first = run.repeats.first().before
        val last = run.repeats.last().after
        val from = first.batteryCelsius
        val to = last.batteryCelsius
        if (from != null && to != null) return context.getString(R.string.thermal_line, celsius(from), celsius(to), last.status.json)
        return if (last.status == ThermalStatus.UNKNOWN) null else context.getString(R.string.thermal_status, last.status.json)
    }

    /** "Loads: 1 that packed the weights, 4 that found them packed". */
    private fun loads(run: Run): String? {
        val kinds = run.repeats.mapNotNull { it.packing }.groupingBy { it }.eachCount()
        if (kinds.isEmpty()) return null
        val words = mapOf(Packing.COLD to R.string.load_cold, Packing.WARM to R.string.load_warm, Packing.NONE to R.string.load_none)
        return context.getString(R.string.loads, words.entries.filter { it.key in kinds }.joinToString { context.getString(it.value, kinds[it.key]) })
    }

    private fun celsius(value: Double) = String.format(Locale.ROOT, "%.1f °C", value)

    private fun chart(card: LinearLayout, title: Int, fill: (ChartView) -> Unit) {
        text(card, context.getString(title), R.style.Text_Faint).setPadding(0, dp(14), 0, dp(4))
        card.addView(ChartView(context).also(fill), ViewGroup.LayoutParams.MATCH_PARENT, ViewGroup.LayoutParams.WRAP_CONTENT)
    }

    private fun warning(card: LinearLayout, sentence: String) {
        text(card, sentence, R.style.Text_Faint).setTextColor(context.getColor(R.color.second))
    }

    /** A label and cells to its right, [weights] of the width each; returns the cells. */
    private fun row(
        card: LinearLayout, label: String, cells: List<String>, style: Int, weights: List<Float> = List(cells.size) { 1f },
    ): List<TextView> {
        val line = LinearLayout(context).apply { setPadding(0, dp(5), 0, dp(5)) }
        fun cell(text: String, weight: Float, gravity: Int) = TextView(context).also {
            it.setTextAppearance(style)
            it.text = text
            it.gravity = gravity
            it.fontFeatureSettings = "tnum"
            line.addView(it, LinearLayout.LayoutParams(0, ViewGroup.LayoutParams.WRAP_CONTENT, weight))
        }
        cell(label, LABEL_WEIGHT, Gravity.START)
        val views = cells.mapIndexed { index, text -> cell(text, weights[index], Gravity.END) }
        card.addView(line)
        return views
    }

    private fun card(): LinearLayout {
        val card = View.inflate(context, R.layout.card, null) as LinearLayout
        val margins = LinearLayout.LayoutParams(ViewGroup.LayoutParams.MATCH_PARENT, ViewGroup.LayoutParams.WRAP_CONTENT)
        margins.bottomMargin = dp(12)
        into.addView(card, margins)
        return card
    }

    private fun text(card: LinearLayout, text: String, style: Int): TextView = TextView(context).also {
        it.setTextAppearance(style)
        it.text = text
        if (style != R.style.Text_Heading) it.setPadding(0, dp(4), 0, 0)
        card.addView(it)
    }

    private val unknown get() = context.getString(R.string.unknown)

    private fun number(metric: Metric, value: Double?) = if (value == null) unknown else Format.metric(metric, value)

    private fun dp(value: Int) = (value * context.resources.displayMetrics.density).toInt()

    private companion object {
        const val LABEL_WEIGHT = 1.9f
        val WIDE_LAST = listOf(1f, 1.7f)
    }
}

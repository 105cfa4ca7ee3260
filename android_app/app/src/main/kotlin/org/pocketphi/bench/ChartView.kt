package org.pocketphi.bench

import android.content.Context
import android.graphics.Canvas
import android.graphics.Paint
import android.graphics.Path
import android.util.TypedValue
import android.view.View
import org.pocketphi.core.Run
import java.util.Locale

/** Draws one series, as bars for single values or as a line over time, with a scale from 0. */
class ChartView(context: Context) : View(context) {
    private sealed interface Content {
        /** [marked] bars are drawn in the second colour. */
        class Bars(val values: List<Double?>, val marked: Set<Int>, val median: Double?) : Content
        class Line(val points: List<Pair<Double, Double>>) : Content
    }

    private var content: Content? = null
    private val line = Paint(Paint.ANTI_ALIAS_FLAG).apply { style = Paint.Style.STROKE }
    private val fill = Paint(Paint.ANTI_ALIAS_FLAG)
    private val label = Paint(Paint.ANTI_ALIAS_FLAG).apply { textSize = sp(11f); color = context.getColor(R.color.faint) }
    private val path = Path()

    /** Decode rates of each repeat, in tokens a second; throttled ones stand out. */
    fun showRates(run: Run) {
        val rates = run.repeats.map { it.decodeTokensPerS }
        val hot = run.repeats.indices.filter { run.repeats[it].throttled }.toSet()
        content = Content.Bars(rates, hot, run.summary["decode_tokens_per_s"]?.median)
        val spoken = rates.joinToString { it?.let(Format::number) ?: context.getString(R.string.unknown) }
        contentDescription = context.getString(R.string.chart_rates_described, spoken)
        invalidate()
    }

    /** Memory in GB over seconds, the repeats one after another. */
    fun showMemory(run: Run) {
        var start = 0.0
        val points = ArrayList<Pair<Double, Double>>()
        for (repeat in run.repeats) {
            val seen = repeat.samples.mapNotNull { sample -> sample.memory.headline?.let { (start + sample.atMs) / 1000 to it / 1e9 } }
            points += seen
            start = (seen.lastOrNull()?.first ?: (start / 1000)) * 1000
        }
        content = Content.Line(points)
        val low = points.minOfOrNull { it.second } ?: 0.0
        val high = points.maxOfOrNull { it.second } ?: 0.0
        contentDescription = context.getString(
            R.string.chart_memory_described, Format.bytes((low * 1e9).toLong()), Format.bytes((high * 1e9).toLong()),
        )
        invalidate()
    }

    override fun onMeasure(widthSpec: Int, heightSpec: Int) {
        setMeasuredDimension(MeasureSpec.getSize(widthSpec), resolveSize(dp(140f).toInt(), heightSpec))
    }

    override fun onDraw(canvas: Canvas) {
        super.onDraw(canvas)
        val highest = when (val content = content) {
            is Content.Bars -> content.values.filterNotNull().maxOrNull()
            is Content.Line -> content.points.maxOfOrNull { it.second }
            null -> null
        }
        if (highest == null || highest <= 0.0) {
            label.textAlign = Paint.Align.CENTER
            canvas.drawText(context.getString(R.string.chart_empty), width / 2f, height / 2f, label)
            return
        }
        val step = step(highest)
        val top = step * Math.ceil(highest / step - 1e-9)
        val frame = Frame(dp(40f), dp(8f), width - dp(8f), height - dp(22f), top)
        drawScale(canvas, frame, step)
        when (val content = content) {
            is Content.Bars -> drawBars(canvas, frame, content)
            is Content.Line -> drawLine(canvas, frame, content)
            null -> Unit
        }
    }

    private class Frame(val left: Float, val top: Float, val right: Float, val bottom: Float, val highest: Double) {
        fun y(value: Double) = (bottom - (bottom - top) * value / highest).toFloat()
    }

    private fun drawScale(canvas: Canvas, frame: Frame, step: Double) {
        line.color = context.getColor(R.color.line)
        line.strokeWidth = dp(1f)
        label.textAlign = Paint.Align.RIGHT
        var value = 0.0
        while (value <= frame.highest * 1.0001) {
            val y = frame.y(value)
            canvas.drawLine(frame.left, y, frame.right, y, line)
            canvas.drawText(short(value), frame.left - dp(6f), y + label.textSize * 0.35f, label)
            value += step
        }
    }

    private fun drawBars(canvas: Canvas, frame: Frame, bars: Content.Bars) {
        val slot = (frame.right - frame.left) / bars.values.size
        val half = minOf(slot * 0.32f, dp(22f))
        val every = Math.ceil((bars.values.size * dp(18f) / (frame.right - frame.left)).toDouble()).toInt().coerceAtLeast(1)
        label.textAlign = Paint.Align.CENTER
        bars.values.forEachIndexed { index, value ->
            val x = frame.left + slot * (index + 0.5f)
            fill.color = context.getColor(if (index in bars.marked) R.color.second else R.color.accent)
            if (value != null) canvas.drawRoundRect(x - half, frame.y(value), x + half, frame.bottom, dp(3f), dp(3f), fill)
            if (index % every == 0) canvas.drawText((index + 1).toString(), x, height - dp(6f), label)
        }
        bars.median?.let {
            line.color = context.getColor(R.color.text)
            line.strokeWidth = dp(1.5f)
            canvas.drawLine(frame.left, frame.y(it), frame.right, frame.y(it), line)
        }
    }

    private fun drawLine(canvas: Canvas, frame: Frame, content: Content.Line) {
        val end = content.points.last().first.coerceAtLeast(1e-3)
        fun x(seconds: Double) = (frame.left + (frame.right - frame.left) * seconds / end).toFloat()
        path.reset()
        content.points.forEachIndexed { index, (at, value) ->
            if (index == 0) path.moveTo(x(at), frame.y(value)) else path.lineTo(x(at), frame.y(value))
        }
        line.color = context.getColor(R.color.accent)
        line.strokeWidth = dp(2f)
        canvas.drawPath(path, line)
        val step = step(end)
        var at = 0.0
        while (at <= end * 1.0001) {
            label.textAlign = if (x(at) > frame.right - dp(12f)) Paint.Align.RIGHT else Paint.Align.CENTER
            canvas.drawText(short(at), x(at), height - dp(6f), label)
            at += step
        }
    }

    // 1, 2 or 5 times a power of ten, so that three to six lines fit.
    private fun step(highest: Double): Double {
        val power = Math.pow(10.0, Math.floor(Math.log10(highest / 3)))
        return listOf(1.0, 2.0, 5.0).map { it * power }.last { it <= highest / 3 * 1.0001 }
    }

    private fun short(value: Double): String {
        if (value == Math.rint(value)) return String.format(Locale.ROOT, "%.0f", value)
        return String.format(Locale.ROOT, "%.3g", value).trimEnd('0').trimEnd('.')
    }

    private fun dp(value: Float) = value * resources.displayMetrics.density

    private fun sp(value: Float) = TypedValue.applyDimension(TypedValue.COMPLEX_UNIT_SP, value, resources.displayMetrics)
}

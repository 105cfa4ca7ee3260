package org.pocketphi.bench

import android.content.Context
import org.pocketphi.core.Configuration
import org.pocketphi.core.Contract
import org.pocketphi.core.Metric
import org.pocketphi.core.size
import java.text.DateFormat
import java.text.ParseException
import java.text.SimpleDateFormat
import java.util.Locale
import java.util.TimeZone

/** Numbers and times as a person reads them. */
object Format {
    private const val MB = 1e6

    fun bytes(bytes: Long): String = size(bytes)

    /** Three figures: 0.53, 17.3, 204. */
    fun number(value: Double): String = when {
        value < 10 -> String.format(Locale.ROOT, "%.2f", value)
        value < 100 -> String.format(Locale.ROOT, "%.1f", value)
        else -> String.format(Locale.ROOT, "%,.0f", value)
    }

    fun metric(metric: Metric, value: Double): String =
        number(if (metric.unit == "bytes") value / MB else value)

    fun lengths(context: Context, configuration: Configuration): String =
        listOfNotNull(
            context.getString(R.string.lengths, configuration.promptTokens, configuration.newTokens),
            Contract.current.modeWords[configuration.mode.json],
        ).joinToString(" ")

    /** Minutes and seconds: 0:07. */
    fun time(seconds: Double): String = String.format(Locale.ROOT, "%d:%02d", seconds.toInt() / 60, seconds.toInt() % 60)

    /** The schema's UTC time in the phone's zone and words. */
    fun moment(utc: String): String = try {
        val parser = SimpleDateFormat("yyyy-MM-dd'T'HH:mm:ss'Z'", Locale.ROOT).apply { timeZone = TimeZone.getTimeZone("UTC") }
        DateFormat.getDateTimeInstance(DateFormat.MEDIUM, DateFormat.SHORT).format(parser.parse(utc)!!)
    } catch (_: ParseException) {
        utc
    }
}

/** With its unit: "Decode, tokens/s". */
val Metric.title: String get() = label.replaceFirstChar { it.uppercaseChar() } + ", " + if (unit == "bytes") "MB" else unit

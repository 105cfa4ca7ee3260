package org.pocketphi.core

/** What two results say of the same thing: medians, in the metric's unit. */
data class Compared(val metric: Metric, val before: Double?, val after: Double?) {
    /** How much more [after] is, of [before]; null where one is missing or nothing. */
    val change: Double? get() = if (before == null || after == null || before == 0.0) null else after / before - 1

    /** Null where the change is within the metric's tolerance, or the metric is not judged. */
    val better: Boolean? get() {
        val change = change ?: return null
        if (Math.abs(change) <= (metric.tolerance ?: return null)) return null
        return (change > 0) == metric.moreIsBetter
    }
}

/** Two results beside each other. */
object Comparison {
    data class Pair(val configuration: Configuration, val rows: List<Compared>)

    /** A pair for each of [after]'s configurations that [before] has too, by their lengths. */
    fun of(before: Result, after: Result): List<Pair> = after.runs.mapNotNull { run ->
        val other = before.runs.firstOrNull { it.configuration.sameLengths(run.configuration) } ?: return@mapNotNull null
        val old = other.summary
        val new = run.summary
        Pair(run.configuration, Contract.current.metrics.map { Compared(it, old[it.name]?.median, new[it.name]?.median) })
    }

    /** Sentences on what makes the two less comparable. */
    fun differences(before: Result, after: Result): List<String> = buildList {
        if (before.device.model != after.device.model) add("Other devices: ${before.device.model} and ${after.device.model}.")
        if (before.model.file != after.model.file) add("Other models: ${before.model.file} and ${after.model.file}.")
        if (before.build.executorch != after.build.executorch) {
            add("Other ExecuTorch versions: ${before.build.executorch} and ${after.build.executorch}.")
        }
        if (listOf(before, after).any { result -> result.runs.any { run -> run.repeats.any { it.throttled } } }) {
            add("Some repeats ran on a hot, throttled device.")
        }
        if (!before.complete || !after.complete) add("A run is incomplete.")
    }
}

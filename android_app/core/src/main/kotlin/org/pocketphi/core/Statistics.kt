package org.pocketphi.core

/** Five numbers of a series, in the series' unit. */
data class Statistics(val min: Double, val p25: Double, val median: Double, val p75: Double, val max: Double) {
    fun toJson(): Map<String, Any?> =
        linkedMapOf("min" to min, "p25" to p25, "median" to median, "p75" to p75, "max" to max)

    companion object {
        /** Percentiles between closest ranks, as NumPy's default; null of no values. */
        fun of(values: List<Double>): Statistics? {
            if (values.isEmpty()) return null
            val sorted = values.sorted()
            return Statistics(
                sorted.first(), percentile(sorted, 0.25), percentile(sorted, 0.5), percentile(sorted, 0.75), sorted.last(),
            )
        }

        private fun percentile(sorted: List<Double>, fraction: Double): Double {
            val place = (sorted.size - 1) * fraction
            val below = place.toInt()
            if (below + 1 >= sorted.size) return sorted[below]
            return sorted[below] + (place - below) * (sorted[below + 1] - sorted[below])
        }
    }
}

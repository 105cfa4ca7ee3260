package org.pocketphi.core

/**
 * One generation's times, and those of what was [encoded] before it: [begin] and when each piece came, in nanoseconds of one clock. An engine that times every
 * token itself is believed; else, where not every token gave a piece, its totals stand in for them.
 */
class Timed(
    private val begin: Long, private val times: List<Long>, val generated: Generated?, val encoded: List<Encoded> = emptyList(),
) {
    /** Whether each token's time is known. */
    val everyToken: Boolean get() = counted != null || generated != null && times.isNotEmpty() && times.size == generated.generatedTokens
    private val counted get() = generated?.tokenMs

    val firstMs: Double? get() = when {
        counted != null -> generated?.prefillMs
        generated == null || times.isEmpty() -> null
        everyToken -> (times.first() - begin) / 1e6
        else -> generated.prefillMs ?: ((times.first() - begin) / 1e6)
    }

    val tokenMs: List<Double> get() = counted ?: if (everyToken) times.zipWithNext { one, next -> (next - one) / 1e6 } else emptyList()

    /** By the names of the contract's metrics; those that are not known lack. */
    fun measures(promptTokens: Int): Map<String, Double> = known(
        "time_to_first_token_ms" to firstMs,
        "prefill_tokens_per_s" to firstMs?.takeIf { it > 0 }?.let { promptTokens / it * 1000 },
        "decode_tokens_per_s" to decodeRate,
        "encode_ms" to encoded.takeIf { it.isNotEmpty() }?.sumOf { it.ms },
    )

    // Over all but the first.
    private val decodeRate: Double? get() {
        if (generated == null || generated.generatedTokens < 2) return null
        val ms = if (counted == null && everyToken) (times.last() - times.first()) / 1e6 else generated.decodeMs
        return ms?.takeIf { it > 0 }?.let { (generated.generatedTokens - 1) / it * 1000 }
    }

    companion object {
        val NONE = Timed(0, emptyList(), null)
    }
}

package org.pocketphi.core

/**
 * Looks at the memory every [everyMs], and while something is encoded every [QUICK_MS], on a thread of its own. Reading
 * PSS makes the kernel walk all pages, so that is done only in [begin] and [end]; the peak of physical memory comes from
 * the kernel's own count.
 */
class MemorySampler(
    private val probes: Probes,
    private val clock: Clock,
    private val everyMs: Long,
    private val onSample: (Phase, Memory) -> Unit,
) {
    @Volatile var phase = Phase.IDLE
        set(next) {
            field = next
            if (next == Phase.ENCODE) thread.interrupt() // from a long sleep
        }
    @Volatile private var running = true
    private val taken = ArrayList<Taken>()
    private var sinceReset = false
    private var peakBefore: Long? = null
    private val thread = Thread({ watch() }, "memory")

    private class Taken(val nanos: Long, val phase: Phase, val memory: Memory)

    fun start() = thread.start()

    /** Returns when the thread has ended. */
    fun stop() {
        running = false
        thread.interrupt()
        if (thread !== Thread.currentThread()) thread.join()
    }

    /** Forgets what was seen so far. */
    fun begin() {
        synchronized(taken) { taken.clear() }
        sinceReset = probes.resetPeakRss()
        peakBefore = probes.peakRss()
        look(walk = true)
    }

    /** What was seen since [begin]. Times count from [originNanos]. */
    fun end(originNanos: Long): Seen {
        look(walk = true)
        val all = synchronized(taken) { taken.toList() }
        var peak = all.fold(Memory.UNKNOWN) { worst, one -> worst.worst(one.memory) }
        val counted = probes.peakRss()
        // A count that was not reset and did not grow tells of an earlier peak.
        val before = peakBefore
        if (counted != null && (sinceReset || before == null || counted > before)) peak = peak.worst(peak.copy(rss = counted))
        return Seen(all.map { Sample(maxOf(0.0, (it.nanos - originNanos) / 1e6), it.phase, it.memory) }, peak)
    }

    private fun watch() {
        var slept = 0L
        while (running) {
            val sleep = if (phase == Phase.ENCODE) minOf(QUICK_MS, everyMs) else everyMs
            try {
                Thread.sleep(sleep)
                slept += sleep
            } catch (_: InterruptedException) {
                continue
            }
            val memory = look(walk = false)
            if (!running || slept < everyMs) continue
            slept = 0
            onSample(phase, memory)
        }
    }

    private fun look(walk: Boolean): Memory {
        val phase = phase
        val memory = probes.memory(walk)
        synchronized(taken) { taken.add(Taken(clock.nanos(), phase, memory)) }
        return memory
    }

    /** One more look where a phase ends, without a walk. */
    fun lookNow() {
        look(walk = false)
    }

    data class Seen(val samples: List<Sample>, val peak: Memory) {
        /** The most while something was encoded and what was left of it, of the memory that a person should look at. */
        val encoding: Map<String, Double> get() {
            val seen = samples.filter { it.phase == Phase.ENCODE }.mapNotNull { it.memory.headline?.toDouble() }
            return if (seen.isEmpty()) emptyMap() else mapOf("encode_peak_bytes" to seen.max(), "encoded_bytes" to seen.last())
        }
    }

    private companion object {
        const val QUICK_MS = 100L
    }
}

package org.pocketphi.core

enum class Phase(val json: String) { LOAD("load"), ENCODE("encode"), PREFILL("prefill"), DECODE("decode"), IDLE("idle") }

/** The process's memory, and what the system has left, in bytes; null where the device does not tell. */
data class Memory(
    val pss: Long?,
    val rss: Long?,
    val privateDirty: Long?,
    val nativeHeap: Long?,
    val available: Long?,
    /** [anonymous] and [swap] together, which Android's killers count. */
    val privateBytes: Long? = null,
    /** Resident. */
    val anonymous: Long? = null,
    val file: Long? = null,
    val swap: Long? = null,
) {
    /** The worse of both: the higher use, the lower rest. */
    fun worst(other: Memory) = Memory(
        highest(pss, other.pss), highest(rss, other.rss), highest(privateDirty, other.privateDirty),
        highest(nativeHeap, other.nativeHeap), listOfNotNull(available, other.available).minOrNull(),
        highest(privateBytes, other.privateBytes), highest(anonymous, other.anonymous), highest(file, other.file), highest(swap, other.swap),
    )

    /** What a person should look at: [pss] only where nothing else is known. */
    val headline: Long? get() = privateBytes ?: pss

    fun toJson(): Map<String, Any?> = linkedMapOf(
        "pss_bytes" to pss, "rss_bytes" to rss, "private_dirty_bytes" to privateDirty,
        "native_heap_bytes" to nativeHeap, "footprint_bytes" to null, "available_bytes" to available,
        "private_bytes" to privateBytes, "anonymous_bytes" to anonymous, "file_bytes" to file, "swap_bytes" to swap,
    )

    companion object {
        val UNKNOWN = Memory(null, null, null, null, null)

        private fun highest(one: Long?, other: Long?) = listOfNotNull(one, other).maxOrNull()
    }
}

/** [atMs] milliseconds since the repeat began. */
data class Sample(val atMs: Double, val phase: Phase, val memory: Memory) {
    fun toJson(): Map<String, Any?> = linkedMapOf("at_ms" to atMs, "phase" to phase.json, "memory" to memory.toJson())
}

/** The order is the severity's; Android's PowerManager counts the same way from 0. */
enum class ThermalStatus(val json: String) {
    NONE("none"), LIGHT("light"), MODERATE("moderate"), SEVERE("severe"),
    CRITICAL("critical"), EMERGENCY("emergency"), SHUTDOWN("shutdown"), UNKNOWN("unknown");

    /** The device slows itself down. */
    val throttles: Boolean get() = json in Contract.current.hot
}

data class Thermal(
    val status: ThermalStatus,
    val batteryCelsius: Double?,
    val batteryPercent: Double?,
    val lowPowerMode: Boolean?,
) {
    fun toJson(): Map<String, Any?> = linkedMapOf(
        "status" to status.json, "battery_celsius" to batteryCelsius,
        "battery_percent" to batteryPercent, "low_power_mode" to lowPowerMode,
    )

    companion object {
        val UNKNOWN = Thermal(ThermalStatus.UNKNOWN, null, null, null)
    }
}

/** What measures the device and this process. */
interface Probes {
    /** With [walk] also what the kernel walks through all pages for, which slows the process down meanwhile. */
    fun memory(walk: Boolean): Memory

    /** The system says that it is short of memory. */
    fun lowMemory(): Boolean = false

    fun thermal(): Thermal

    /** From here on [peakRss] counts anew; false where the system does not allow that. */
    fun resetPeakRss(): Boolean

    /** The most physical memory since the process, or its last reset, began, in bytes. */
    fun peakRss(): Long?
}

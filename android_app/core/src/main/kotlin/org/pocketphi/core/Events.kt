package org.pocketphi.core

import java.io.File
import java.io.IOException

/** What happens in a run, in its order. */
sealed interface Event {
    data class Started(val appVersion: String, val pid: Int) : Event
    data object Loading : Event
    data class Loaded(val loadMs: Double) : Event
    data class Counting(val configuration: Int) : Event
    data class Resting(val configuration: Int, val repeat: Int, val seconds: Int) : Event
    data class Warmup(val configuration: Int, val warmup: Int) : Event
    data class Repeating(val configuration: Int, val repeat: Int) : Event
    data class Token(val piece: String, val index: Int, val sinceFirstMs: Double) : Event
    data class Repeated(val configuration: Int, val index: Int, val repeat: Repeat, val soFar: Result) : Event
    data class Sampled(val phase: Phase, val memory: Memory) : Event
    data class LowMemory(val level: String) : Event
    data class Failed(val message: String) : Event
    data class Done(val file: String, val result: Result) : Event
}

/** Where progress lines go. */
fun interface LineSink {
    fun line(text: String)
}

/** Lines of one run in `RUN.progress.jsonl` of [folder], for programs that do not get the system's log. */
class ProgressFile(folder: File, run: String) : LineSink {
    private val file = File(folder, "$run.progress.jsonl")

    fun clear() {
        file.delete()
    }

    /** A full disk loses lines here; the result's own file says so. */
    override fun line(text: String) = synchronized(this) {
        try {
            file.parentFile.mkdirs()
            file.appendText(text + "\n")
        } catch (_: IOException) {
        }
    }
}

/** The lines of docs/app_protocol.md for a run's events; events that it does not name give none. */
class ProgressLines(private val run: String, private val sink: LineSink) {
    fun on(event: Event) {
        val (name, values) = when (event) {
            is Event.Started -> "started" to mapOf("app_version" to event.appVersion, "pid" to event.pid)
            Event.Loading -> "loading" to emptyMap()
            is Event.Loaded -> "loaded" to mapOf("load_ms" to event.loadMs)
            is Event.Warmup -> "warmup" to mapOf("configuration" to event.configuration, "warmup" to event.warmup)
            is Event.Repeated -> "repeat" to event.repeat.run {
                mapOf(
                    "configuration" to event.configuration, "repeat" to event.index,
                    "prefill_tokens_per_s" to prefillTokensPerS, "decode_tokens_per_s" to decodeTokensPerS,
                    "time_to_first_token_ms" to timeToFirstTokenMs, "peak_private_bytes" to peak.privateBytes,
                    "peak_pss_bytes" to peak.pss, "available_bytes" to peak.available, "thermal" to after.status.json,
                )
            }
            is Event.Sampled -> "memory" to mapOf(
                "private_bytes" to event.memory.privateBytes, "available_bytes" to event.memory.available, "phase" to event.phase.json,
            )
            is Event.LowMemory -> "low_memory" to mapOf("level" to event.level)
            is Event.Failed -> "error" to mapOf("message" to event.message)
            is Event.Done -> "done" to mapOf("file" to event.file)
            is Event.Counting, is Event.Resting, is Event.Repeating, is Event.Token -> return
        }
        sink.line(Json.write(linkedMapOf<String, Any?>("run" to run, "event" to name) + values))
    }
}

package org.pocketphi.core

import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale
import java.util.TimeZone

/** The result document of export/bench/contract/result.schema.json, as far as an Android app fills it. */
data class Result(
    val created: String,
    /** Null when complete, else a sentence. */
    val problem: String?,
    val device: Device,
    val build: Build,
    val model: Model,
    val runs: List<Run>,
) {
    val complete: Boolean get() = problem == null

    fun toJson(): Map<String, Any?> = linkedMapOf(
        "schema" to Contract.current.format,
        "created" to created,
        "status" to if (complete) "complete" else "incomplete",
        "problem" to problem,
        "device" to device.toJson(),
        "build" to build.toJson(),
        "model" to model.toJson(),
        "runs" to runs.map { it.toJson() },
    )

    companion object {
        /** [millis] since 1970 as the schema writes it. */
        fun utc(millis: Long): String = SimpleDateFormat("yyyy-MM-dd'T'HH:mm:ss'Z'", Locale.ROOT)
            .apply { timeZone = TimeZone.getTimeZone("UTC") }
            .format(Date(millis))
    }
}

data class Device(
    val model: String, val soc: String?, val ramBytes: Long?, val osVersion: String, val abi: String, val cores: Int?,
) {
    fun toJson(): Map<String, Any?> = linkedMapOf(
        "kind" to "android", "model" to model, "soc" to soc, "ram_bytes" to ramBytes, "os" to "Android",
        "os_version" to osVersion, "abi" to abi, "cores" to cores, "serial" to null,
    )
}

data class Build(val app: String, val appVersion: String, val engine: String, val executorch: String?) {
    fun toJson(): Map<String, Any?> =
        linkedMapOf("app" to app, "app_version" to appVersion, "engine" to engine, "executorch" to executorch)
}

data class Model(val file: String, val sizeBytes: Long, val sha256: String?, val tokenizer: String, val manifest: Manifest?) {
    fun toJson(): Map<String, Any?> = linkedMapOf(
        "file" to file, "size_bytes" to sizeBytes, "sha256" to sha256, "tokenizer" to tokenizer, "manifest" to manifest?.toJson(),
    )
}

/** What the exporter wrote beside the `.pte`. Lengths in tokens. */
data class Manifest(
    val checkpoint: String?,
    val recipe: String?,
    val contextTokens: Int?,
    val prefillChunkTokens: Int?,
    val kvCache: String?,
    val plannedBytes: Long?,
    /** What the file takes beside text. */
    val modes: Set<Mode> = setOf(Mode.TEXT),
) {
    fun toJson(): Map<String, Any?> = linkedMapOf(
        "checkpoint" to checkpoint, "recipe" to recipe, "context_tokens" to contextTokens,
        "prefill_chunk_tokens" to prefillChunkTokens, "kv_cache" to kvCache, "planned_memory_bytes" to plannedBytes,
    )

    companion object {
        /** Of the exporter's JSON; null where the text is something else. Keys that lack are null. */
        fun parse(text: String): Manifest? {
            val json = try {
                Json.read(text) as? Map<*, *>
            } catch (_: JsonError) {
                null
            } ?: return null
            val options = json["options"] as? Map<*, *> ?: return null
            val planned = json["planned"] as? Map<*, *>
            val parts = listOf("kv_cache_bytes", "activation_bytes").map { (planned?.get(it) as? Number)?.toLong() }
            return Manifest(
                (json["checkpoint"] as? Map<*, *>)?.get("name") as? String,
                // In older manifests the text stands where newer ones have the recipe's numbers.
                json["recipe"] as? String ?: options["recipe"] as? String,
                (options["context"] as? Number)?.toInt()?.takeIf { it > 0 },
                (options["prefill_chunk"] as? Number)?.toInt()?.takeIf { it > 0 },
                options["kv_cache"] as? String,
                if (null in parts) null else parts.sumOf { it!! },
                modes(json["media"] as? Map<*, *>),
            )
        }

        private fun modes(media: Map<*, *>?): Set<Mode> = setOfNotNull(
            Mode.TEXT, Mode.VISION.takeIf { media?.get("image") != null }, Mode.SPEECH.takeIf { media?.get("audio") != null },
        )
    }
}

data class Run(val configuration: Configuration, val repeats: List<Repeat>) {
    val summary: Map<String, Statistics?> get() = summary(repeats)

    fun toJson(): Map<String, Any?> = linkedMapOf(
        "configuration" to configuration.toJson(),
        "repeats" to repeats.map { it.toJson() },
        "summary" to summary.mapValues { it.value?.toJson() },
    )

    companion object {
        /** By the names of the contract's metrics, over the repeats that did not end in an error. */
        fun summary(repeats: List<Repeat>): Map<String, Statistics?> {
            val good = repeats.filter { it.stopReason != StopReason.ERROR }.map { it.toJson() }
            return Contract.current.metrics.associate { metric -> metric.name to Statistics.of(good.flatMap { metric.of(it) }) }
        }
    }
}

/** Of numbers by their names, those that are known. */
fun known(vararg numbers: Pair<String, Double?>): Map<String, Double> =
    numbers.mapNotNull { (name, number) -> number?.let { name to it } }.toMap()

data class Repeat(
    /** By the names of the contract's metrics; those that lack are not known. */
    val measures: Map<String, Double>,
    val promptTokens: Int,
    val generatedTokens: Int,
    val tokenMs: List<Double>,
    val samples: List<Sample>,
    val peak: Memory,
    val before: Thermal,
    val after: Thermal,
    val lowMemoryEvents: Int,
    val stopReason: StopReason,
    val notes: List<String>,
    /** Of the load that this repeat carries, by an engine that keeps packed weights. */
    val packing: Packing? = null,
    val packingNote: String? = null,
    val drafted: Int? = null,
    val accepted: Int? = null,
    /** Of the prompt. */
    val mediaTokens: Int? = null,
) {
    val throttled: Boolean get() = before.status.throttles || after.status.throttles

    val loadMs: Double? get() = measures["load_ms"]
    val timeToFirstTokenMs: Double? get() = measures["time_to_first_token_ms"]
    val prefillTokensPerS: Double? get() = measures["prefill_tokens_per_s"]
    val decodeTokensPerS: Double? get() = measures["decode_tokens_per_s"]

    fun toJson(): Map<String, Any?> = Contract.current.metrics.filter { it.measured }.associate { it.name to measures[it.name] } + linkedMapOf(
        "prompt_tokens" to promptTokens,
        "generated_tokens" to generatedTokens,
        "token_ms" to tokenMs,
        "memory" to linkedMapOf("samples" to samples.map { it.toJson() }, "peak" to peak.toJson()),
        "thermal" to linkedMapOf("before" to before.toJson(), "after" to after.toJson()),
        "throttled" to throttled,
        "low_memory_events" to lowMemoryEvents,
        "stop_reason" to stopReason.json,
        "notes" to notes,
    ) + buildMap {
        if (packing != null) putAll(mapOf("packing" to packing.json, "packing_note" to packingNote))
        if (mediaTokens != null) put("media_tokens", mediaTokens)
        if (drafted != null) putAll(mapOf("drafted_tokens" to drafted, "accepted_tokens" to (accepted ?: 0)))
    }
}

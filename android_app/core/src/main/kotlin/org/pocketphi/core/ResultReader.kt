package org.pocketphi.core

/** JSON to a [Result]: what this app wrote, or the runner, or another kind of device. */
object ResultReader {
    /** Throws [BadInput] that says what is wrong. */
    fun read(text: String): Result {
        try {
            val json = Json.read(text) as? Map<*, *> ?: throw BadInput("this is not a result but another kind of JSON.")
            val format = Contract.current.format
            if (json["schema"] != format) throw BadInput("its schema is ${json["schema"]}, but this app reads $format.")
            return result(At(json))
        } catch (problem: JsonError) {
            throw BadInput("${problem.message}.")
        }
    }

    private fun result(json: At) = Result(
        json.text("created"),
        if (json.text("status") == "complete") null else json.textOrNull("problem") ?: "Repeats are missing.",
        json.at("device").run {
            Device(text("model"), textOrNull("soc"), long("ram_bytes"), text("os_version"), text("abi"), long("cores")?.toInt())
        },
        json.at("build").run { Build(text("app"), text("app_version"), text("engine"), textOrNull("executorch")) },
        json.at("model").run {
            Model(text("file"), long("size_bytes") ?: 0, textOrNull("sha256"), text("tokenizer"), atOrNull("manifest")?.let { manifest(it) })
        },
        json.list("runs").map { run -> Run(configuration(run.at("configuration")), run.list("repeats").map { repeat(it) }) },
    )

    private fun manifest(json: At) = Manifest(
        json.textOrNull("checkpoint"), json.textOrNull("recipe"), json.long("context_tokens")?.toInt(),
        json.long("prefill_chunk_tokens")?.toInt(), json.textOrNull("kv_cache"), json.long("planned_memory_bytes"),
    )

    private fun configuration(json: At) = Configuration(
        json.int("prompt_tokens"), json.int("new_tokens"), json.int("repeats"), json.int("warmups"), json.int("cooldown_s"),
        LoadMode.entries.firstOrNull { it.json == json.text("load_mode") } ?: json.fail("load_mode"),
        json.long("draft_tokens")?.toInt() ?: 0,
        json.textOrNull("mode")?.let { word -> Mode.entries.firstOrNull { it.json == word } ?: json.fail("mode") } ?: Mode.TEXT,
    )

    private fun repeat(json: At) = Repeat(
        known(*Contract.current.metrics.filter { it.measured }.map { it.name to json.double(it.name) }.toTypedArray()),
        json.int("prompt_tokens"), json.int("generated_tokens"),
        json.numbers("token_ms"),
        json.at("memory").list("samples").map { sample ->
            Sample(
                sample.double("at_ms") ?: 0.0,
                Phase.entries.firstOrNull { it.json == sample.text("phase") } ?: sample.fail("phase"),
                memory(sample.at("memory")),
            )
        },
        memory(json.at("memory").at("peak")),
        thermal(json.at("thermal").at("before")),
        thermal(json.at("thermal").at("after")),
        json.int("low_memory_events"),
        StopReason.entries.firstOrNull { it.json == json.text("stop_reason") } ?: json.fail("stop_reason"),
        json.texts("notes"),
        json.textOrNull("packing")?.let { word -> Packing.entries.firstOrNull { it.json == word } ?: json.fail("packing") },
        json.textOrNull("packing_note"),
        json.long("drafted_tokens")?.toInt(),
        json.long("accepted_tokens")?.toInt(),
        json.long("media_tokens")?.toInt(),
    )

    private fun memory(json: At) = Memory(
        json.long("pss_bytes"), json.long("rss_bytes"), json.long("private_dirty_bytes"),
        json.long("native_heap_bytes"), json.long("available_bytes"), json.long("private_bytes"), json.long("anonymous_bytes"),
        json.long("file_bytes"), json.long("swap_bytes"),
    )

    private fun thermal(json: At) = Thermal(
        ThermalStatus.entries.firstOrNull { it.json == json.text("status") } ?: json.fail("status"),
        json.double("battery_celsius"), json.double("battery_percent"), json.values["low_power_mode"] as? Boolean,
    )

    /** One object of the document; a key of the wrong type is a [BadInput] that names it. */
    private class At(val values: Map<*, *>) {
        fun at(key: String) = atOrNull(key) ?: fail(key)

        fun atOrNull(key: String) = (values[key] as? Map<*, *>)?.let { At(it) }

        fun list(key: String) = (values[key] as? List<*> ?: fail(key)).map { At(it as? Map<*, *> ?: fail(key)) }

        fun numbers(key: String) = (values[key] as? List<*> ?: fail(key)).map { (it as? Number ?: fail(key)).toDouble() }

        fun texts(key: String) = (values[key] as? List<*> ?: fail(key)).map { it as? String ?: fail(key) }

        fun text(key: String) = textOrNull(key) ?: fail(key)

        fun textOrNull(key: String) = values[key] as? String

        fun long(key: String) = (values[key] as? Number)?.toLong()

        fun int(key: String) = double(key)?.toInt() ?: fail(key)

        fun double(key: String) = (values[key] as? Number)?.toDouble()

        fun fail(key: String): Nothing = throw BadInput("\"$key\" is missing or not what the format wants there.")
    }
}

package org.pocketphi.core

/** What may be asked for: the default and what is allowed. [choices] are words, else numbers from [least] to [most]. */
class Option(val default: Any, val range: LongRange, val choices: List<String>) {
    val number: Int get() = (default as Long).toInt()

    /** As a person or a program writes it: lengths with commas between. */
    val text: String get() = if (default is List<*>) default.joinToString(",") else default.toString()
}

/**
 * A number of every repeat: [place] is its keys there. [tolerance] is how much worse a median may be, a fraction; null
 * where that is not judged. The unit "bytes" is shown in megabytes.
 */
data class Metric(
    val name: String, val label: String, val unit: String, val moreIsBetter: Boolean, val tolerance: Double?, val place: List<String>,
) {
    /** Measured in the repeat itself, under its own name. */
    val measured: Boolean get() = place == listOf(name) && name != "token_ms"

    /** The values in a repeat's JSON: one, many where it is a series, none where it is not known. */
    fun of(repeat: Map<String, Any?>): List<Double> {
        val found = place.fold(repeat as Any?) { value, key -> (value as? Map<*, *>)?.get(key) }
        return (found as? List<*> ?: listOf(found)).mapNotNull { (it as? Number)?.toDouble() }
    }
}

/** What is measured, by which rules: export/bench/contract/bundled/contract.json, which the build puts beside these classes. */
class Contract(json: Map<*, *>) {
    val format = json["format"] as String
    val options: Map<String, Option> = json.map("options").entries.associate { (name, option) -> name as String to option(option as Map<*, *>) }
    val metrics: List<Metric> = json.list("metrics").map { metric(it as Map<*, *>) }
    /** For people: a run "with a picture". */
    val modeWords: Map<String, String> = json.map("modes").entries.associate { (mode, words) -> mode as String to words as String }
    private val media = json.map("media")
    val hot: List<String> = json.texts("hot")
    private val goingOn = json["going_on"] as String
    private val notes = json.map("notes")
    private val remarks = json.map("remarks")
    private val chat = json.map("chat")

    val turn = chat["turn"] as String
    val turnEnd = chat["end"] as String
    val stops: List<String> = chat.texts("stops")
    val chatTokens: Int = (chat["new_tokens"] as Long).toInt()

    fun option(name: String): Option = options.getValue(name)

    /** The problem of a result whose run has not ended. */
    fun goesOn(done: Int, all: Int): String = goingOn.filled("done" to done, "all" to all)

    /** A sentence that a repeat carries. */
    fun note(name: String, vararg values: Pair<String, Any>): String = (notes[name] as String).filled(*values)

    /** A sentence that a reader makes of a run's fields. */
    fun remark(name: String, vararg values: Pair<String, Any>): String = (remarks[name] as String).filled(*values)

    /** What is encoded in a run of [mode]; sound of [rate] samples a second. */
    fun standard(mode: Mode, rate: Int): List<Part> = when (mode) {
        Mode.TEXT -> emptyList()
        Mode.VISION -> listOf(StandardMedia.picture(media.number("width").toInt(), media.number("height").toInt()))
        Mode.SPEECH -> listOf(StandardMedia.sound(rate, media.number("seconds"), media.number("hertz"), media.number("loudness")))
    }

    private fun String.filled(vararg values: Pair<String, Any>) =
        values.fold(this) { text, (key, value) -> text.replace("{$key}", value.toString()) }

    private fun option(json: Map<*, *>) = Option(
        json["default"]!!, (json["least"] as Long? ?: 0)..(json["most"] as Long? ?: 0),
        if ("choices" in json) json.texts("choices") else emptyList(),
    )

    private fun metric(json: Map<*, *>): Metric {
        val name = json["name"] as String
        return Metric(
            name, json["label"] as String, json["unit"] as String, json["better"] == "higher",
            (json["tolerance"] as Number?)?.toDouble(), (json["from"] as String? ?: name).split('.'),
        )
    }

    private fun Map<*, *>.map(key: String) = this[key] as Map<*, *>

    private fun Map<*, *>.list(key: String) = this[key] as List<*>

    private fun Map<*, *>.number(key: String) = (this[key] as Number).toDouble()

    private fun Map<*, *>.texts(key: String) = list(key).map { it as String }

    companion object {
        /** The one that holds; tests put another here to see that it is read. */
        @Volatile var current: Contract = Contract(Json.read(bundled()) as Map<*, *>)

        /** The file as it was bundled. */
        fun bundled(): String =
            checkNotNull(Contract::class.java.getResourceAsStream("contract.json")) { "The build left contract.json out." }
                .bufferedReader().use { it.readText() }
    }
}

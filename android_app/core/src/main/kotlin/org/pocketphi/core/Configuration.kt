package org.pocketphi.core

enum class LoadMode(val json: String) { ONCE("once"), EACH("each") }

/** One thing to measure: so many tokens in, so many out, so often. Times in seconds. */
data class Configuration(
    val promptTokens: Int,
    val newTokens: Int,
    val repeats: Int,
    val warmups: Int,
    val cooldownS: Int,
    val loadMode: LoadMode,
    val draftTokens: Int = 0,
    /** Beside text the standard picture or sound. */
    val mode: Mode = Mode.TEXT,
) {
    fun toJson(): Map<String, Any?> = linkedMapOf<String, Any?>(
        "prompt_tokens" to promptTokens, "new_tokens" to newTokens, "repeats" to repeats,
        "warmups" to warmups, "cooldown_s" to cooldownS, "load_mode" to loadMode.json,
    ) + buildMap {
        if (mode != Mode.TEXT) put("mode", mode.json)
        if (draftTokens > 0) put("draft_tokens", draftTokens)
    }

    /** The same lengths and modes are worth comparing, whatever the number of repeats. */
    fun sameLengths(other: Configuration) = promptTokens == other.promptTokens && newTokens == other.newTokens && mode == other.mode
}

/** A whole run: one configuration for each of the prompt's lengths, and one for each other mode with the first of them. Paths are absolute and on the device. */
data class RunRequest(
    val name: String,
    val model: String,
    val tokenizer: String,
    val modelSha256: String?,
    val configurations: List<Configuration>,
    val promptFiles: List<String>,
    val settings: EngineSettings = EngineSettings(),
    /** Measured even where [Preflight] would refuse. */
    val ignoreMemory: Boolean = false,
) {
    val repeats: Int get() = configurations.sumOf { it.repeats }

    companion object {
        private val NAME = Regex("[a-z0-9-]{1,64}")
        private val SHA256 = Regex("[0-9a-f]{64}")
        private val THREADS = 0L..64
        private val DRAFTS = 0L..64

        /**
         * The run that the extras of an intent (docs/app_protocol.md), or the fields of the screen, ask for.
         * Values are String or Int; throws [BadInput] that names the extra and its value.
         */
        fun parse(extras: Map<String, Any?>): RunRequest {
            val newTokens = int(extras, "new_tokens")
            val repeats = int(extras, "repeats")
            val warmups = int(extras, "warmups")
            val cooldown = int(extras, "cooldown_s")
            val word = extras["load_mode"] ?: Contract.current.option("load_mode").text
            val mode = LoadMode.entries.firstOrNull { it.json == word }
                ?: throw BadInput("load_mode is \"$word\", but only \"once\" and \"each\" exist.")
            val lengths = lengths((extras["prompt_tokens"] ?: Contract.current.option("prompt_tokens").text).toString())
            val files = (extras["prompt_files"] as String?).orEmpty().split(',').map { it.trim() }.filter { it.isNotEmpty() }
            if (files.isNotEmpty() && files.size != lengths.size) {
                throw BadInput("prompt_files names ${files.size} files, but prompt_tokens has ${lengths.size} lengths.")
            }
            val sha256 = (extras["model_sha256"] as String?)?.takeIf { it.isNotEmpty() }
            if (sha256 != null && !SHA256.matches(sha256)) {
                throw BadInput("model_sha256 is \"$sha256\", which is not 64 lower-case hex digits.")
            }
            val modes = modes((extras["modes"] as String?).orEmpty())
            val settings = EngineSettings(int(extras, "threads", 0, THREADS), int(extras, "draft_tokens", 0, DRAFTS))
            return RunRequest(
                name(extras["run"] as String?), path(extras, "model"), path(extras, "tokenizer"), sha256,
                lengths.filter { Mode.TEXT in modes }.map { Configuration(it, newTokens, repeats, warmups, cooldown, mode, settings.draftTokens) } +
                    modes.filter { it != Mode.TEXT }
                        .map { Configuration(lengths[0], newTokens, repeats, warmups, cooldown, mode, settings.draftTokens, it) },
                files, settings,
                int(extras, "ignore_memory", 0, 0L..1) == 1,
            )
        }

        /** A run's name is a file's name too, so it is checked before anything is written under it. */
        fun name(name: String?): String {
            if (name == null) throw BadInput("The extra \"run\" is missing: every run needs a name.")
            if (!isName(name)) {
                throw BadInput("The run's name is \"$name\"; 1 to 64 of a-z, 0-9 and - are allowed.")
            }
            return name
        }

        fun isName(name: String) = NAME.matches(name)

        private fun path(extras: Map<String, Any?>, key: String): String {
            val path = extras[key] as String?
            if (path.isNullOrEmpty()) throw BadInput("The extra \"$key\" is missing: it names a file on the device.")
            if (!path.startsWith("/")) throw BadInput("$key is \"$path\", which is not an absolute path.")
            return path
        }

        /** Text alone where nothing is asked for. */
        private fun modes(text: String): List<Mode> {
            if (text.isBlank()) return listOf(Mode.TEXT)
            val found = text.split(',').map { word -> Mode.entries.firstOrNull { it.json == word.trim() } }
            if (null in found || found.toSet().size < found.size) {
                throw BadInput("modes is \"$text\"; it wants words of ${Mode.entries.joinToString { it.json }}, each once, with commas between.")
            }
            return found.filterNotNull()
        }

        private fun lengths(text: String): List<Int> {
            val range = Contract.current.option("prompt_tokens").range
            return text.split(',').map { part ->
                part.trim().toIntOrNull()?.takeIf { it in range } ?: throw BadInput(
                    "prompt_tokens is \"$text\"; it wants whole numbers from ${range.first} to ${range.last} with commas " +
                        "between them, such as 64,512.",
                )
            }
        }

        private fun int(extras: Map<String, Any?>, key: String): Int =
            Contract.current.option(key).let { int(extras, key, it.number, it.range) }

        private fun int(extras: Map<String, Any?>, key: String, default: Int, range: LongRange): Int {
            val given = extras[key] ?: return default
            val number = given as? Int ?: given.toString().trim().toIntOrNull()
            if (number == null || number !in range) {
                throw BadInput("$key is \"$given\"; it wants a whole number from ${range.first} to ${range.last}.")
            }
            return number
        }
    }
}

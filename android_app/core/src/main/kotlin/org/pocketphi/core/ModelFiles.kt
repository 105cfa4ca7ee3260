package org.pocketphi.core

import java.io.File
import java.io.IOException

/** Models and tokenizers in folders of the device. */
object ModelFiles {
    /** Where the runner, or a person with adb, pushes models to. */
    const val PUSHED = "/data/local/tmp/pocketphi"

    data class Found(val models: List<File>, val tokenizers: List<File>)

    /** Sorted by name; folders that cannot be read hold nothing. */
    fun find(folders: List<File>): Found {
        val files = folders.flatMap { it.listFiles { file -> file.isFile }.orEmpty().toList() }.sortedBy { it.name }
        return Found(files.filter { isModel(it.name) }, files.filter { isTokenizer(it.name) })
    }

    fun isModel(name: String) = name.endsWith(".pte")

    /** The exporter names it after the model; upstream's tools use these names. */
    fun isTokenizer(name: String) = name.endsWith("tokenizer.json") || name.endsWith("tokenizer.model") ||
        name.endsWith("tokenizer.bin") || name.endsWith(".tiktoken")

    /** The tokenizer that belongs to [model], most likely: same beginning, else same folder, else any. */
    fun tokenizerFor(model: File, tokenizers: List<File>): File? =
        tokenizers.filter { it.parentFile == model.parentFile && it.name.startsWith(model.nameWithoutExtension) }.firstOrNull()
            ?: tokenizers.firstOrNull { it.parentFile == model.parentFile }
            ?: tokenizers.firstOrNull()

    /** [path] as a file that can be read; throws [BadInput] that names [what] it is. */
    fun readable(path: String, what: String): File {
        val file = File(path)
        return when {
            !file.exists() -> throw BadInput("The $what $path is not on this device, or apps may not see it.")
            !file.isFile -> throw BadInput("The $what $path is not a file.")
            !file.canRead() -> throw BadInput("The $what $path may not be read by apps: run chmod a+r on it in adb shell.")
            file.length() == 0L -> throw BadInput("The $what $path is empty.")
            else -> file
        }
    }

    /** What the exporter wrote beside [model], null without it. */
    fun manifest(model: File): Manifest? = try {
        File(model.parentFile, model.nameWithoutExtension + ".json").takeIf { it.isFile }?.let { Manifest.parse(it.readText()) }
    } catch (_: IOException) {
        null
    }
}

package org.pocketphi.core

import java.io.File
import java.util.Locale

/** What can be known of a run before it begins. */
object Preflight {
    /** Throws [BadInput] where a length is more than the model's context holds. */
    fun checkContext(configurations: List<Configuration>, manifest: Manifest?) {
        val context = manifest?.contextTokens ?: return
        for (one in configurations) {
            if (one.promptTokens + one.newTokens <= context) continue
            throw BadInput("${one.promptTokens} prompt tokens and ${one.newTokens} new ones do not fit the model's context of $context tokens.")
        }
    }

    /**
     * Throws [BadInput] where memory would run out: all that is planned and, unless they can lie in a file of [packed],
     * all weights must fit what is [available]. A null [packed]: the engine keeps none.
     */
    fun checkMemory(model: Model, available: Long?, packed: PackedWeights?) {
        val planned = model.manifest?.plannedBytes ?: 0
        val inFile = packed != null && (packed.bytes() > 0 || packed.free() >= model.sizeBytes)
        val weights = if (inFile) 0 else model.sizeBytes
        if (available == null || planned + weights <= available) return
        val parts = listOfNotNull(if (weights > 0) "${size(weights)} of weights" else null, if (planned > 0) "${size(planned)} planned" else null)
        val storage = if (packed == null || inFile) "" else " Packed weights would not count, but ${size(packed.free())} of storage are too few for them."
        throw BadInput(
            "${model.file} needs ${size(planned + weights)} of memory (${parts.joinToString()}), ${size(available)} are free: close apps.$storage",
        )
    }
}

/** "2.17 GB", "554.9 MB". */
fun size(bytes: Long): String =
    if (bytes >= 1e9) String.format(Locale.ROOT, "%.2f GB", bytes / 1e9) else String.format(Locale.ROOT, "%.1f MB", bytes / 1e6)

/** Where the engine keeps packed weights between starts: files of a folder that is its alone. */
class PackedWeights(val folder: File) {
    fun bytes(): Long = files().sumOf { it.length() }

    fun free(): Long = generateSequence(folder) { it.parentFile }.first { it.exists() }.usableSpace

    /** Of no use to an engine that is loaded: what it has mapped stays until it is closed. */
    fun delete() = files().forEach { it.delete() }

    private fun files() = folder.listFiles().orEmpty().filter { it.isFile }
}

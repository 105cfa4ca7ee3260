package org.pocketphi.core

import java.io.File
import java.io.FileOutputStream
import java.io.IOException

/** A result that lies in a file; [name] is the run's. */
class SavedResult(val file: File, val result: Result) {
    val name: String get() = file.name.removeSuffix(".json")
}

/** Results as files `RUN.json` of one [folder]. */
class ResultFiles(val folder: File) {
    fun file(run: String) = File(folder, "$run.json")

    /** Whole or not at all: written aside, forced to the disk, renamed. Throws [BadInput] where that fails. */
    fun write(run: String, result: Result): File {
        val file = file(run)
        val aside = File(folder, "${file.name}.partial")
        try {
            folder.mkdirs()
            FileOutputStream(aside).use {
                it.write((Json.write(result.toJson(), 1) + "\n").toByteArray())
                it.flush()
                it.fd.sync()
            }
            if (!aside.renameTo(file)) throw IOException("it could not be renamed")
        } catch (problem: IOException) {
            aside.delete()
            throw BadInput("The result could not be written to $file: ${problem.message}.")
        }
        return file
    }

    /** Newest first. Files that are no results are left out. */
    fun list(): List<SavedResult> = folder.listFiles { file -> file.name.endsWith(".json") }.orEmpty()
        .mapNotNull { file ->
            try {
                SavedResult(file, read(file))
            } catch (_: BadInput) {
                null
            }
        }
        .sortedWith(compareByDescending<SavedResult> { it.result.created }.thenBy { it.name })

    /** Throws [BadInput] where [file] is no result of this format. */
    fun read(file: File): Result = try {
        ResultReader.read(file.readText())
    } catch (problem: IOException) {
        throw BadInput("${file.name} could not be read: ${problem.message}.")
    } catch (problem: BadInput) {
        throw BadInput("${file.name}: ${problem.message}")
    }
}

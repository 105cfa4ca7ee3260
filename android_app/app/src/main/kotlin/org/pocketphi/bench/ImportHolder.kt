package org.pocketphi.bench

import android.net.Uri
import android.os.Handler
import android.os.Looper
import android.provider.OpenableColumns
import org.pocketphi.core.ModelFiles
import java.io.File
import java.io.IOException

/** What a screen shows of a copy; bytes, [total] 0 where the other app does not tell. */
data class ImportState(
    val name: String = "", val copied: Long = 0, val total: Long = 0, val active: Boolean = false, val problem: String? = null,
    val file: File? = null,
)

/** Copies a document that a person picked into the app's folder: the engine wants a path. Main thread, but for the copying. */
class ImportHolder(private val app: BenchApp) {
    private val main = Handler(Looper.getMainLooper())
    private val listeners = LinkedHashSet<(ImportState) -> Unit>()
    @Volatile private var cancelled = false

    var state = ImportState()
        private set

    fun listen(listener: (ImportState) -> Unit) {
        listeners.add(listener)
        listener(state)
    }

    fun unlisten(listener: (ImportState) -> Unit) {
        listeners.remove(listener)
    }

    fun cancel() {
        cancelled = true
    }

    fun start(uri: Uri) {
        if (state.active) {
            tell(state.copy(problem = app.getString(R.string.import_busy)))
            return
        }
        val (name, total) = describe(uri)
        if (!ModelFiles.isModel(name) && !ModelFiles.isTokenizer(name)) {
            return tell(ImportState(name, problem = app.getString(R.string.import_wrong_kind, name)))
        }
        app.models.mkdirs()
        val free = app.models.usableSpace
        if (total > free) {
            val problem = app.getString(R.string.import_no_space, name, Format.bytes(total), Format.bytes(free))
            return tell(ImportState(name, problem = problem))
        }
        cancelled = false
        tell(ImportState(name, 0, total, active = true))
        Thread({ copy(uri, name, total) }, "import").start()
    }

    private fun describe(uri: Uri): Pair<String, Long> {
        app.contentResolver.query(uri, arrayOf(OpenableColumns.DISPLAY_NAME, OpenableColumns.SIZE), null, null, null)?.use { cursor ->
            if (cursor.moveToFirst()) {
                val name = cursor.getString(0) ?: uri.lastPathSegment.orEmpty()
                return File(name).name to (if (cursor.isNull(1)) 0 else cursor.getLong(1))
            }
        }
        return File(uri.lastPathSegment.orEmpty()).name to 0
    }

    private fun copy(uri: Uri, name: String, total: Long) {
        val aside = File(app.models, "$name.partial")
        val file = File(app.models, name)
        val problem = try {
            val input = app.contentResolver.openInputStream(uri) ?: throw IOException("the other app gives no data")
            input.use { from ->
                aside.outputStream().use { to ->
                    val buffer = ByteArray(BUFFER)
                    var copied = 0L
                    var told = 0L
                    while (!cancelled) {
                        val count = from.read(buffer)
                        if (count < 0) break
                        to.write(buffer, 0, count)
                        copied += count
                        if (copied - told >= TELL_EVERY) {
                            told = copied
                            val now = ImportState(name, copied, total, active = true)
                            main.post { tell(now) }
                        }
                    }
                    to.fd.sync()
                    if (!cancelled && total > 0 && copied != total) throw IOException("$copied of $total bytes came")
                }
            }
            if (!cancelled && !aside.renameTo(file)) throw IOException("it could not be renamed")
            null
        } catch (failure: IOException) {
            app.getString(R.string.import_failed, name, failure.message)
        } catch (failure: SecurityException) {
            app.getString(R.string.import_failed, name, failure.message)
        }
        aside.delete()
        val copied = if (problem == null && !cancelled) file else null
        main.post { tell(ImportState(name, problem = problem, file = copied)) }
    }

    private fun tell(next: ImportState) {
        state = next
        listeners.toList().forEach { it(next) }
    }

    private companion object {
        const val BUFFER = 1 shl 20
        const val TELL_EVERY = 8L shl 20
    }
}

package org.pocketphi.bench

import android.content.ContentProvider
import android.content.ContentValues
import android.content.Intent
import android.database.Cursor
import android.database.MatrixCursor
import android.net.Uri
import android.provider.OpenableColumns
import android.view.View
import android.widget.LinearLayout
import android.widget.TextView
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.shadows.ShadowDialog
import java.io.ByteArrayInputStream
import java.io.FileNotFoundException
import java.io.InputStream

/** Another app that has one document, of the name that is asked for. */
class Documents : ContentProvider() {
    var size = 0L

    override fun onCreate() = true

    override fun query(uri: Uri, columns: Array<String>?, selection: String?, arguments: Array<String>?, order: String?): Cursor =
        MatrixCursor(arrayOf(OpenableColumns.DISPLAY_NAME, OpenableColumns.SIZE)).apply { addRow(listOf(uri.lastPathSegment, size)) }

    override fun getType(uri: Uri): String? = null
    override fun insert(uri: Uri, values: ContentValues?): Uri? = null
    override fun update(uri: Uri, values: ContentValues?, selection: String?, arguments: Array<String>?) = 0
    override fun delete(uri: Uri, selection: String?, arguments: Array<String>?) = 0
}

/** Files that come into the app and go out of it. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [34])
class FilesTest {
    private fun document(
        name: String, bytes: ByteArray, stream: InputStream = ByteArrayInputStream(bytes), size: Long = bytes.size.toLong(),
    ): Uri {
        val uri = Uri.parse("content://documents/$name")
        Robolectric.setupContentProvider(Documents::class.java, "documents").size = size
        shadowOf(app.contentResolver).registerInputStream(uri, stream)
        return uri
    }

    private fun MainActivity.import(uri: Uri) {
        click(R.id.import_file)
        val started = shadowOf(this).nextStartedActivityForResult
        assertEquals(Intent.ACTION_OPEN_DOCUMENT, started.intent.action)
        shadowOf(this).receiveResult(started.intent, android.app.Activity.RESULT_OK, Intent().setData(uri))
    }

    @Test
    fun importing() {
        val bytes = ByteArray(20_000_000) { (it % 251).toByte() }
        Robolectric.buildActivity(MainActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            screen.import(document("mini.pte", bytes))
            waitFor("the copy") { !app.imports.state.active }
            assertEquals("mini.pte is here.", screen.text(R.id.import_state))
            assertArrayEquals(bytes, app.models.resolve("mini.pte").readBytes())
            assertEquals("mini.pte", screen.text(R.id.model))
            assertEquals(View.GONE, screen.findViewById<View>(R.id.import_progress).visibility)
            screen.import(document("notes.txt", ByteArray(3)))
            idle()
            assertTrue(screen.text(R.id.import_state).startsWith("notes.txt is neither a .pte nor a tokenizer"))
            screen.import(document("huge.pte", ByteArray(3), size = Long.MAX_VALUE / 2))
            idle()
            assertTrue(screen.text(R.id.import_state), screen.text(R.id.import_state).startsWith("huge.pte needs "))
        }
    }

    @Test
    fun anImportThatBreaksOffLeavesNothing() {
        val broken = object : InputStream() {
            private var left = 3_000_000
            override fun read(): Int = throw UnsupportedOperationException()
            override fun read(bytes: ByteArray, offset: Int, length: Int): Int {
                if (left <= 0) throw java.io.IOException("the card was taken out")
                left -= length
                return length
            }
        }
        Robolectric.buildActivity(MainActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            screen.import(document("mini.pte", ByteArray(5_000_000), broken))
            waitFor("the copy") { !app.imports.state.active }
            assertEquals("mini.pte could not be copied: the card was taken out", screen.text(R.id.import_state))
            screen.import(document("short.pte", ByteArray(10), size = 20))
            waitFor("the copy") { !app.imports.state.active }
            assertEquals("short.pte could not be copied: 10 of 20 bytes came", screen.text(R.id.import_state))
            assertEquals(emptyList<String>(), app.models.list()!!.toList())
        }
    }

    @Test
    fun cancellingAnImport() {
        val endless = object : InputStream() {
            override fun read(): Int = throw UnsupportedOperationException()
            override fun read(bytes: ByteArray, offset: Int, length: Int): Int = length.also { Thread.sleep(1) }
        }
        Robolectric.buildActivity(MainActivity::class.java).use { controller ->
            val screen = controller.setup().get()
            screen.import(document("mini.pte", ByteArray(0), endless))
            waitFor("progress") { app.imports.state.copied > 0 }
            assertEquals(View.VISIBLE, screen.findViewById<View>(R.id.import_progress).visibility)
            assertTrue(screen.text(R.id.import_state).startsWith("Copying mini.pte: "))
            screen.click(R.id.import_file)
            waitFor("the end") { !app.imports.state.active }
            assertEquals(emptyList<String>(), app.models.list()!!.toList())
        }
    }

    @Test
    fun sharing() {
        val file = app.results.write("run-1", ScreensTest.result(64, 17.0))
        Robolectric.buildActivity(ResultActivity::class.java, Intent().putExtra(ResultActivity.FILE, file.path)).use { controller ->
            controller.setup().get().click(R.id.action_two)
            val chooser = shadowOf(controller.get()).nextStartedActivity
            val send = chooser.getParcelableExtra(Intent.EXTRA_INTENT, Intent::class.java)!!
            assertEquals(Intent.ACTION_SEND, send.action)
            assertEquals("application/json", send.type)
            assertTrue(send.flags and Intent.FLAG_GRANT_READ_URI_PERMISSION != 0)
            val uri = send.getParcelableExtra(Intent.EXTRA_STREAM, Uri::class.java)!!
            assertEquals("content://org.pocketphi.bench.share/run-1.json", uri.toString())
            Robolectric.setupContentProvider(ShareProvider::class.java, "org.pocketphi.bench.share")
            assertArrayEquals(file.readBytes(), app.contentResolver.openInputStream(uri)!!.use { it.readBytes() })
            app.contentResolver.query(uri, null, null, null, null)!!.use { cursor ->
                cursor.moveToFirst()
                assertEquals("run-1.json", cursor.getString(0))
                assertEquals(file.length(), cursor.getLong(1))
            }
        }
    }

    @Test
    fun nothingElseCanBeRead() {
        val provider = Robolectric.setupContentProvider(ShareProvider::class.java, "org.pocketphi.bench.share")
        app.results.write("run-1", ScreensTest.result(64, 17.0))
        app.results.folder.resolve("secret.txt").writeText("x")
        val prefix = "content://org.pocketphi.bench.share/"
        for (path in listOf("secret.txt", "none.json", "..%2Frun-1.json", "a/run-1.json", "", "..")) {
            assertThrows(path, FileNotFoundException::class.java) { provider.openFile(Uri.parse(prefix + path), "r") }
        }
        assertThrows(FileNotFoundException::class.java) { provider.openFile(Uri.parse(prefix + "run-1.json"), "rw") }
        assertEquals(0, provider.delete(Uri.parse(prefix + "run-1.json"), null, null))
        assertTrue(app.results.file("run-1").exists())
    }

    @Test
    fun historyAndComparison() {
        app.results.write("run-1", ScreensTest.result(64, 15.0).copy(created = "2026-11-01T10:00:00Z"))
        val new = app.results.write("run-2", ScreensTest.result(64, 17.0))
        app.results.write("run-3", ScreensTest.result(512, 17.0))
        Robolectric.buildActivity(HistoryActivity::class.java).use { controller ->
            val list = controller.setup().get().findViewById<LinearLayout>(R.id.list)
            assertEquals(3, list.childCount)
            assertTrue(list.getChildAt(0).performClick())
            val opened = shadowOf(controller.get()).nextStartedActivity
            assertEquals(new.path, opened.getStringExtra(ResultActivity.FILE))
        }
        Robolectric.buildActivity(ResultActivity::class.java, Intent().putExtra(ResultActivity.FILE, new.path)).use { controller ->
            val screen = controller.setup().get()
            screen.click(R.id.action_one)
            val dialog = ShadowDialog.getLatestDialog() as android.app.AlertDialog
            assertEquals(1, dialog.listView.count)
            shadowOf(dialog).clickOnItem(0)
            idle()
            assertTrue(texts(screen.findViewById(R.id.list)).containsAll(listOf("Compared with run-1", "14.6", "16.6", "+13.7 %")))
            controller.recreate()
            assertTrue(texts(controller.get().findViewById(R.id.list)).contains("Compared with run-1"))
        }
    }

    @Test
    fun aDamagedResultIsASentence() {
        app.results.folder.mkdirs()
        val file = app.results.file("run-1").apply { writeText("{\"schema\": 3}") }
        Robolectric.buildActivity(ResultActivity::class.java, Intent().putExtra(ResultActivity.FILE, file.path)).use { controller ->
            val screen = controller.setup().get()
            assertEquals("run-1.json: its schema is 3, but this app reads pocketphi-result/1.", screen.text(R.id.problem))
            assertFalse(screen.findViewById<View>(R.id.action_two).isShown)
        }
    }

    private fun texts(view: View): List<String> = when (view) {
        is TextView -> listOf(view.text.toString())
        is android.view.ViewGroup -> (0 until view.childCount).flatMap { texts(view.getChildAt(it)) }
        else -> emptyList()
    }
}

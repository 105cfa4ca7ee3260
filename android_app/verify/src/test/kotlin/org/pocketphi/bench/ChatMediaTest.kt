package org.pocketphi.bench

import android.Manifest
import android.app.Activity
import android.app.Application
import android.content.Intent
import android.content.pm.PackageManager
import android.graphics.Bitmap
import android.net.Uri
import android.provider.MediaStore
import android.view.View
import android.widget.ImageView
import android.widget.LinearLayout
import android.widget.TextView
import org.junit.After
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNotNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Rule
import org.junit.Test
import org.junit.runner.RunWith
import org.pocketphi.core.EngineError
import org.pocketphi.core.EngineFactory
import org.pocketphi.core.Part
import org.pocketphi.core.Settings
import org.pocketphi.core.Takes
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.shadows.ShadowAudioRecord
import org.robolectric.shadows.ShadowPopupMenu
import java.io.ByteArrayInputStream
import java.io.ByteArrayOutputStream
import java.io.FileNotFoundException

/** Pictures and sound in a conversation, from the button to the engine. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [34])
class ChatMediaTest {
    @get:Rule val noRunLeft = NoRunLeft()
    private val engine = ScriptedEngine().apply {
        endOfTurnAfter = 4
        takes = BOTH
    }

    @Before
    fun engine() {
        app.ownEngine = true
        app.engines = EngineFactory { _, _, _, _ -> engine }
        pushModel(media = true)
        app.settings.keep(Settings(pictureSide = 64))
    }

    @After
    fun silence() = ShadowAudioRecord.clearSource()

    private fun open(test: (ChatActivity) -> Unit) = Robolectric.buildActivity(ChatActivity::class.java).use { test(it.setup().get()) }

    private fun ChatActivity.offered(): List<String> {
        click(R.id.attach)
        val menu = ShadowPopupMenu.getLatestPopupMenu().menu
        return (0 until menu.size()).map { menu.getItem(it).title.toString() }
    }

    private fun ChatActivity.ask(text: String) {
        type(R.id.question, text)
        click(R.id.send)
    }

    private fun ChatActivity.cards(id: Int) = findViewById<LinearLayout>(id).let { row -> (0 until row.childCount).map { row.getChildAt(it) } }

    private fun picture(width: Int = 128, height: Int = 64): Uri {
        val bytes = ByteArrayOutputStream()
        Bitmap.createBitmap(IntArray(width * height) { if (it % width < width / 2) RED else BLUE }, width, height, Bitmap.Config.ARGB_8888)
            .compress(Bitmap.CompressFormat.PNG, 100, bytes)
        val uri = Uri.parse("content://pictures/$width-$height.png")
        shadowOf(app.contentResolver).registerInputStreamSupplier(uri) { ByteArrayInputStream(bytes.toByteArray()) }
        return uri
    }

    private fun ChatActivity.attachPicture(uri: Uri = picture()) {
        pick()
        val started = shadowOf(this).nextStartedActivityForResult
        shadowOf(this).receiveResult(started.intent, Activity.RESULT_OK, Intent().setData(uri))
        waitFor("the picture") { app.media.state.reading == 0 }
    }

    private fun ChatActivity.attachSound() {
        shadowOf(app as Application).grantPermissions(Manifest.permission.RECORD_AUDIO)
        setMicrophone(Microphone(pieces = 5) { Thread.sleep(2).let { 0 } })
        record()
        waitFor("half a second of sound") { app.media.state.recorded == 8000 }
        click(R.id.recorder_stop)
        waitFor("the recording's end") { app.media.state.recorded == null }
    }

    @Test
    fun onlyWhatTheFileTakesIsOffered() {
        open { assertEquals(listOf("Choose a picture", "Take a picture", "Record sound"), it.offered()) }
        engine.takes = Takes(pictures = false, sound = true, soundRate = 16_000)
        open { screen ->
            screen.ask("Hello")
            waitFor("the answer") { !app.chat.state.busy }
            assertEquals("the load knows better than the manifest", listOf("Record sound"), screen.offered())
        }
        pushModel()
        app.chat.close().get()
        idle()
        open { assertEquals(View.GONE, it.findViewById<View>(R.id.attach).visibility) }
        pushModel(media = true)
        app.ownEngine = false
        open { assertEquals("upstream's engine takes none", View.GONE, it.findViewById<View>(R.id.attach).visibility) }
    }

    @Test
    fun aPictureIsReadShownSentAndKept() = open { screen ->
        screen.attachPicture()
        val card = screen.cards(R.id.pending).single()
        assertEquals("Picture of 64 × 32 pixels", card.findViewById<ImageView>(R.id.attachment).contentDescription)
        assertNotNull(card.findViewById<ImageView>(R.id.attachment).drawable)
        screen.attachPicture(picture(16, 16))
        screen.cards(R.id.pending)[1].findViewById<View>(R.id.attachment_remove).performClick()
        idle()
        screen.ask("What is this?")
        waitFor("the answer") { !app.chat.state.busy }
        assertEquals("<|user|>[picture 64x32]What is this?<|end|><|assistant|>", engine.prompts.single())
        val sent = engine.parts.filterIsInstance<Part.Picture>().single()
        assertArrayEquals(byteArrayOf(-1, 0, 0), sent.rgb.copyOf(3))
        assertArrayEquals(byteArrayOf(0, 0, -1), sent.rgb.copyOfRange(3 * 63, 3 * 64))
        assertEquals(View.GONE, screen.findViewById<View>(R.id.pending_row).visibility)
        assertEquals(1, screen.cards(R.id.turns)[0].findViewById<LinearLayout>(R.id.bubble_media).childCount)
        assertTrue(screen.text(R.id.chat_state), "encoded in 0.05 s" in screen.text(R.id.chat_state))
        screen.recreate()
        assertEquals(1, screen.cards(R.id.turns)[0].findViewById<LinearLayout>(R.id.bubble_media).childCount)
        screen.ask("And now?")
        waitFor("the answer") { !app.chat.state.busy }
        assertEquals("the engine has it", "<|end|><|user|>And now?<|end|><|assistant|>", engine.prompts[1])
    }

    @Test
    fun soundIsRecordedWithAPermissionAskedForThen() = open { screen ->
        screen.record()
        assertEquals(listOf(Manifest.permission.RECORD_AUDIO), shadowOf(screen).lastRequestedPermission.requestedPermissions.toList())
        screen.onRequestPermissionsResult(3, arrayOf(Manifest.permission.RECORD_AUDIO), intArrayOf(PackageManager.PERMISSION_DENIED))
        assertEquals("Recording was not allowed; the phone's settings can allow it.", screen.text(R.id.problem))
        screen.attachSound()
        assertEquals("", screen.text(R.id.problem))
        val card = screen.cards(R.id.pending).single()
        assertEquals("0:00", card.findViewById<TextView>(R.id.attachment_text).text)
        screen.attachPicture()
        screen.ask("")
        waitFor("the answer") { !app.chat.state.busy }
        assertEquals("<|user|>[sound 8000][picture 64x32]<|end|><|assistant|>", engine.prompts.single())
        assertEquals(16_000, engine.parts.filterIsInstance<Part.Sound>().single().rate)
    }

    @Test
    fun whileItRecordsTheTimeIsShownAndNothingIsSent() = open { screen ->
        shadowOf(app as Application).grantPermissions(Manifest.permission.RECORD_AUDIO)
        setMicrophone(Microphone(pieces = 3) { Thread.sleep(5).let { 0 } })
        screen.record()
        waitFor("three pieces") { app.media.state.recorded == 4800 }
        assertEquals("Recording, 0:00 of 1:00", screen.text(R.id.recorder_time))
        screen.ask("Hello")
        assertEquals(emptyList<String>(), engine.prompts)
        assertEquals("Hello", screen.text(R.id.question))
        assertFalse(screen.findViewById<View>(R.id.send).isEnabled)
        screen.click(R.id.recorder_stop)
        waitFor("the recording's end") { app.media.state.recorded == null }
        assertTrue(screen.findViewById<View>(R.id.send).isEnabled)
    }

    @Test
    fun theCameraWritesThroughAProviderOfOurs() = open { screen ->
        screen.photograph()
        val started = shadowOf(screen).nextStartedActivityForResult.intent
        assertEquals(MediaStore.ACTION_IMAGE_CAPTURE, started.action)
        @Suppress("DEPRECATION") val uri = started.getParcelableExtra<Uri>(MediaStore.EXTRA_OUTPUT)!!
        assertTrue(started.flags and Intent.FLAG_GRANT_WRITE_URI_PERMISSION != 0 && started.clipData!!.getItemAt(0).uri == uri)
        val provider = Robolectric.setupContentProvider(CameraProvider::class.java, uri.authority!!)
        android.os.ParcelFileDescriptor.AutoCloseOutputStream(provider.openFile(uri, "w")).use { out ->
            Bitmap.createBitmap(IntArray(40 * 20) { RED }, 40, 20, Bitmap.Config.ARGB_8888).compress(Bitmap.CompressFormat.JPEG, 90, out)
        }
        shadowOf(screen).receiveResult(started, Activity.RESULT_OK, null)
        waitFor("the picture") { app.media.state.reading == 0 }
        assertEquals(40 to 20, (app.media.state.pending.single() as Part.Picture).run { width to height })
        assertFalse("the file is gone", CameraProvider.file(app).exists())
        for (other in listOf("content://org.pocketphi.bench.camera/other.jpg", "content://org.pocketphi.bench.camera/../x")) {
            assertThrows(FileNotFoundException::class.java) { provider.openFile(Uri.parse(other), "r") }
        }
        screen.photograph()
        val again = shadowOf(screen).nextStartedActivityForResult.intent
        shadowOf(screen).receiveResult(again, Activity.RESULT_CANCELED, null)
        assertEquals("nothing came", 0, app.media.state.reading)
    }

    @Test
    fun withoutAPickerDocumentsAreOffered() = open { screen ->
        shadowOf(app as Application).checkActivities(true)
        screen.pick()
        assertEquals("This phone has no app that shows pictures.", screen.text(R.id.problem))
        screen.photograph()
        assertEquals("This phone has no app that takes pictures.", screen.text(R.id.problem))
        shadowOf(app as Application).checkActivities(false)
        screen.pick()
        assertEquals(MediaStore.ACTION_PICK_IMAGES, shadowOf(screen).nextStartedActivityForResult.intent.action)
    }

    @Test
    fun whatIsNoPictureIsASentence() = open { screen ->
        val uri = Uri.parse("content://pictures/none")
        shadowOf(app.contentResolver).registerInputStreamSupplier(uri) { ByteArrayInputStream("text".toByteArray()) }
        screen.attachPicture(uri)
        assertEquals("This is no picture that Android can read.", screen.text(R.id.problem))
        screen.attachPicture()
        assertEquals("", screen.text(R.id.problem))
    }

    @Test
    fun whatTheEngineRefusesGoesBackToThePerson() = open { screen ->
        screen.ask("Hello")
        waitFor("the answer") { !app.chat.state.busy }
        engine.onEncode = { throw EngineError("The picture is too narrow.") }
        screen.attachPicture()
        screen.ask("What is this?")
        waitFor("the refusal") { !app.chat.state.busy }
        assertEquals("The picture is too narrow.", screen.text(R.id.problem))
        assertEquals("What is this?", screen.text(R.id.question))
        assertEquals(1, screen.cards(R.id.pending).size)
        assertEquals("its question is gone", 2, screen.cards(R.id.turns).size)
        assertEquals("the model stays loaded", 0, engine.closes)
        engine.onEncode = {}
        screen.click(R.id.send)
        waitFor("the answer") { !app.chat.state.busy }
        assertEquals(4, screen.cards(R.id.turns).size)
        assertEquals("", screen.text(R.id.problem))
    }

    @Test
    fun aStopWhileItLooksCounts() = open { screen ->
        screen.ask("Hello")
        waitFor("the answer") { !app.chat.state.busy }
        engine.onEncode = { app.chat.stop() }
        screen.attachPicture()
        screen.ask("What is this?")
        waitFor("the stop") { !app.chat.state.busy }
        assertEquals(1, engine.prompts.size)
        assertEquals("", screen.text(R.id.problem))
        assertEquals("What is this?", screen.text(R.id.question))
    }

    private companion object {
        val BOTH = Takes(pictures = true, sound = true, soundRate = 16_000)
        const val RED = 0xFFFF0000.toInt()
        const val BLUE = 0xFF0000FF.toInt()
    }
}

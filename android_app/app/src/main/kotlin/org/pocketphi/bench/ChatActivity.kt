package org.pocketphi.bench

import android.Manifest
import android.app.Activity
import android.content.ActivityNotFoundException
import android.content.ClipData
import android.content.Intent
import android.content.pm.PackageManager
import android.os.Bundle
import android.provider.MediaStore
import android.view.Gravity
import android.view.View
import android.widget.ImageButton
import android.widget.LinearLayout
import android.widget.PopupMenu
import android.widget.ProgressBar
import android.widget.ScrollView
import android.widget.TextView
import org.pocketphi.core.Message
import org.pocketphi.core.Part
import org.pocketphi.core.Role
import org.pocketphi.core.Takes

/** Talk to the chosen model, with pictures and sound where it takes them; answers stream. */
class ChatActivity : Activity() {
    private lateinit var choice: ModelChoice
    private lateinit var turns: LinearLayout
    private lateinit var question: TextView
    private lateinit var send: ImageButton
    private lateinit var state: TextView
    private lateinit var pending: AttachmentViews
    private val listener = { now: ChatState -> show(now) }
    private val onMedia = { now: MediaState -> show(now) }
    private var drawn: List<Message> = emptyList()
    private var streaming: View? = null
    private var forgotten: View? = null
    private var shownPending: List<Part>? = null

    override fun onCreate(saved: Bundle?) {
        super.onCreate(saved)
        setContentView(R.layout.chat)
        header(getString(R.string.chat))
        action(R.id.action_one, R.drawable.ic_new, R.string.new_chat) { app.chat.anew() }
        action(R.id.action_two, R.drawable.ic_settings, R.string.settings) { startActivity(Intent(this, SettingsActivity::class.java)) }
        choice = ModelChoice(this)
        turns = findViewById(R.id.turns)
        question = findViewById(R.id.question)
        send = findViewById(R.id.send)
        state = findViewById(R.id.chat_state)
        pending = AttachmentViews(this, findViewById(R.id.pending)) { app.media.remove(it) }
        send.setOnClickListener { sendOrStop() }
        findViewById<View>(R.id.attach).setOnClickListener { attach(it) }
        findViewById<View>(R.id.recorder_stop).setOnClickListener { app.media.stopRecording() }
    }

    override fun onStart() {
        super.onStart()
        choice.look()
        choice.model?.let { header(it.nameWithoutExtension) }
        shownPending = null
        clear()
        app.chat.listen(listener)
        app.media.listen(onMedia)
    }

    override fun onStop() {
        app.chat.unlisten(listener)
        app.media.unlisten(onMedia)
        // In the background an app hears nothing.
        if (!isChangingConfigurations) app.media.stopRecording()
        super.onStop()
    }

    private fun sendOrStop() {
        if (app.chat.state.busy) return app.chat.stop()
        val text = question.text.toString().trim()
        val model = choice.model
        val tokenizer = choice.tokenizer
        if (text.isEmpty() && app.media.state.pending.isEmpty()) return
        if (app.media.state.reading > 0 || app.media.state.recorded != null) return
        if (app.runs.state.active) return problem(getString(R.string.chat_busy))
        if (model == null || tokenizer == null) return problem(getString(R.string.chat_no_model))
        question.text = ""
        app.chat.ask(model, tokenizer, text, app.media.take())
    }

    // ---- pictures and sound

    private val takes: Takes get() = choice.model?.let { app.chat.takes(it) } ?: Takes.TEXT

    private fun attach(at: View) {
        val menu = PopupMenu(this, at)
        if (takes.pictures) {
            menu.menu.add(R.string.attach_pick).setOnMenuItemClickListener { true.also { pick() } }
            menu.menu.add(R.string.attach_camera).setOnMenuItemClickListener { true.also { photograph() } }
        }
        if (takes.sound) menu.menu.add(R.string.attach_record).setOnMenuItemClickListener { true.also { record() } }
        menu.show()
    }

    /** The system's picker of pictures, which shows only those that a person chooses; else any app's documents. */
    fun pick() {
        val pictures = Intent(MediaStore.ACTION_PICK_IMAGES).setType("image/*")
        val documents = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("image/*")
        if (listOf(pictures, documents).none { begin(it, PICK) }) app.media.fail(getString(R.string.no_picker_app))
    }

    /** The camera's own app. */
    fun photograph() {
        CameraProvider.file(this).delete()
        val camera = Intent(MediaStore.ACTION_IMAGE_CAPTURE).putExtra(MediaStore.EXTRA_OUTPUT, CameraProvider.URI)
            .addFlags(Intent.FLAG_GRANT_WRITE_URI_PERMISSION or Intent.FLAG_GRANT_READ_URI_PERMISSION)
        camera.clipData = ClipData.newRawUri("", CameraProvider.URI)
        if (!begin(camera, CAMERA)) app.media.fail(getString(R.string.no_camera_app))
    }

    fun record() {
        if (checkSelfPermission(Manifest.permission.RECORD_AUDIO) == PackageManager.PERMISSION_GRANTED) return app.media.record()
        requestPermissions(arrayOf(Manifest.permission.RECORD_AUDIO), MICROPHONE)
    }

    private fun begin(intent: Intent, request: Int): Boolean = try {
        startActivityForResult(intent, request)
        true
    } catch (_: ActivityNotFoundException) {
        false
    }

    override fun onRequestPermissionsResult(request: Int, permissions: Array<String>, results: IntArray) {
        super.onRequestPermissionsResult(request, permissions, results)
        if (request != MICROPHONE || results.isEmpty()) return // empty: the person was interrupted
        if (results[0] == PackageManager.PERMISSION_GRANTED) app.media.record() else app.media.fail(getString(R.string.no_microphone))
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        super.onActivityResult(request, result, data)
        if (result != RESULT_OK) return
        val resolver = app.contentResolver
        val file = CameraProvider.file(app)
        if (request == CAMERA) app.media.read(then = { file.delete() }) { file.inputStream() }
        val uri = data?.data
        if (request == PICK && uri != null) app.media.read { resolver.openInputStream(uri) }
    }

    private fun show(now: MediaState) {
        showProblem()
        val recorded = now.recorded
        findViewById<View>(R.id.recorder).visible(recorded != null)
        if (recorded != null) {
            val times = listOf(recorded / Recorder.RATE.toDouble(), Recorder.MOST_SECONDS.toDouble()).map { Format.time(it) }
            findViewById<TextView>(R.id.recorder_time).text = getString(R.string.recording, times[0], times[1])
            // The root, as loudness is heard: a quiet voice is a hundredth of the most.
            findViewById<ProgressBar>(R.id.recorder_level).progress = (100 * Math.sqrt(now.loudness.toDouble())).toInt()
        }
        findViewById<View>(R.id.pending_row).visible(now.pending.isNotEmpty())
        if (shownPending != now.pending) pending.show(now.pending)
        shownPending = now.pending
        showLine()
        showButtons()
    }

    // ---- the conversation

    private fun problem(text: String?) = findViewById<TextView>(R.id.problem).showOrHide(text)

    private fun showProblem() = problem(app.media.state.problem ?: app.chat.state.problem)

    private fun showLine() = state.showOrHide(line(app.chat.state))

    private fun showButtons() {
        val busy = app.chat.state.busy
        val media = app.media.state
        findViewById<View>(R.id.attach).apply {
            visible(takes.pictures || takes.sound)
            enable(media.recorded == null)
        }
        send.setImageResource(if (busy) R.drawable.ic_stop else R.drawable.ic_send)
        send.contentDescription = getString(if (busy) R.string.stop else R.string.send)
        send.enable(busy || media.reading == 0 && media.recorded == null)
        keepScreenOn(busy || media.recorded != null)
    }

    private fun show(now: ChatState) {
        showProblem()
        if (now.unsent != null) {
            if (question.text.isEmpty()) question.text = now.unsent
            return app.chat.tookUnsent() // which shows the rest
        }
        if (drawn != now.messages || now.forgotten != (forgotten?.tag ?: 0)) {
            if (now.messages.size < drawn.size || now.forgotten != (forgotten?.tag ?: 0)) clear()
            streaming?.let { turns.removeView(it) }
            streaming = null
            for (index in drawn.size..now.messages.size) {
                if (index == now.forgotten && index > 0 && forgotten == null) forgotten = forgottenLine(index)
                now.messages.getOrNull(index)?.let { bubble(it) }
            }
            drawn = now.messages
        }
        if (now.streaming != null) {
            val bubble = streaming ?: bubble(Message(Role.ASSISTANT, "")).also { streaming = it }
            bubble.findViewById<TextView>(R.id.bubble).text = now.streaming.ifEmpty { "…" }
        } else {
            streaming?.let { turns.removeView(it) }
            streaming = null
        }
        showLine()
        showButtons()
        val scroll = findViewById<ScrollView>(R.id.scroll)
        scroll.post { scroll.scrollTo(0, turns.height) }
    }

    private fun line(now: ChatState): String? = when {
        now.loading -> getString(R.string.chat_loading, choice.model?.name.orEmpty())
        now.encoding != null -> {
            val doing = getString(if (now.encoding.part is Part.Picture) R.string.chat_looking else R.string.chat_listening)
            if (now.encoding.of > 1) getString(R.string.chat_part, doing, now.encoding.done + 1, now.encoding.of) else doing
        }
        app.media.state.reading > 0 -> getString(R.string.attach_reading)
        now.rate != null -> listOfNotNull(
            getString(R.string.chat_rate, now.tokens, Format.number(now.rate)),
            now.encodeMs?.let { getString(R.string.chat_encoded, Format.number(it / 1000)) },
            now.memory?.let { getString(R.string.chat_memory, Format.bytes(it)) },
        ).joinToString(" · ")
        now.messages.isEmpty() && choice.model == null -> getString(R.string.chat_no_model)
        now.messages.isEmpty() -> getString(R.string.chat_empty)
        else -> null
    }

    private fun clear() {
        turns.removeAllViews()
        drawn = emptyList()
        streaming = null
        forgotten = null
    }

    private fun forgottenLine(messages: Int): View = layoutInflater.inflate(R.layout.forgotten, turns, false).also {
        it.tag = messages
        turns.addView(it)
    }

    private fun bubble(message: Message): View {
        val row = layoutInflater.inflate(R.layout.bubble, turns, false) as LinearLayout
        val mine = message.role == Role.USER
        row.gravity = if (mine) Gravity.END else Gravity.START
        val far = (resources.displayMetrics.density * 48).toInt()
        row.setPaddingRelative(if (mine) far else 0, 0, if (mine) 0 else far, 0)
        row.findViewById<TextView>(R.id.bubble).apply {
            text = message.content
            visible(message.content.isNotEmpty() || !mine)
            setBackgroundResource(if (mine) R.drawable.bubble_user else R.drawable.bubble_model)
        }
        row.findViewById<View>(R.id.bubble_media_row).visible(message.media.isNotEmpty())
        AttachmentViews(this, row.findViewById(R.id.bubble_media)).show(message.media)
        turns.addView(row)
        return row
    }

    private companion object {
        const val PICK = 1
        const val CAMERA = 2
        const val MICROPHONE = 3
    }
}

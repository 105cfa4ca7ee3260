package org.pocketphi.bench

import android.app.Activity
import android.content.Intent
import android.os.Bundle
import android.view.Gravity
import android.view.View
import android.widget.ImageButton
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.TextView
import org.pocketphi.core.Message
import org.pocketphi.core.Role

/** Talk to the chosen model; answers stream. */
class ChatActivity : Activity() {
    private lateinit var choice: ModelChoice
    private lateinit var turns: LinearLayout
    private lateinit var question: TextView
    private lateinit var send: ImageButton
    private lateinit var state: TextView
    private val listener = { now: ChatState -> show(now) }
    private var drawn: List<Message> = emptyList()
    private var streaming: TextView? = null

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
        send.setOnClickListener { sendOrStop() }
    }

    override fun onStart() {
        super.onStart()
        choice.look()
        choice.model?.let { header(it.nameWithoutExtension) }
        drawn = emptyList()
        streaming = null
        turns.removeAllViews()
        app.chat.listen(listener)
    }

    override fun onStop() {
        app.chat.unlisten(listener)
        super.onStop()
    }

    private fun sendOrStop() {
        if (app.chat.state.busy) return app.chat.stop()
        val text = question.text.toString().trim()
        val model = choice.model
        val tokenizer = choice.tokenizer
        if (text.isEmpty()) return
        if (app.runs.state.active) return problem(getString(R.string.chat_busy))
        if (model == null || tokenizer == null) return problem(getString(R.string.chat_no_model))
        question.text = ""
        app.chat.ask(model, tokenizer, text)
    }

    private fun problem(text: String?) = findViewById<TextView>(R.id.problem).showOrHide(text)

    private fun show(now: ChatState) {
        problem(now.problem)
        keepScreenOn(now.busy)
        if (drawn != now.messages) {
            if (now.messages.size < drawn.size) {
                drawn = emptyList()
                turns.removeAllViews()
            }
            streaming?.let { turns.removeView(it.parent as View) }
            streaming = null
            now.messages.drop(drawn.size).forEach { bubble(it.role).text = it.content }
            drawn = now.messages
        }
        if (now.streaming != null) {
            val bubble = streaming ?: bubble(Role.ASSISTANT).also { streaming = it }
            bubble.text = now.streaming.ifEmpty { "…" }
        } else {
            streaming?.let { turns.removeView(it.parent as View) }
            streaming = null
        }
        state.showOrHide(line(now))
        send.setImageResource(if (now.busy) R.drawable.ic_stop else R.drawable.ic_send)
        send.contentDescription = getString(if (now.busy) R.string.stop else R.string.send)
        val scroll = findViewById<ScrollView>(R.id.scroll)
        scroll.post { scroll.scrollTo(0, turns.height) }
    }

    private fun line(now: ChatState): String? = when {
        now.loading -> getString(R.string.chat_loading, choice.model?.name.orEmpty())
        now.rate != null -> getString(R.string.chat_rate, now.tokens, Format.number(now.rate)) +
            (now.memory?.let { " · " + getString(R.string.chat_memory, Format.bytes(it)) } ?: "")
        now.messages.isEmpty() && choice.model == null -> getString(R.string.chat_no_model)
        now.messages.isEmpty() -> getString(R.string.chat_empty)
        else -> null
    }

    private fun bubble(role: Role): TextView {
        val row = layoutInflater.inflate(R.layout.bubble, turns, false) as LinearLayout
        val mine = role == Role.USER
        row.gravity = if (mine) Gravity.END else Gravity.START
        val far = (resources.displayMetrics.density * 48).toInt()
        row.setPaddingRelative(if (mine) far else 0, 0, if (mine) 0 else far, 0)
        val text = row.findViewById<TextView>(R.id.bubble)
        text.setBackgroundResource(if (mine) R.drawable.bubble_user else R.drawable.bubble_model)
        turns.addView(row)
        return text
    }
}

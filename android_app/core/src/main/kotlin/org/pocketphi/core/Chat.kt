package org.pocketphi.core

enum class Role(val tag: String) { SYSTEM("system"), USER("user"), ASSISTANT("assistant") }

data class Message(val role: Role, val content: String)

/** Phi-4-mini's chat format. */
object ChatFormat {
    const val END = "<|end|>"
    private val ENDS = listOf(END, "<|endoftext|>")

    /** The prompt that lets the model answer [messages]. */
    fun render(messages: List<Message>): String = messages.joinToString("") { turn(it) } + open(Role.ASSISTANT)

    fun turn(message: Message): String = open(message.role) + message.content + END

    fun open(role: Role): String = "<|${role.tag}|>"

    /** What a person should see of an answer: without the token that ended it. */
    fun visible(answer: String): String {
        val end = ENDS.firstOrNull { answer.endsWith(it) } ?: return answer
        return answer.dropLast(end.length)
    }
}

/**
 * A conversation whose context stays in the engine: every turn feeds only what is new.
 * The engine has not read the last token it made, so that one is fed with the next turn.
 */
class ChatSession(private val engine: LlmEngine, system: String?) {
    private val history = ArrayList<Message>()
    private var unread = if (system.isNullOrEmpty()) "" else ChatFormat.turn(Message(Role.SYSTEM, system))

    val messages: List<Message> get() = history

    init {
        if (!system.isNullOrEmpty()) history.add(Message(Role.SYSTEM, system))
    }

    /** The answer to [text]; throws [EngineError], after which the conversation should be begun anew. */
    fun ask(text: String, newTokens: Int, onPiece: (String) -> Unit): Generated {
        val question = Message(Role.USER, text)
        history.add(question)
        val answer = StringBuilder()
        var last = ""
        val prompt = unread + ChatFormat.turn(question) + ChatFormat.open(Role.ASSISTANT)
        val generated = engine.generate(prompt, null, newTokens) { piece ->
            last = piece
            answer.append(piece)
            onPiece(piece)
        }
        val visible = ChatFormat.visible(answer.toString())
        history.add(Message(Role.ASSISTANT, visible))
        val ended = generated.stopReason == StopReason.END_OF_TURN || visible.length < answer.length
        unread = (if (ended) "" else last) + ChatFormat.END
        return generated
    }
}

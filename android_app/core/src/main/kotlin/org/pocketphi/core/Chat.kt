package org.pocketphi.core

enum class Role(val tag: String) { SYSTEM("system"), USER("user"), ASSISTANT("assistant") }

/** [media] stands before the text. */
data class Message(val role: Role, val content: String, val media: List<Part> = emptyList())

/** The chat format of the contract. */
object ChatFormat {
    val end: String get() = Contract.current.turnEnd

    /** The prompt that lets the model answer [messages]. */
    fun render(messages: List<Message>): String = messages.joinToString("") { turn(it) } + open(Role.ASSISTANT)

    fun turn(message: Message): String = open(message.role) + message.content + end

    /** [turn] with its pictures and sounds, after what the turn before it left. */
    fun parts(before: String, message: Message, after: String): List<Part> {
        if (message.media.isEmpty()) return listOf(Part.Words(before + turn(message) + after))
        return listOf(Part.Words(before + open(message.role))) + message.media + Part.Words(message.content + end + after)
    }

    fun open(role: Role): String = Contract.current.turn.replace("{role}", role.tag)

    /** What a person should see of an answer so far: up to a text that ends it, and nothing that may become one. */
    fun visible(answer: String): String {
        val stops = Contract.current.stops
        stops.map { answer.indexOf(it) }.filter { it >= 0 }.minOrNull()?.let { return answer.take(it) }
        val begun = answer.indices.firstOrNull { from -> stops.any { it.startsWith(answer.substring(from)) } }
        return answer.take(begun ?: answer.length)
    }

    /** The same of an answer that has ended: what only looked like a stop is text. */
    fun whole(answer: String): String = visible(answer).let { if (stopped(answer)) it else answer }

    /** Whether [answer] holds a text that ends it. */
    fun stopped(answer: String): Boolean = Contract.current.stops.any { it in answer }
}

/** A conversation whose context stays in the engine: every turn feeds only what is new, and what the engine left unread. */
class ChatSession(private val engine: LlmEngine, system: String?) {
    private val history = ArrayList<Message>()
    private var unread = if (system.isNullOrEmpty()) "" else ChatFormat.turn(Message(Role.SYSTEM, system))

    private var hasMedia = false

    val messages: List<Message> get() = history

    init {
        if (!system.isNullOrEmpty()) history.add(Message(Role.SYSTEM, system))
    }

    /** How long pictures and sounds of the last question took to encode, in milliseconds; null without any. */
    var encodeMs: Double? = null
        private set

    /**
     * The answer to [text] with [media] before it. [onEncode] is told before each part of a picture or sound is encoded,
     * and null when all are; where it throws, or a picture or sound cannot be used ([MediaRefused]), the conversation is
     * as before. Throws [EngineError], after which the conversation should be begun anew.
     */
    fun ask(
        text: String, newTokens: Int, sampling: Sampling, media: List<Part> = emptyList(), onEncode: (Encoding?) -> Unit = {},
        onPiece: (String) -> Unit,
    ): Generated {
        val question = Message(Role.USER, text, media)
        val prompt = ChatFormat.parts(unread, question, ChatFormat.open(Role.ASSISTANT))
        encodeMs = if (media.isEmpty() && !hasMedia) null else encode(prompt, onEncode)
        hasMedia = hasMedia || media.isNotEmpty()
        history.add(question)
        val answer = StringBuilder()
        val generated = engine.generate(prompt, null, newTokens, sampling) { piece ->
            answer.append(piece)
            onPiece(piece)
        }
        history.add(Message(Role.ASSISTANT, ChatFormat.whole(answer.toString())))
        val ended = generated.stopReason == StopReason.END_OF_TURN || ChatFormat.stopped(answer.toString())
        unread = (if (ended) "" else generated.unread) + ChatFormat.end
        return generated
    }

    private fun encode(prompt: List<Part>, onEncode: (Encoding?) -> Unit): Double? {
        val encoded = try {
            engine.encode(prompt, onEncode)
        } catch (stopped: EngineStopped) {
            throw stopped
        } catch (problem: EngineError) {
            throw MediaRefused(problem)
        }
        onEncode(null)
        return encoded.takeIf { it.isNotEmpty() }?.sumOf { it.ms }
    }
}

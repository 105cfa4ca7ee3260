package org.pocketphi.core

import java.io.File
import java.util.IdentityHashMap

/**
 * [LlmEngine] over the C++ engine of export/engine/cpp. Packed weights are kept in [packed] between starts; 0 [threads]
 * is one for each of the phone's fast cores. The context keeps the tokens of a conversation, so nothing is fed twice.
 * Pictures and sounds of the conversation are kept as they were given: with the first picture what was said before is fed
 * anew, and sounds are encoded anew, as the engine answers with other weights then.
 * [stop] and [close] may come from any thread, but [close] not from within a callback.
 */
class NativeEngine(
    private val model: String, private val tokenizer: String, private val packed: File?, private val settings: EngineSettings,
) : LlmEngine {
    private val gate = Object()
    private var engine = Native.create()
    private var words = 0L
    private var users = 0
    private var caller: Thread? = null
    private var closed = false

    private var context = 0L
    private var takes = Takes.TEXT

    /** The conversation: what was asked and made. The engine holds its beginning; the last token made is never fed. */
    private var said = Transcript(emptyList())

    /** Of the pictures and sounds of the conversation, by their modes. */
    private val ids = IdentityHashMap<Part, HashMap<Mode, LongArray>>()


    override fun load(): Loaded = use {
        if (words == 0L) words = Native.loadTokenizer(tokenizer.encodeToByteArray())
        val numbers = DoubleArray(Native.LOADED)
        val note = Native.load(
            engine, model.encodeToByteArray(), packed?.path?.encodeToByteArray(), settings.threads, 0, numbers, object : Native.Listener {},
        )
        context = numbers[1].toLong()
        forgetSaid()
        takes = Takes(numbers[8] == 1.0, numbers[9] == 1.0, numbers[10].toInt())
        Loaded(Packing.entries[numbers[0].toInt()], note.decodeToString().ifEmpty { null }, numbers[7].toLong(), numbers[4].toInt(), takes)
    }

    override fun pictureTokens(width: Int, height: Int): Int? =
        use { if (takes.pictures) Native.pictureTokens(engine, width, height).toInt() else null }

    override fun encode(prompt: List<Part>, onPart: (Encoding) -> Unit): List<Encoded> = use { encodeMissing(said + spelled(prompt), onPart) }

    override fun generate(
        prompt: List<Part>, promptTokens: Int?, newTokens: Int, sampling: Sampling, onPiece: (String) -> Unit,
    ): Generated = use {
        val asked = spelled(prompt)
        val whole = said + asked
        val held = said.ids(whole.mode).size
        encodeMissing(whole) { }
        val ids = whole.ids(whole.mode)
        val count = ids.size - held
        if (ids.size >= context) throw EngineErrors.full(count, context, held)
        val collector = Collector(onPiece)
        val numbers = DoubleArray(Native.ANSWERED)
        try {
            Native.generate(
                engine, words, ids, minOf(newTokens.toLong(), context - ids.size), sampling.temperature, sampling.topK, sampling.topP,
                sampling.seed, settings.draftTokens, numbers, collector,
            )
        } finally {
            said = whole + Transcript(listOf(Transcript.Piece.Ids(collector.ids.toLongArray())))
        }
        // Fed, so that their rows are of no more use.
        if (whole.media.isNotEmpty() && numbers[0].toInt() != END_STOPPED) Native.forgetMedia(engine)
        val (drafted, accepted) = numbers[5].toInt() to numbers[6].toInt()
        Generated(
            promptTokens = count, generatedTokens = numbers[1].toInt(), pieces = collector.pieces,
            prefillMs = numbers[3], decodeMs = numbers[4], stopReason = reason(numbers[0].toInt()), unread = "",
            tokenMs = collector.ms.drop(1), drafted = drafted.takeIf { settings.draftTokens > 0 },
            accepted = accepted.takeIf { settings.draftTokens > 0 },
        )
    }

    private fun spelled(prompt: List<Part>): Transcript {
        if (words == 0L) throw EngineError("No model is loaded.")
        return Transcript(
            prompt.map { part ->
                if (part is Part.Words) Transcript.Piece.Ids(Native.encode(words, part.text.encodeToByteArray()))
                else Transcript.Piece.Media(part, ids.getOrPut(part) { HashMap() })
            },
        )
    }

    /** Everything of [whole] whose rows the engine will look for; what the session has been fed of it is not. */
    private fun encodeMissing(whole: Transcript, onPart: (Encoding) -> Unit): List<Encoded> {
        val mode = whole.mode
        val fed = if (whole.media.isEmpty()) return emptyList() else Native.tokens(engine)
        return whole.media.mapNotNull { piece ->
            if (whole.isFed(piece, fed)) null else encode(piece, mode, onPart)
        }
    }

    private fun encode(piece: Transcript.Piece.Media, mode: Mode, onPart: (Encoding) -> Unit): Encoded {
        val numbers = DoubleArray(Native.ENCODED)
        val listener = object : Native.Listener {
            override fun part(done: Long, of: Long) = onPart(Encoding(piece.of, done.toInt(), of.toInt()))
        }
        val first = when (val of = piece.of) {
            is Part.Picture -> Native.picture(engine, of.rgb, of.width, of.height, numbers, listener)
            is Part.Sound -> Native.sound(engine, of.samples, of.rate, mode.ordinal, numbers, listener)
            is Part.Words -> error("words are not encoded")
        }
        piece.ids[mode] = LongArray(numbers[0].toInt()) { first - it }
        return Encoded(numbers[0].toInt(), numbers[1].toInt(), numbers[2] == 1.0, numbers[3], numbers[4])
    }

    private fun forgetSaid() {
        said = Transcript(emptyList())
        ids.clear()
    }

    /** Ids that the engine has been fed, for tests. */
    internal fun held(): LongArray = use { Native.tokens(engine) }

    override fun stop() = synchronized(gate) { if (!closed) Native.stop(engine) }

    override fun reset() = use {
        Native.rewind(engine, 0)
        if (ids.isNotEmpty()) Native.forgetMedia(engine)
        forgetSaid()
    }

    override fun close() {
        synchronized(gate) {
            if (closed) return
            if (caller === Thread.currentThread()) throw EngineError("An engine cannot be closed from within its callbacks.")
            closed = true
            while (users > 0) {
                Native.stop(engine) // again: a call that has only just begun forgets a stop from before it
                gate.wait(STOP_EVERY_MS)
            }
        }
        Native.close(engine)
        Native.freeTokenizer(words)
        engine = 0
        words = 0
    }

    /** The engine is not closed while [work] uses it. */
    private fun <T> use(work: () -> T): T {
        synchronized(gate) {
            if (closed) throw EngineError("The engine is closed.")
            if (users > 0) throw EngineError("The engine is busy with another call.")
            users++
            caller = Thread.currentThread()
        }
        try {
            return work()
        } finally {
            synchronized(gate) {
                users--
                caller = null
                gate.notifyAll()
            }
        }
    }

    private fun reason(end: Int) = when (end) {
        END_LIMIT, END_CONTEXT -> StopReason.NEW_TOKENS
        END_STOPPED -> StopReason.STOPPED
        else -> StopReason.END_OF_TURN
    }

    private class Collector(private val onPiece: (String) -> Unit) : Native.Listener {
        val ids = ArrayList<Long>()
        val ms = ArrayList<Double>()
        var pieces = 0

        override fun token(id: Long, ms: Double) {
            ids.add(id)
            this.ms.add(ms)
        }

        override fun text(piece: ByteArray) {
            pieces++
            onPiece(piece.decodeToString())
        }
    }

    companion object {
        /** As results name it. */
        const val NAME = "pocketphi"
        private const val STOP_EVERY_MS = 10L
        private const val END_LIMIT = 2
        private const val END_CONTEXT = 3
        private const val END_STOPPED = 4

        /** Whether a library that is loaded has the engine. */
        fun isThere(): Boolean = try {
            Native.close(Native.create())
            true
        } catch (_: LinkageError) {
            false
        }
    }
}

package org.pocketphi.core

import java.io.File

/**
 * [LlmEngine] over the C++ engine of export/engine/cpp. Packed weights are kept in [packed] between starts; 0 [threads]
 * is one for each of the phone's fast cores. The context keeps the tokens of a conversation, so nothing is fed twice.
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

    /** Tokens that belong to the conversation and have not been fed yet: the last one made, or what a stop left out. */
    private var unfed = LongArray(0)

    override fun load(): Loaded = use {
        if (words == 0L) words = Native.loadTokenizer(tokenizer.encodeToByteArray())
        val numbers = DoubleArray(Native.LOADED)
        val note = Native.load(
            engine, model.encodeToByteArray(), packed?.path?.encodeToByteArray(), settings.threads, 0, numbers, object : Native.Listener {},
        )
        context = numbers[1].toLong()
        unfed = LongArray(0)
        Loaded(Packing.entries[numbers[0].toInt()], note.decodeToString().ifEmpty { null }, numbers[7].toLong(), numbers[4].toInt())
    }

    override fun generate(
        prompt: String, promptTokens: Int?, newTokens: Int, sampling: Sampling, onPiece: (String) -> Unit,
    ): Generated = use {
        val fed = Native.tokens(engine)
        val asked = Native.encode(words, prompt.encodeToByteArray())
        val ids = fed + unfed + asked
        if (ids.size >= context) throw EngineErrors.full(asked.size, context, ids.size - asked.size)
        val collector = Collector(onPiece)
        val numbers = DoubleArray(Native.ANSWERED)
        try {
            Native.generate(
                engine, words, ids, minOf(newTokens.toLong(), context - ids.size), sampling.temperature, sampling.topK, sampling.topP,
                sampling.seed, settings.draftTokens, numbers, collector,
            )
        } finally {
            val all = ids + collector.ids.toLongArray()
            unfed = all.copyOfRange(minOf(all.size, Native.tokens(engine).size), all.size)
        }
        val (drafted, accepted) = numbers[5].toInt() to numbers[6].toInt()
        Generated(
            promptTokens = asked.size, generatedTokens = numbers[1].toInt(), pieces = collector.pieces,
            prefillMs = numbers[3], decodeMs = numbers[4], stopReason = reason(numbers[0].toInt()), unread = "",
            tokenMs = collector.ms.drop(1), drafted = drafted.takeIf { settings.draftTokens > 0 },
            accepted = accepted.takeIf { settings.draftTokens > 0 },
        )
    }

    override fun stop() = synchronized(gate) { if (!closed) Native.stop(engine) }

    override fun reset() = use {
        Native.rewind(engine, 0)
        unfed = LongArray(0)
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

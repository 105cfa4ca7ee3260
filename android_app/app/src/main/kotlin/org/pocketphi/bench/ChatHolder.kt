package org.pocketphi.bench

import android.os.Handler
import android.os.Looper
import org.pocketphi.core.BadInput
import org.pocketphi.core.ChatFormat
import org.pocketphi.core.ChatSession
import org.pocketphi.core.Contract
import org.pocketphi.core.Encoding
import org.pocketphi.core.EngineError
import org.pocketphi.core.EngineSettings
import org.pocketphi.core.EngineStopped
import org.pocketphi.core.LlmEngine
import org.pocketphi.core.MediaRefused
import org.pocketphi.core.Message
import org.pocketphi.core.Mode
import org.pocketphi.core.Model
import org.pocketphi.core.ModelFiles
import org.pocketphi.core.Part
import org.pocketphi.core.Preflight
import org.pocketphi.core.Role
import org.pocketphi.core.Takes
import java.io.File
import java.util.concurrent.Executors
import java.util.concurrent.Future

/**
 * What the chat shows; [streaming] is the answer under way, null between answers, [rate] tokens a second, [memory] bytes.
 * [takes] is what the model that is loaded takes, null while none is. [encoding] is what is being looked at or listened to,
 * [encodeMs] how long that took. [unsent] is a question that could not be asked. The model, loaded anew, does not know the
 * first [forgotten] messages.
 */
data class ChatState(
    val model: String? = null,
    val loading: Boolean = false,
    val messages: List<Message> = emptyList(),
    val streaming: String? = null,
    val tokens: Int = 0,
    val rate: Double? = null,
    val memory: Long? = null,
    val problem: String? = null,
    val takes: Takes? = null,
    val encoding: Encoding? = null,
    val encodeMs: Double? = null,
    val unsent: String? = null,
    val forgotten: Int = 0,
) {
    val busy: Boolean get() = loading || streaming != null

    /** Without the model that has given these answers. */
    fun forgetting() = copy(forgotten = if (messages.any { it.role == Role.ASSISTANT }) messages.size else 0)
}

/** The conversation and its engine; both outlive the screen. All functions: main thread. */
class ChatHolder(private val app: BenchApp) {
    private val main = Handler(Looper.getMainLooper())
    private val worker = Executors.newSingleThreadExecutor()
    private val listeners = LinkedHashSet<(ChatState) -> Unit>()
    @Volatile private var engine: LlmEngine? = null
    @Volatile private var stopAsked = false
    private var session: ChatSession? = null
    private var loadedWith: EngineSettings? = null

    var state = ChatState()
        private set

    fun listen(listener: (ChatState) -> Unit) {
        listeners.add(listener)
        listener(state)
    }

    fun unlisten(listener: (ChatState) -> Unit) {
        listeners.remove(listener)
    }

    /** Loads [model] where it is not the one that is loaded, then answers [text] with [media] before it. */
    fun ask(model: File, tokenizer: File, text: String, media: List<Part> = emptyList()) {
        if (state.busy) return
        val settings = app.settings.current
        val load = state.model != model.path || session == null || loadedWith != settings.engine
        stopAsked = false
        tell(
            (if (load) state.forgetting() else state).copy(
                model = model.path, loading = load, messages = state.messages + Message(Role.USER, text, media),
                streaming = if (load) null else "", tokens = 0, rate = null, problem = null, encodeMs = null,
                takes = if (load) null else state.takes,
            ),
        )
        worker.execute { answer(model, tokenizer, text, media, load) }
    }

    /** Ends the answer, also one whose model is still being loaded. */
    fun stop() {
        stopAsked = true
        engine?.stop()
    }

    /** Forgets the conversation; the model stays loaded. */
    fun anew() {
        if (state.busy) return
        tell(ChatState(model = state.model, takes = state.takes))
        worker.execute {
            try {
                engine?.reset()
                session = engine?.let { newSession(it) }
            } catch (_: EngineError) {
                unload()
            }
        }
    }

    /** The screen has put the question that could not be asked back into its field. */
    fun tookUnsent() = tell(state.copy(unsent = null))

    /** What [model] takes: what its load said, else what its manifest says. */
    fun takes(model: File): Takes = state.takes?.takeIf { state.model == model.path } ?: run {
        val modes = ModelFiles.manifest(model)?.modes.orEmpty()
        if (app.ownEngine) Takes(Mode.VISION in modes, Mode.SPEECH in modes, 0) else Takes.TEXT
    }

    /** Gives the memory back, as a measurement needs it: done when the future is, which waits for the engine. */
    fun close(): Future<*> {
        val gone = worker.submit { unload() }
        if (state.model != null) tell(ChatState())
        return gone
    }

    private fun newSession(of: LlmEngine) = ChatSession(of, app.settings.current.system)

    private fun answer(model: File, tokenizer: File, text: String, media: List<Part>, load: Boolean) {
        var encoding = false
        try {
            if (load) load(model, tokenizer)
            if (stopAsked) throw EngineStopped()
            if (load) post { it.copy(loading = false, streaming = "") }
            val begin = System.nanoTime()
            var first = 0L
            val answer = StringBuilder()
            var tokens = 0
            val onEncode = { step: Encoding? ->
                encoding = true
                if (stopAsked) throw EngineStopped()
                post { it.copy(encoding = step) }
            }
            val done = session!!.ask(text, Contract.current.chatTokens, app.settings.current.sampling, media, onEncode) { piece ->
                if (tokens++ == 0) first = System.nanoTime()
                if (stopAsked) engine?.stop() // engines forget a stop from just before the answer
                answer.append(piece)
                val shown = ChatFormat.visible(answer.toString())
                val count = tokens
                val rate = rate(count, first)
                post { it.copy(streaming = shown, tokens = count, rate = rate) }
            }
            val rate = rate(done.generatedTokens, if (first == 0L) begin else first)
            val visible = session!!.messages.last()
            val encodeMs = session!!.encodeMs
            val memory = app.probes.memory(walk = false).headline
            post { it.copy(messages = it.messages + visible, streaming = null, tokens = done.generatedTokens, rate = rate, memory = memory, encodeMs = encodeMs) }
        } catch (refused: MediaRefused) {
            unasked(text, media, refused.message)
        } catch (_: EngineStopped) {
            if (encoding) return unasked(text, media, null)
            unload()
            post { it.forgetting().copy(loading = false, streaming = null, takes = null) }
        } catch (failure: EngineError) {
            unload()
            post { it.forgetting().copy(loading = false, streaming = null, problem = failure.message, takes = null, encoding = null) }
        }
    }

    /** The conversation is as before the question, which goes back to the person. */
    private fun unasked(text: String, media: List<Part>, problem: String?) {
        main.post {
            app.media.putBack(media)
            tell(state.copy(messages = state.messages.dropLast(1), streaming = null, problem = problem, encoding = null, unsent = text))
        }
    }

    private fun load(model: File, tokenizer: File) {
        unload()
        val manifest = ModelFiles.manifest(model)
        warn(Model(model.name, model.length(), null, tokenizer.name, manifest))
        val settings = app.settings.current.engine
        val made = app.engines.create(model.path, tokenizer.path, manifest, settings)
        engine = made
        val takes = made.load().takes
        post { it.copy(takes = takes) }
        loadedWith = settings
        session = newSession(made)
    }

    // A person may want to try all the same, and sees why it may end badly.
    private fun warn(model: Model) {
        try {
            Preflight.checkMemory(model, app.probes.memory(walk = false).available, app.packed.takeIf { app.ownEngine })
        } catch (short: BadInput) {
            post { it.copy(problem = short.message) }
        }
    }

    private fun rate(tokens: Int, firstNanos: Long): Double? {
        val seconds = (System.nanoTime() - firstNanos) / 1e9
        return if (tokens < 2 || seconds <= 0) null else (tokens - 1) / seconds
    }

    private fun unload() {
        session = null
        engine?.close()
        engine = null
    }

    private fun post(change: (ChatState) -> ChatState) {
        main.post { tell(change(state)) }
    }

    private fun tell(next: ChatState) {
        state = next
        listeners.toList().forEach { it(next) }
    }
}

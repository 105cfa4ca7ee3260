package org.pocketphi.bench

import android.os.Handler
import android.os.Looper
import org.pocketphi.core.BadInput
import org.pocketphi.core.Bench
import org.pocketphi.core.Event
import org.pocketphi.core.LineSink
import org.pocketphi.core.Memory
import org.pocketphi.core.ProgressLines
import org.pocketphi.core.Result
import org.pocketphi.core.RunRequest

/** What a screen shows of a run; rates in tokens a second. */
data class RunState(
    val request: RunRequest? = null,
    val active: Boolean = false,
    val last: Event? = null,
    val doneRepeats: Int = 0,
    val tokens: Int = 0,
    val text: String = "",
    val decodeRate: Double? = null,
    val prefillRate: Double? = null,
    val memory: Memory? = null,
    val result: Result? = null,
    val problem: String? = null,
)

/** The one run of this process; screens come and go around it. [start], [stop] and listeners: main thread only. */
class RunHolder(private val app: BenchApp) {
    private val main = Handler(Looper.getMainLooper())
    private val listeners = LinkedHashSet<(RunState) -> Unit>()
    private val lock = Any()
    private var current = RunState()
    private var told = false
    @Volatile private var bench: Bench? = null

    val state: RunState get() = synchronized(lock) { current }

    /** Throws [BadInput] where a run is under way. */
    fun start(request: RunRequest, sink: LineSink) {
        if (state.active) throw BadInput("The run ${state.request?.name} is still under way; only one runs at a time.")
        if (app.chat.state.busy) throw BadInput("The chat is still answering; stop it before a measurement.")
        val chatIsGone = app.chat.close()
        synchronized(lock) { current = RunState(request, active = true) }
        val lines = ProgressLines(request.name, sink)
        val made = Bench(request, app.surroundings()) { event ->
            update(event)
            lines.on(event)
        }
        bench = made
        tell()
        Thread({
            chatIsGone.get() // its engine has the memory
            made.run()
        }, "bench").start()
    }

    fun stop() {
        bench?.stop()
    }

    fun lowMemory(level: String) {
        if (state.active) bench?.lowMemory(level)
    }

    fun note(sentence: String) {
        if (state.active) bench?.note(sentence)
    }

    /** [listener] is told the state now and after each change, on the main thread. */
    fun listen(listener: (RunState) -> Unit) {
        listeners.add(listener)
        listener(state)
    }

    fun unlisten(listener: (RunState) -> Unit) {
        listeners.remove(listener)
    }

    private fun update(event: Event) {
        synchronized(lock) { current = next(current, event) }
        tell()
    }

    // Tokens come faster than screens draw: whatever happened since the last drawing is told at once.
    private fun tell() {
        synchronized(lock) {
            if (told) return
            told = true
        }
        main.post {
            val state = synchronized(lock) {
                told = false
                current
            }
            listeners.toList().forEach { it(state) }
        }
    }

    private fun next(state: RunState, event: Event): RunState = when (event) {
        is Event.Token -> state.copy(
            tokens = event.index + 1,
            text = ((if (event.index == 0) "" else state.text) + event.piece).takeLast(SHOWN_CHARS),
            decodeRate = if (event.sinceFirstMs > 0) event.index / event.sinceFirstMs * 1000 else state.decodeRate,
        )
        is Event.Sampled -> state.copy(memory = event.memory)
        is Event.LowMemory -> state
        is Event.Repeated -> state.copy(
            last = event, doneRepeats = state.doneRepeats + 1, result = event.soFar,
            prefillRate = event.repeat.prefillTokensPerS ?: state.prefillRate,
            decodeRate = event.repeat.decodeTokensPerS ?: state.decodeRate,
        )
        is Event.Failed -> state.copy(last = event, active = false, problem = event.message)
        is Event.Done -> state.copy(last = event, active = false, result = event.result)
        is Event.Warmup, is Event.Repeating -> state.copy(last = event, tokens = 0, text = "")
        else -> state.copy(last = event)
    }

    private companion object {
        const val SHOWN_CHARS = 600
    }
}

package org.pocketphi.bench

import android.view.View
import android.widget.ProgressBar
import android.widget.TextView
import org.pocketphi.core.Event

/** The card that shows a run under way. */
class LiveViews(private val card: View) {
    private val context = card.context
    private val stage: TextView = card.findViewById(R.id.live_stage)
    private val progress: TextView = card.findViewById(R.id.live_progress)
    private val bar: ProgressBar = card.findViewById(R.id.live_bar)
    private val decode: TextView = card.findViewById(R.id.live_decode)
    private val prefill: TextView = card.findViewById(R.id.live_prefill)
    private val memory: TextView = card.findViewById(R.id.live_memory)
    private val free: TextView = card.findViewById(R.id.live_free)
    private val text: TextView = card.findViewById(R.id.live_text)

    fun show(state: RunState) {
        val repeats = state.request?.repeats ?: 0
        setText(stage, stage(state))
        progress.text = context.getString(R.string.progress, state.doneRepeats, repeats)
        bar.max = maxOf(1, repeats) * STEPS
        bar.progress = state.doneRepeats * STEPS + partOfRepeat(state)
        decode.text = rate(state.decodeRate)
        prefill.text = rate(state.prefillRate)
        memory.text = bytes(state.memory?.headline)
        free.text = bytes(state.memory?.available)
        text.text = state.text
    }

    // A live region speaks each time its text is set, so it is set only when it changes.
    private fun setText(view: TextView, text: String) {
        if (view.text.toString() != text) view.text = text
    }

    private fun stage(state: RunState): String {
        val configurations = state.request?.configurations.orEmpty()
        fun lengths(index: Int) = Format.lengths(context, configurations[index])
        return when (val event = state.last) {
            null, is Event.Started -> context.getString(R.string.stage_starting)
            is Event.Loading -> context.getString(R.string.stage_loading)
            is Event.Loaded -> context.getString(R.string.stage_starting)
            is Event.Counting -> context.getString(R.string.stage_counting, configurations[event.configuration].promptTokens)
            is Event.Warmup -> configurations[event.configuration].warmups.let {
                context.getString(R.string.stage_warmup, event.warmup + 1, it, lengths(event.configuration))
            }
            is Event.Repeating -> repeat(state, event.configuration, event.repeat)
            is Event.Repeated -> repeat(state, event.configuration, event.index)
            is Event.Resting -> context.getString(R.string.stage_resting, event.seconds, event.repeat + 1)
            is Event.Done -> context.getString(R.string.stage_done)
            is Event.Failed -> context.getString(R.string.stage_failed)
            is Event.Token, is Event.Sampled, is Event.LowMemory -> ""
        }
    }

    private fun repeat(state: RunState, index: Int, repeat: Int): String {
        val configuration = state.request!!.configurations[index]
        return context.getString(R.string.stage_repeat, repeat + 1, configuration.repeats, Format.lengths(context, configuration))
    }

    private fun partOfRepeat(state: RunState): Int {
        val event = state.last as? Event.Repeating ?: return 0
        val newTokens = state.request?.configurations?.get(event.configuration)?.newTokens ?: return 0
        return minOf(STEPS, STEPS * state.tokens / newTokens)
    }

    private fun rate(rate: Double?) =
        if (rate == null) context.getString(R.string.unknown) else context.getString(R.string.rate, Format.number(rate))

    private fun bytes(bytes: Long?) = bytes?.let { Format.bytes(it) } ?: context.getString(R.string.unknown)

    private companion object {
        const val STEPS = 100
    }
}

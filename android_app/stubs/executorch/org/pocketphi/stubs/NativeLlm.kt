package org.pocketphi.stubs

import org.pytorch.executorch.extension.llm.LlmCallback

/** Stands where the AAR has its native library; tests put one here. */
interface NativeLlm {
    fun load()

    fun generate(prompt: String, seqLen: Int, echo: Boolean, temperature: Float, callback: LlmCallback)

    fun stop()

    fun resetContext()

    fun close()

    companion object {
        var open: (modulePath: String, tokenizerPath: String, temperature: Float) -> NativeLlm =
            { _, _, _ -> throw UnsatisfiedLinkError("these are declarations; models run with the AAR") }
    }
}

// Signatures of org.pytorch:executorch-android 1.5.1, as far as the app uses them; bodies for tests only.
package org.pytorch.executorch.extension.llm

import java.io.Closeable
import org.pocketphi.stubs.NativeLlm

class LlmModule(modulePath: String, tokenizerPath: String, temperature: Float) : Closeable {
    private val native = NativeLlm.open(modulePath, tokenizerPath, temperature)

    fun load() = native.load()

    fun generate(prompt: String, config: LlmGenerationConfig, llmCallback: LlmCallback) =
        native.generate(prompt, config.seqLen, config.echo, config.temperature, llmCallback)

    fun stop() = native.stop()

    fun resetContext() = native.resetContext()

    override fun close() = native.close()
}

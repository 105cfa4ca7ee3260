// Signatures of org.pytorch:executorch-android 1.5.1, as far as the app uses them; bodies for tests only.
package org.pytorch.executorch.extension.llm

class LlmGenerationConfig private constructor(
    @get:JvmName("isEcho") val echo: Boolean, val seqLen: Int, val temperature: Float,
) {
    companion object {
        @JvmStatic
        fun create(): Builder = Builder()
    }

    class Builder internal constructor() {
        private var echo = true
        private var seqLen = -1
        private var temperature = 0.8f

        fun echo(echo: Boolean): Builder = apply { this.echo = echo }

        fun seqLen(seqLen: Int): Builder = apply { this.seqLen = seqLen }

        fun temperature(temperature: Float): Builder = apply { this.temperature = temperature }

        fun build(): LlmGenerationConfig = LlmGenerationConfig(echo, seqLen, temperature)
    }
}

package org.pocketphi.core

/** Something the user gave cannot be used; [message] is a sentence for a person. */
class BadInput(override val message: String) : Exception(message)

/** The engine failed; [message] is a sentence for a person, [code] ExecuTorch's `runtime/core/error.h`, if there is one. */
open class EngineError(override val message: String, val code: Int? = null, cause: Throwable? = null) : Exception(message, cause)

/** A picture or sound cannot be used; what was said before it stays. */
class MediaRefused(why: EngineError) : EngineError(why.message, why.code, why)

/** [LlmEngine.stop] ended a load. */
class EngineStopped : EngineError("It was stopped.")

/** ExecuTorch's error codes as sentences. */
object EngineErrors {
    /** What a failed load means for a person. */
    fun loading(code: Int, model: String): EngineError = EngineError("$model could not be loaded: ${reason(code)}", code)

    /** What a failed generation means for a person. */
    fun generating(code: Int, promptTokens: Int?, newTokens: Int): EngineError {
        val asked = if (promptTokens == null) "" else " ($promptTokens prompt and $newTokens new tokens were asked for)"
        val text = if (code == INVALID_ARGUMENT) {
            "The prompt does not fit the model's context, or its text cannot be tokenized$asked (code 0x12)."
        } else {
            "The model stopped with an error$asked: ${reason(code)}"
        }
        return EngineError(text, code)
    }

    /** A prompt of so many tokens leaves no room for an answer after the [held] ones of the conversation. */
    fun full(promptTokens: Int, context: Long, held: Int): EngineError {
        val after = if (held > 0) " after the $held it holds" else ""
        return EngineError("The prompt of $promptTokens tokens does not fit the model's context of $context tokens$after.")
    }

    fun textOnly() = EngineError("This engine takes no pictures and no sound.")

    private fun reason(code: Int): String = (REASONS[code] ?: "ExecuTorch gives no reason that is known here") +
        " (code 0x" + code.toString(16).padStart(2, '0') + ")."

    private const val INVALID_ARGUMENT = 0x12

    private val REASONS = mapOf(
        0x01 to "something inside ExecuTorch failed; the file may be damaged or its tokenizer may be of another kind",
        0x02 to "the model is not in a state to do this; the tokenizer may not have loaded",
        0x10 to "this file needs something that this build of ExecuTorch cannot do",
        0x11 to "this file needs something that this build of ExecuTorch does not have yet",
        0x12 to "a value in the file or the request is not valid",
        0x13 to "a tensor in the file has another type than the runtime expects",
        0x14 to "this build lacks an operator that the file uses; it was exported for another version or with other kernels",
        0x20 to "something it needs was not found; the file may lack a method, or a backend is not in this build",
        0x21 to "there is not enough memory",
        0x22 to "the file could not be read; look at its permissions and whether it is all there",
        0x23 to "this is not a valid .pte, or only a part of one; push it again",
        0x24 to "the weights beside the program are not valid; push them again",
        0x25 to "the phone has not enough memory or other resources for it",
        0x30 to "it was made for another version of the backend; export it with the ExecuTorch version of this app",
        0x31 to "the backend could not get enough memory for the weights",
        0x32 to "the backend lost its model",
    )
}

package org.pocketphi.bench

import android.content.Context
import org.pocketphi.core.Mode
import org.pocketphi.core.ModelFiles
import java.io.File

/** The models that are on the phone, and the one that the person chose, which is remembered. */
class ModelChoice(context: Context) {
    private val app = context.applicationContext as BenchApp
    private val remembered = app.getSharedPreferences("choice", Context.MODE_PRIVATE)

    var found = ModelFiles.Found(emptyList(), emptyList())
        private set
    var model: File? = null
        private set
    var tokenizer: File? = null
        private set

    /** The folders again: files come and go by adb. */
    fun look() {
        found = ModelFiles.find(listOf(app.models, File(ModelFiles.PUSHED)))
        model = found.models.firstOrNull { it.path == remembered.getString("model", null) } ?: found.models.firstOrNull()
        tokenizer = found.tokenizers.firstOrNull { it.path == remembered.getString("tokenizer", null) }
            ?: model?.let { ModelFiles.tokenizerFor(it, found.tokenizers) }
    }

    fun choose(model: File? = null, tokenizer: File? = null) {
        val edit = remembered.edit()
        // Another model wants another tokenizer, so the remembered one goes.
        if (model != null) edit.putString("model", model.path).remove("tokenizer")
        if (tokenizer != null) edit.putString("tokenizer", tokenizer.path)
        edit.apply()
        look()
    }

    /** How [model] can be asked in this build, by the manifest beside it. */
    fun modes(model: File): Set<Mode> = ModelFiles.manifest(model)?.modes?.takeIf { app.ownEngine } ?: setOf(Mode.TEXT)

    /** Size and what the manifest says, in a line. */
    fun facts(model: File): String {
        val manifest = ModelFiles.manifest(model)
        return listOfNotNull(Format.bytes(model.length()), manifest?.recipe, manifest?.contextTokens?.let { "$it tokens" })
            .joinToString(" · ")
    }
}

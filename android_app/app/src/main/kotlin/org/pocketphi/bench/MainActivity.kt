package org.pocketphi.bench

import android.app.Activity
import android.app.AlertDialog
import android.content.Intent
import android.os.Bundle
import android.view.View
import android.view.inputmethod.InputMethodManager
import android.widget.Button
import android.widget.CheckBox
import android.widget.LinearLayout
import android.widget.ProgressBar
import android.widget.ScrollView
import android.widget.TextView
import org.pocketphi.core.BadInput
import org.pocketphi.core.Contract
import org.pocketphi.core.LoadMode
import org.pocketphi.core.Mode
import org.pocketphi.core.Model
import org.pocketphi.core.ModelFiles
import org.pocketphi.core.Preflight
import org.pocketphi.core.RunRequest
import java.io.File
import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale

/** Pick a model, say what to measure, watch it run, see the result. */
class MainActivity : Activity() {
    private lateinit var live: LiveViews
    private lateinit var cards: ResultCards
    private lateinit var choice: ModelChoice
    private lateinit var problem: TextView
    private var wasActive = false
    private var refused: String? = null
    private var shown: Any? = null
    private val onRun = { state: RunState -> show(state) }
    private val onImport = { state: ImportState -> show(state) }

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(R.layout.main)
        header(getString(R.string.app_name), back = false)
        action(R.id.action_one, R.drawable.ic_chat, R.string.chat) { startActivity(Intent(this, ChatActivity::class.java)) }
        action(R.id.action_two, R.drawable.ic_history, R.string.history) { startActivity(Intent(this, HistoryActivity::class.java)) }
        live = LiveViews(findViewById(R.id.live))
        cards = ResultCards(findViewById<LinearLayout>(R.id.results))
        choice = ModelChoice(this)
        problem = findViewById(R.id.problem)
        if (state == null) {
            fillIn()
            refused = LastExit.news(this)
        }
        findViewById<View>(R.id.model_row).setOnClickListener { pick(R.string.model, choice.found.models) { choice.choose(model = it) } }
        findViewById<View>(R.id.tokenizer_row).setOnClickListener {
            pick(R.string.tokenizer, choice.found.tokenizers) { choice.choose(tokenizer = it) }
        }
        findViewById<View>(R.id.look_again).setOnClickListener { lookAgain() }
        findViewById<View>(R.id.import_file).setOnClickListener { importOrCancel() }
        findViewById<View>(R.id.engine_row).setOnClickListener { startActivity(Intent(this, SettingsActivity::class.java)) }
        findViewById<View>(R.id.start).setOnClickListener { start() }
        findViewById<View>(R.id.stop).setOnClickListener { app.runs.stop() }
        findViewById<View>(R.id.open_result).setOnClickListener { openResult() }
        findViewById<TextView>(R.id.no_model_commands).text = getString(R.string.no_model_commands, ModelFiles.PUSHED)
    }

    override fun onStart() {
        super.onStart()
        lookAgain()
        app.runs.listen(onRun)
        app.imports.listen(onImport)
    }

    override fun onStop() {
        app.runs.unlisten(onRun)
        app.imports.unlisten(onImport)
        super.onStop()
    }

    private fun fillIn() {
        mapOf(
            R.id.prompt_tokens to "prompt_tokens",
            R.id.new_tokens to "new_tokens",
            R.id.repeats to "repeats",
            R.id.warmups to "warmups",
            R.id.cooldown to "cooldown_s",
        ).forEach { (id, option) -> findViewById<TextView>(id).text = Contract.current.option(option).text }
        findViewById<CheckBox>(R.id.load_each).isChecked = Contract.current.option("load_mode").text == LoadMode.EACH.json
    }

    private fun lookAgain() {
        choice.look()
        val model = choice.model
        val none = choice.found.models.isEmpty()
        findViewById<View>(R.id.no_model).visible(none)
        findViewById<TextView>(R.id.model).text = model?.name ?: getString(R.string.none_chosen)
        findViewById<TextView>(R.id.tokenizer).text = choice.tokenizer?.name ?: getString(R.string.none_chosen)
        findViewById<TextView>(R.id.model_facts).showOrHide(model?.let { choice.facts(it) })
        findViewById<View>(R.id.with_media).visible(model != null && choice.modes(model).size > 1)
        findViewById<TextView>(R.id.engine).setText(if (app.ownEngine) R.string.engine_own else R.string.engine_upstream)
        val packed = app.packed.bytes()
        findViewById<TextView>(R.id.engine_facts).showOrHide(if (packed > 0) getString(R.string.packed_size, Format.bytes(packed)) else null)
    }

    private fun pick(title: Int, files: List<File>, onPick: (File) -> Unit) {
        if (files.isEmpty()) return
        AlertDialog.Builder(this)
            .setTitle(title)
            .setItems(files.map { "${it.name}\n${it.parent}" }.toTypedArray<CharSequence>()) { _, index ->
                onPick(files[index])
                lookAgain()
            }
            .show()
    }

    private fun importOrCancel() {
        if (app.imports.state.active) return app.imports.cancel()
        val pick = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("*/*")
        startActivityForResult(pick, IMPORT)
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        super.onActivityResult(request, result, data)
        val uri = data?.data ?: return
        if (request == IMPORT && result == RESULT_OK) app.imports.start(uri)
    }

    private fun start(ignoreMemory: Boolean = false) {
        fun text(id: Int) = findViewById<TextView>(id).text.toString()
        refused = null
        try {
            val model = choice.model ?: throw BadInput(getString(R.string.no_model) + ".")
            val tokenizer = choice.tokenizer ?: throw BadInput("${model.name} needs its tokenizer: push tokenizer.json beside it.")
            val each = findViewById<CheckBox>(R.id.load_each).isChecked
            val extras = mapOf(
                "run" to "run-" + SimpleDateFormat("yyyyMMdd-HHmmss", Locale.ROOT).format(Date()),
                "model" to model.path, "tokenizer" to tokenizer.path,
                "prompt_tokens" to text(R.id.prompt_tokens), "new_tokens" to text(R.id.new_tokens), "repeats" to text(R.id.repeats),
                "warmups" to text(R.id.warmups), "cooldown_s" to text(R.id.cooldown),
                "modes" to modes(model).joinToString(",") { it.json },
                "load_mode" to (if (each) LoadMode.EACH else LoadMode.ONCE).json,
                "threads" to app.settings.current.engine.threads, "draft_tokens" to app.settings.current.engine.draftTokens,
                "ignore_memory" to if (ignoreMemory) 1 else 0,
            )
            val request = RunRequest.parse(extras)
            if (!ignoreMemory && warned(model, tokenizer)) return
            app.runs.start(request, Logcat)
            leaveFields()
        } catch (wrong: BadInput) {
            refused = wrong.message
            problem.showOrHide(refused)
            findViewById<ScrollView>(R.id.scroll).smoothScrollTo(0, 0)
        }
    }

    /** All that [model] has, or text alone where the person wants no more. */
    private fun modes(model: File): List<Mode> {
        val wanted = findViewById<CheckBox>(R.id.with_media).run { isShown && isChecked }
        return if (wanted) choice.modes(model).toList() else listOf(Mode.TEXT)
    }

    /** Whether memory looks too small and the person is being asked. */
    private fun warned(model: File, tokenizer: File): Boolean {
        try {
            val facts = Model(model.name, model.length(), null, tokenizer.name, ModelFiles.manifest(model))
            Preflight.checkMemory(facts, app.probes.memory(walk = false).available, app.packed.takeIf { app.ownEngine })
            return false
        } catch (short: BadInput) {
            AlertDialog.Builder(this).setMessage(short.message)
                .setPositiveButton(R.string.start_anyway) { _, _ -> start(ignoreMemory = true) }
                .setNegativeButton(R.string.cancel, null)
                .show()
            return true
        }
    }

    // A focused field below the live numbers would pull the screen down to itself.
    private fun leaveFields() {
        val field = currentFocus ?: return
        field.clearFocus()
        (getSystemService(INPUT_METHOD_SERVICE) as InputMethodManager).hideSoftInputFromWindow(field.windowToken, 0)
    }

    private fun show(state: RunState) {
        findViewById<View>(R.id.live).visible(state.active)
        findViewById<View>(R.id.stop).visible(state.active)
        findViewById<Button>(R.id.start).isEnabled = !state.active
        findViewById<View>(R.id.start).alpha = if (state.active) DISABLED else 1f
        findViewById<View>(R.id.open_result).visible(!state.active && state.result != null)
        keepScreenOn(state.active)
        if (state.active) live.show(state)
        if (state.active != wasActive) findViewById<ScrollView>(R.id.scroll).run { post { scrollTo(0, 0) } }
        wasActive = state.active
        problem.showOrHide(refused ?: state.problem)
        // Building the cards takes longer than a token; they change only with a repeat.
        if (shown !== state.result || state.result == null) {
            shown = state.result
            state.result?.let { cards.show(it, withProblem = false) } ?: cards.clear()
        }
    }

    private fun openResult() {
        val name = app.runs.state.request?.name ?: return
        startActivity(Intent(this, ResultActivity::class.java).putExtra(ResultActivity.FILE, app.results.file(name).path))
    }

    private fun show(state: ImportState) {
        val text = when {
            state.problem != null -> state.problem
            state.active -> {
                val total = if (state.total > 0) Format.bytes(state.total) else getString(R.string.unknown)
                getString(R.string.importing, state.name, Format.bytes(state.copied), total)
            }
            state.file != null -> getString(R.string.imported, state.name)
            else -> null
        }
        findViewById<TextView>(R.id.import_state).showOrHide(text)
        val bar = findViewById<ProgressBar>(R.id.import_progress)
        bar.visible(state.active)
        bar.isIndeterminate = state.total == 0L
        if (state.total > 0) bar.progress = (bar.max * state.copied / state.total).toInt()
        findViewById<Button>(R.id.import_file).setText(if (state.active) R.string.cancel else R.string.import_file)
        if (state.file != null) lookAgain()
    }

    private companion object {
        const val IMPORT = 1
        const val DISABLED = 0.4f
    }
}

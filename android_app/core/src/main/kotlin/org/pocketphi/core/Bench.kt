package org.pocketphi.core

import java.io.File
import java.io.IOException
import java.util.concurrent.ConcurrentLinkedQueue
import java.util.concurrent.atomic.AtomicInteger

/** What a run needs of its surroundings. */
class Surroundings(
    val device: Device,
    val build: Build,
    val pid: Int,
    val engines: EngineFactory,
    val probes: Probes,
    val files: ResultFiles,
    val clock: Clock = Clock.System,
    val sampleEveryMs: Long = 2000,
    /** Null: the engine keeps no packed weights. */
    val packed: PackedWeights? = null,
)

/**
 * One run: every configuration's warm-ups and repeats, measured, the result written after each repeat.
 * [run] blocks; the other functions may be called from any thread. Events come from the running thread and, for
 * memory, from the sampler's.
 */
class Bench(private val request: RunRequest, private val around: Surroundings, private val onEvent: (Event) -> Unit) {
    private val clock = around.clock
    private val sampler = MemorySampler(around.probes, clock, around.sampleEveryMs) { phase, memory ->
        onEvent(Event.Sampled(phase, memory))
        watchForLowMemory()
    }
    private val engineLock = Any()
    private var engine: LlmEngine? = null
    @Volatile private var stopped = false
    private val lowMemoryEvents = AtomicInteger()
    private var wasLow = false
    private var worked = false // since the last rest
    private val notes = ConcurrentLinkedQueue<String>()
    private val created = Result.utc(clock.utcMillis())
    private val repeats = request.configurations.map { ArrayList<Repeat>() }
    private var firstLoad: Loading? = null
    private var takes = Takes.TEXT
    private lateinit var model: Model

    private class Loading(val ms: Double, val told: Loaded, val seen: MemorySampler.Seen)

    private class Stopped : Exception()

    /** Ends the run after the token it is at, or in a load; finished repeats stay. */
    fun stop() {
        stopped = true
        synchronized(engineLock) { engine?.stop() }
    }

    /** The system asked for memory; [level] is its name for how badly. */
    fun lowMemory(level: String) {
        lowMemoryEvents.incrementAndGet()
        onEvent(Event.LowMemory(level))
    }

    // Apps on newer systems are told of no levels while they are on the screen.
    private fun watchForLowMemory() {
        val low = around.probes.lowMemory()
        if (low && !wasLow) lowMemory("polled")
        wasLow = low
    }

    /** A sentence that the repeat under way should carry. */
    fun note(sentence: String) {
        if (sentence !in notes) notes.add(sentence)
    }

    fun run() {
        onEvent(Event.Started(around.build.appVersion, around.pid))
        sampler.start()
        val problem = try {
            model = modelFacts()
            Preflight.checkContext(request.configurations, model.manifest)
            if (!request.ignoreMemory) Preflight.checkMemory(model, around.probes.memory(walk = false).available, around.packed)
            measure()
            null
        } catch (_: Stopped) {
            stoppedAfter()
        } catch (_: EngineStopped) {
            stoppedAfter()
        } catch (failure: EngineError) {
            failure.message
        } catch (wrong: BadInput) {
            wrong.message
        } finally {
            sampler.stop()
            unload()
        }
        if (problem == null) {
            val result = result(null)
            onEvent(Event.Done(around.files.file(request.name).path, result))
        } else {
            fail(problem)
        }
    }

    private fun stoppedAfter() = "The run was stopped after ${done()} of ${request.repeats} repeats."

    private fun fail(problem: String) {
        var sentence = problem
        if (repeats.any { it.isNotEmpty() }) {
            try {
                around.files.write(request.name, result(problem))
            } catch (unwritten: BadInput) {
                sentence = "$problem ${unwritten.message}"
            }
        }
        onEvent(Event.Failed(sentence))
    }

    private fun measure() {
        request.configurations.forEachIndexed { index, configuration ->
            val prompt = prompt(index, configuration)
            repeat(configuration.warmups) { warmup ->
                ensureLoaded()
                onEvent(Event.Warmup(index, warmup))
                generate(prompt, configuration)
                if (configuration.loadMode == LoadMode.EACH) unload()
            }
            repeat(configuration.repeats) { repeat ->
                if (configuration.loadMode == LoadMode.ONCE) ensureLoaded()
                if (worked) rest(index, repeat, configuration.cooldownS)
                checkStopped()
                // What happened since a load belongs to the repeat that carries the load.
                if (configuration.loadMode == LoadMode.EACH || firstLoad == null) forget()
                val measured = measureOne(configuration, prompt) { onEvent(Event.Repeating(index, repeat)) }
                repeats[index].add(measured)
                val missing = request.repeats - done()
                val failed = measured.stopReason == StopReason.ERROR
                val problem = if (failed) measured.notes.last() else Contract.current.goesOn(done(), request.repeats)
                val soFar = result(if (missing == 0 && !failed) null else problem)
                around.files.write(request.name, soFar)
                onEvent(Event.Repeated(index, repeat, measured, soFar))
                if (failed) throw EngineError(problem)
            }
        }
    }

    private fun measureOne(configuration: Configuration, prompt: Prompts.Counted, onLoaded: () -> Unit): Repeat {
        val before = around.probes.thermal()
        val each = configuration.loadMode == LoadMode.EACH
        var load = if (each) null else firstLoad.also { firstLoad = null }
        var problem: String? = null
        var timed = Timed.NONE
        var origin = clock.nanos()
        sampler.phase = Phase.IDLE
        try {
            if (each) {
                unload()
                load = load()
                firstLoad = null
            }
            onLoaded()
            sampler.begin()
            origin = clock.nanos() - ((load?.ms ?: 0.0) * 1e6).toLong()
            timed = generate(prompt, configuration)
        } catch (stopped: EngineStopped) {
            throw stopped
        } catch (failure: EngineError) {
            problem = failure.message
        }
        sampler.phase = Phase.IDLE
        val seen = sampler.end(origin)
        val after = around.probes.thermal()
        if (each) unload()
        val contract = Contract.current
        if (before.lowPowerMode == true || after.lowPowerMode == true) note(contract.note("low_power"))
        val generated = timed.generated
        val promptTokens = generated?.promptTokens ?: prompt.tokens
        val mediaTokens = timed.encoded.sumOf { it.tokens }
        if (promptTokens - mediaTokens != configuration.promptTokens) {
            note(contract.note("prompt_length", "found" to promptTokens - mediaTokens, "wanted" to configuration.promptTokens))
        }
        val asked = configuration.newTokens
        if (generated != null && generated.stopReason == StopReason.NEW_TOKENS && generated.generatedTokens < asked) {
            note(contract.note("context_full", "found" to generated.generatedTokens, "wanted" to asked))
        }
        if (generated != null && !timed.everyToken) {
            note(contract.note("no_token_times"))
        }
        problem?.let { notes.add(it) }
        return Repeat(
            measures = timed.measures(promptTokens) + seen.encoding + known("load_ms" to load?.ms),
            promptTokens = promptTokens,
            generatedTokens = generated?.generatedTokens ?: 0,
            tokenMs = timed.tokenMs,
            samples = load?.seen?.samples.orEmpty() + seen.samples,
            peak = (load?.seen?.peak ?: Memory.UNKNOWN).worst(seen.peak),
            before = before,
            after = after,
            lowMemoryEvents = lowMemoryEvents.getAndSet(0),
            stopReason = if (problem != null) StopReason.ERROR else generated!!.stopReason,
            notes = notes.toList().also { notes.clear() },
            packing = load?.told?.packing,
            packingNote = load?.told?.note,
            drafted = generated?.drafted,
            accepted = generated?.accepted,
            mediaTokens = mediaTokens.takeIf { configuration.mode != Mode.TEXT },
        )
    }

    private fun generate(prompt: Prompts.Counted, configuration: Configuration): Timed {
        val media = if (configuration.mode == Mode.TEXT) emptyList() else standard(configuration.mode)
        return generate(media, prompt.text, prompt.tokens.takeIf { media.isEmpty() }, configuration.newTokens)
    }

    private fun standard(mode: Mode): List<Part> {
        val takes = takes
        if (mode !in takes) throw EngineError("${model.file} takes no ${if (mode == Mode.VISION) "pictures" else "sound"}, or this engine cannot.")
        return Contract.current.standard(mode, takes.soundRate)
    }

    private fun generate(media: List<Part>, text: String, promptTokens: Int?, newTokens: Int): Timed {
        val engine = engine!!
        worked = true
        engine.reset()
        checkStopped()
        val prompt = media + Part.Words(text)
        val encoded = if (media.isEmpty()) emptyList() else encode(engine, prompt)
        sampler.phase = Phase.PREFILL
        val times = ArrayList<Long>(newTokens)
        val begin = clock.nanos()
        val generated = engine.generate(prompt, promptTokens, newTokens, Sampling()) { piece ->
            times.add(clock.nanos())
            sampler.phase = Phase.DECODE
            // A stop that came just before the generation is forgotten by engines.
            if (stopped) engine.stop()
            onEvent(Event.Token(piece, times.size - 1, (times.last() - times.first()) / 1e6))
        }
        sampler.phase = Phase.IDLE
        checkStopped()
        return Timed(begin, times, generated, encoded)
    }

    private fun encode(engine: LlmEngine, prompt: List<Part>): List<Encoded> {
        sampler.phase = Phase.ENCODE
        sampler.lookNow()
        return engine.encode(prompt).also {
            sampler.lookNow()
            checkStopped()
        }
    }

    private fun prompt(index: Int, configuration: Configuration): Prompts.Counted {
        // Runs in other modes have the first length.
        val path = request.promptFiles.getOrNull(if (configuration.mode == Mode.TEXT) index else 0)
        if (path != null) return Prompts.Counted(readPrompt(path), configuration.promptTokens)
        onEvent(Event.Counting(index))
        ensureLoaded()
        val counted = Prompts.ofLength(configuration.promptTokens) { count(it) }
        if (configuration.loadMode == LoadMode.EACH) unload()
        return counted
    }

    private fun count(text: String): Int {
        val counted = generate(emptyList(), text, null, 2).generated
        return counted?.promptTokens ?: throw EngineError("The engine does not tell how many tokens a prompt has.")
    }

    private fun readPrompt(path: String): String {
        val text = try {
            File(path).readText()
        } catch (problem: IOException) {
            throw BadInput("The prompt $path cannot be read: ${problem.message}.")
        }
        return text.ifEmpty { throw BadInput("The prompt $path is empty.") }
    }

    private fun ensureLoaded() {
        checkStopped()
        if (engine != null) return
        forget()
        firstLoad = load()
    }

    private fun forget() {
        lowMemoryEvents.set(0)
        notes.clear()
    }

    private fun load(): Loading {
        onEvent(Event.Loading)
        worked = true
        sampler.phase = Phase.LOAD
        sampler.begin()
        val begin = clock.nanos()
        val made = around.engines.create(request.model, request.tokenizer, model.manifest, request.settings)
        synchronized(engineLock) { engine = made }
        val told = made.load()
        takes = told.takes
        val ms = (clock.nanos() - begin) / 1e6
        val seen = sampler.end(begin)
        sampler.phase = Phase.IDLE
        onEvent(Event.Loaded(ms))
        checkStopped()
        return Loading(ms, told, seen)
    }

    private fun unload() = synchronized(engineLock) {
        engine?.close()
        engine = null
    }

    private fun rest(index: Int, repeat: Int, seconds: Int) {
        if (seconds == 0) return
        onEvent(Event.Resting(index, repeat, seconds))
        clock.rest(seconds * 1000L) { stopped }
        worked = false
    }

    private fun checkStopped() {
        if (stopped) throw Stopped()
    }

    private fun done() = repeats.sumOf { it.size }

    private fun result(problem: String?): Result {
        val runs = request.configurations.mapIndexed { index, configuration -> Run(configuration, repeats[index].toList()) }
        return Result(created, problem, around.device, around.build, model, runs)
    }

    private fun modelFacts(): Model {
        val file = ModelFiles.readable(request.model, "model")
        val tokenizer = ModelFiles.readable(request.tokenizer, "tokenizer")
        return Model(file.name, file.length(), request.modelSha256, tokenizer.name, ModelFiles.manifest(file))
    }
}

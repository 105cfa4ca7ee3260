package org.pocketphi.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.io.File

/** A whole run without Android, on a clock that only moves when told. */
class BenchTest {
    @get:Rule val folder = TemporaryFolder()
    private val clock = FakeClock()
    private val engine = FakeEngine(clock)
    private val probes = FakeProbes()
    private val events = ArrayList<Event>()
    private lateinit var files: ResultFiles
    private lateinit var model: File
    private lateinit var tokenizer: File

    @Before
    fun files() {
        files = ResultFiles(File(folder.root, "results"))
        model = File(folder.root, "phi.pte").apply { writeBytes(ByteArray(1234)) }
        tokenizer = File(folder.root, "tokenizer.json").apply { writeText("{}") }
    }

    private val settings = ArrayList<EngineSettings>()

    private fun bench(
        vararg extras: Pair<String, Any?>, engine: LlmEngine = this.engine, sampleEveryMs: Long = 100_000,
        onEvent: (Bench, Event) -> Unit = { _, _ -> },
    ): Bench {
        val request = RunRequest.parse(
            mapOf(
                "run" to "run-1", "model" to model.path, "tokenizer" to tokenizer.path, "prompt_tokens" to "16", "new_tokens" to 11,
                "repeats" to 3, "warmups" to 1, "cooldown_s" to 7,
            ) + extras,
        )
        val around = Surroundings(
            Device("Maker Phone", "SoC", 8_000_000_000, "14", "arm64-v8a", 8), Build("org.pocketphi.bench", "0.1.0", "Fake", "1.5.1"), 42,
            { _, _, _, given -> engine.also { settings.add(given) } }, probes, files, clock, sampleEveryMs,
        )
        lateinit var made: Bench
        made = Bench(request, around) { event ->
            synchronized(events) { events.add(event) }
            onEvent(made, event)
        }
        return made
    }

    private fun saved() = files.read(files.file("run-1"))

    @Test
    fun measures() {
        bench("prompt_tokens" to "16,32").run()
        val result = saved()
        assertTrue(result.complete)
        assertEquals(listOf(3, 3), result.runs.map { it.repeats.size })
        val repeat = result.runs[0].repeats[0]
        assertEquals(16, repeat.promptTokens)
        assertEquals(11, repeat.generatedTokens)
        assertEquals(160.0, repeat.timeToFirstTokenMs!!, 1e-6)
        assertEquals(100.0, repeat.prefillTokensPerS!!, 1e-6)
        assertEquals(20.0, repeat.decodeTokensPerS!!, 1e-6)
        assertEquals(List(10) { 50.0 }, repeat.tokenMs)
        assertEquals(700.0, repeat.loadMs!!, 1e-6)
        assertNull(result.runs[0].repeats[1].loadMs)
        assertNull(result.runs[1].repeats[0].loadMs)
        assertEquals(StopReason.NEW_TOKENS, repeat.stopReason)
        assertEquals(320.0, result.runs[1].summary["time_to_first_token_ms"]!!.median, 1e-6)
        // Two guesses at each length, whose number nobody knows yet, then a warm-up and three repeats.
        assertEquals(listOf(null, null, 16, 16, 16, 16, null, null, 32, 32, 32, 32), engine.promptTokens)
        assertEquals(1, engine.calls.count { it == "load" })
        assertEquals("after counting and warm-ups, between lengths too", List(6) { 7000L }, clock.rests)
        assertEquals(1234, result.model.sizeBytes)
        assertEquals("2026-09-21T14:13:20Z", result.created)
        assertTrue(events.last() is Event.Done)
    }

    @Test
    fun loadsAgainForEach() {
        bench("load_mode" to "each", "warmups" to 0).run()
        val repeats = saved().runs[0].repeats
        assertEquals(listOf(700.0, 700.0, 700.0), repeats.map { it.loadMs })
        assertEquals(Phase.LOAD, repeats[2].samples.first().phase)
        // One more load was for counting the prompt's tokens.
        assertEquals(4, engine.calls.count { it == "load" })
        assertEquals(4, engine.calls.count { it == "close" })
    }

    @Test
    fun theFirstRepeatHasTheLoadsMemory() {
        bench("repeats" to 2).run()
        val (first, second) = saved().runs[0].repeats
        assertEquals(listOf(Phase.LOAD, Phase.LOAD, Phase.IDLE, Phase.IDLE), first.samples.map { it.phase })
        assertTrue(first.samples.zipWithNext().all { (one, next) -> one.atMs <= next.atMs })
        assertEquals(listOf(Phase.IDLE, Phase.IDLE), second.samples.map { it.phase })
        assertEquals(2_200_000_000L, second.peak.rss)
        assertEquals(3_000_000_000L, second.peak.available)
    }

    @Test
    fun aPeakThatWasNotResetAndDidNotGrowIsNotThisRepeats() {
        probes.resets = false
        bench().run()
        assertEquals(2_100_000_000L, saved().runs[0].repeats[1].peak.rss)
    }

    @Test
    fun promptsFromFiles() {
        val prompt = folder.newFile("p.txt").apply { writeText("one two three") }
        bench("prompt_files" to prompt.path, "prompt_tokens" to "6", "warmups" to 0, "repeats" to 1).run()
        assertEquals(listOf("one two three"), engine.prompts)
        val repeat = saved().runs[0].repeats[0]
        assertEquals(5, repeat.promptTokens)
        assertEquals(listOf("The prompt had 5 tokens, 6 were asked for."), repeat.notes)
        assertEquals(700.0, repeat.loadMs!!, 1e-6)
    }

    @Test
    fun tokensWithoutPieces() {
        engine.piecesEvery = 2
        bench("repeats" to 1).run()
        val repeat = saved().runs[0].repeats[0]
        assertEquals(emptyList<Double>(), repeat.tokenMs)
        assertEquals(11, repeat.generatedTokens)
        assertEquals(20.0, repeat.decodeTokensPerS!!, 1e-6)
        assertEquals(160.0, repeat.timeToFirstTokenMs!!, 1e-6)
        assertTrue(repeat.notes.single().contains("spread over several tokens"))
    }

    @Test
    fun theModelEndsItself() {
        engine.endAfter = 4
        bench("repeats" to 1).run()
        val repeat = saved().runs[0].repeats[0]
        assertEquals(StopReason.END_OF_TURN, repeat.stopReason)
        assertEquals(4, repeat.generatedTokens)
    }

    @Test
    fun theContextIsFull() {
        engine.room = 7
        bench("repeats" to 1).run()
        val repeat = saved().runs[0].repeats[0]
        assertEquals(StopReason.NEW_TOKENS, repeat.stopReason)
        assertEquals(listOf("The context had room for 7 new tokens only, 11 were asked for."), repeat.notes)
    }

    @Test
    fun itRestsWheneverSomethingRanBefore() {
        val prompt = folder.newFile("p.txt").apply { writeText("one two three") }
        bench("prompt_files" to "${prompt.path},${prompt.path}", "prompt_tokens" to "5,5", "warmups" to 0, "repeats" to 2).run()
        assertEquals("the first of four after the load", List(4) { 7000L }, clock.rests)
        clock.rests.clear()
        bench("prompt_files" to prompt.path, "prompt_tokens" to "5", "warmups" to 0, "repeats" to 2, "load_mode" to "each").run()
        assertEquals("nothing computes before the first of two that load", listOf(7000L), clock.rests)
    }

    @Test
    fun lengthsThatDoNotFitTheContextAreRefusedBeforeTheRun() {
        File(folder.root, "phi.json").writeText("{\"options\":{\"context\":26}}")
        bench("prompt_tokens" to "8,16").run()
        val wanted = "16 prompt tokens and 11 new ones do not fit the model's context of 26 tokens."
        assertEquals(wanted, (events.last() as Event.Failed).message)
        assertEquals(emptyList<String>(), engine.calls)
    }

    @Test
    fun tooLittleMemoryIsRefusedBeforeTheRunUnlessItIsIgnored() {
        File(folder.root, "phi.json").writeText("{\"options\":{},\"planned\":{\"kv_cache_bytes\":3000000000,\"activation_bytes\":7}}")
        bench().run()
        val refused = (events.last() as Event.Failed).message
        assertEquals("phi.pte needs 3.00 GB of memory (0.0 MB of weights, 3.00 GB planned), 3.00 GB are free: close apps.", refused)
        assertEquals(emptyList<String>(), engine.calls)
        bench("ignore_memory" to 1, "repeats" to 1).run()
        assertTrue(saved().complete)
    }

    @Test
    fun aLoadThatIsStopped() {
        for (mode in listOf("once", "each")) {
            val stopping = object : FakeEngine(clock) {
                override fun load(): Loaded = throw EngineStopped()
            }
            val prompt = File(folder.root, "p.txt").apply { writeText("one two three") }
            bench("load_mode" to mode, "prompt_files" to prompt.path, "warmups" to 0, engine = stopping).run()
            assertEquals("The run was stopped after 0 of 3 repeats.", (events.last() as Event.Failed).message)
            assertFalse(files.file("run-1").exists())
        }
    }

    @Test
    fun whatTheEngineTellsOfPackingAndDrafts() {
        val counting = object : FakeEngine(clock) {
            override fun load() = super.load().let { Loaded(Packing.NONE, "the disk is full", 0, 4) }

            override fun generate(prompt: List<Part>, promptTokens: Int?, newTokens: Int, sampling: Sampling, onPiece: (String) -> Unit) =
                super.generate(prompt, promptTokens, newTokens, sampling) { }
                    .copy(prefillMs = 80.0, decodeMs = 400.0, tokenMs = List(10) { 40.0 }, drafted = 9, accepted = 4)
        }
        bench("draft_tokens" to 3, "repeats" to 2, engine = counting).run()
        val (first, second) = saved().runs[0].repeats
        assertEquals(listOf(Packing.NONE, null), listOf(first.packing, second.packing))
        assertEquals("the disk is full", first.packingNote)
        assertEquals(listOf(9, 4), listOf(second.drafted, second.accepted))
        assertEquals("the engine's own times", List(10) { 40.0 }, first.tokenMs)
        assertEquals(80.0, first.timeToFirstTokenMs!!, 0.0)
        assertEquals(25.0, first.decodeTokensPerS!!, 1e-9)
        assertEquals(3, saved().runs[0].configuration.draftTokens)
        assertEquals(EngineSettings(0, 3), settings.last())
    }

    @Test
    fun pagesAreWalkedOnlyWhereNothingIsTimed() {
        bench("repeats" to 1) { _, event ->
            if (event is Event.Repeating) probes.walks.clear()
            val repeating = synchronized(events) { events.any { it is Event.Repeating } }
            if (event is Event.Token && repeating) assertEquals("before the first token", listOf(true), probes.walks.toList())
        }.run()
        assertEquals("and after the last", listOf(true, true), probes.walks.toList())
    }

    @Test
    fun aShortageThatTheSystemOnlyAnswersWhenAskedIsCountedOnce() {
        bench("repeats" to 2, sampleEveryMs = 1) { _, event ->
            if (event is Event.Repeating) probes.low = event.repeat == 1
            if (event is Event.Token && event.index == 3) Thread.sleep(30)
        }.run()
        assertEquals(listOf(0, 1), saved().runs[0].repeats.map { it.lowMemoryEvents })
        assertEquals(1, events.count { it == Event.LowMemory("polled") })
    }

    @Test
    fun aStopBeforeTheFirstToken() {
        val bench = bench()
        engine.onBegin = { if (events.any { it is Event.Repeating }) bench.stop() }
        bench.run()
        assertEquals("The run was stopped after 0 of 3 repeats.", (events.last() as Event.Failed).message)
        val repeating = events.indexOfFirst { it is Event.Repeating }
        assertEquals(1, events.drop(repeating).count { it is Event.Token })
        assertFalse(files.file("run-1").exists())
    }

    @Test
    fun everyRepeatIsWritten() {
        val seen = ArrayList<Pair<Boolean, Int>>()
        bench { _, event -> if (event is Event.Repeated) seen.add(saved().complete to saved().runs[0].repeats.size) }.run()
        assertEquals(listOf(false to 1, false to 2, true to 3), seen)
        assertEquals(listOf("run-1.json"), files.folder.list()!!.toList())
    }

    @Test
    fun anErrorKeepsWhatIsFinished() {
        engine.failAt = { if (it == 4) EngineErrors.generating(0x21, 16, 11) else null }
        bench("warmups" to 1).run()
        val result = saved()
        assertFalse(result.complete)
        assertTrue(result.problem!!, "not enough memory" in result.problem!!)
        val repeats = result.runs[0].repeats
        assertEquals(StopReason.ERROR, repeats.last().stopReason)
        assertNull(repeats.last().decodeTokensPerS)
        assertEquals(20.0, result.runs[0].summary["decode_tokens_per_s"]!!.max, 1e-6)
        assertEquals(result.problem, (events.last() as Event.Failed).message)
        assertEquals("close", engine.calls.last())
    }

    @Test
    fun aModelThatDoesNotLoad() {
        val broken = object : FakeEngine(clock) {
            override fun load(): Loaded = throw EngineErrors.loading(0x23, "phi.pte")
        }
        val around = EngineFactory { _, _, _, _ -> broken }
        val request = RunRequest.parse(mapOf("run" to "run-1", "model" to model.path, "tokenizer" to tokenizer.path))
        Bench(
            request,
            Surroundings(Device("d", null, null, "14", "x86_64", null), Build("a", "1", "e", null), 1, around, probes, files, clock),
        ) { synchronized(events) { events.add(it) } }.run()
        assertTrue((events.last() as Event.Failed).message.startsWith("phi.pte could not be loaded"))
        assertFalse(files.file("run-1").exists())
    }

    @Test
    fun filesThatAreNotThere() {
        model.delete()
        bench().run()
        assertEquals("The model ${model.path} is not on this device, or apps may not see it.", (events.last() as Event.Failed).message)
        assertEquals(emptyList<String>(), engine.calls)
    }

    @Test
    fun stopping() {
        bench { bench, event ->
            if (event is Event.Token && events.count { it is Event.Repeated } == 1 && event.index == 4) bench.stop()
        }.run()
        val result = saved()
        assertEquals(1, result.runs[0].repeats.size)
        assertEquals("The run was stopped after 1 of 3 repeats.", result.problem)
        assertEquals("close", engine.calls.last())
    }

    @Test
    fun lowMemoryAndNotesAreTheRepeats() {
        bench { bench, event ->
            if (event is Event.Repeating && event.repeat == 1) {
                bench.lowMemory("running_low")
                bench.note("The app went to the background.")
                bench.note("The app went to the background.")
            }
        }.run()
        val repeats = saved().runs[0].repeats
        assertEquals(listOf(0, 1, 0), repeats.map { it.lowMemoryEvents })
        assertEquals(listOf(emptyList(), listOf("The app went to the background."), emptyList()), repeats.map { it.notes })
    }

    @Test
    fun lowMemoryDuringTheRepeat() {
        bench { bench, event ->
            val second = events.count { it is Event.Repeated } == 1
            if (event is Event.Token && event.index == 2 && second) bench.lowMemory("low_memory")
        }.run()
        assertEquals(listOf(0, 1, 0), saved().runs[0].repeats.map { it.lowMemoryEvents })
        assertTrue(events.any { it == Event.LowMemory("low_memory") })
    }

    @Test
    fun heat() {
        probes.thermal = Thermal(ThermalStatus.MODERATE, 44.0, 50.0, true)
        bench("repeats" to 1).run()
        val repeat = saved().runs[0].repeats[0]
        assertTrue(repeat.throttled)
        assertEquals(listOf("The device was in low-power mode."), repeat.notes)
        assertFalse(ThermalStatus.UNKNOWN.throttles)
        assertFalse(ThermalStatus.LIGHT.throttles)
    }

    @Test
    fun progressLines() {
        val lines = ArrayList<String>()
        val sink = ProgressLines("run-1") { synchronized(lines) { lines.add(it) } }
        bench("repeats" to 1) { _, event -> sink.on(event) }.run()
        val read = lines.map { Json.read(it) as Map<*, *> }
        assertTrue(read.all { it["run"] == "run-1" })
        assertEquals(listOf("started", "loading", "loaded", "warmup", "repeat", "done"), read.map { it["event"] })
        assertEquals(42L, read[0]["pid"])
        assertEquals(files.file("run-1").path, read.last()["file"])
        val wanted = setOf(
            "run", "event", "configuration", "repeat", "prefill_tokens_per_s", "decode_tokens_per_s", "time_to_first_token_ms",
            "peak_private_bytes", "peak_pss_bytes", "available_bytes", "thermal",
        )
        assertEquals(wanted, read.first { it["event"] == "repeat" }.keys)
    }

    @Test
    fun picturesAndSoundAreRunsOfTheirOwn() {
        engine.loaded = Loaded(takes = Takes(pictures = true, sound = true, soundRate = 8000))
        engine.onEncode = { probes.memory = probes.memory.copy(privateBytes = 900) }
        probes.memory = probes.memory.copy(privateBytes = 500)
        // While it encodes it is looked at often, though not told of often.
        bench("modes" to "text,vision,speech", "prompt_tokens" to "16,32", "repeats" to 2).run()
        val result = saved()
        assertTrue(result.problem.orEmpty(), result.complete)
        assertEquals(listOf(16 to Mode.TEXT, 32 to Mode.TEXT, 16 to Mode.VISION, 16 to Mode.SPEECH), result.runs.map { it.configuration.run { promptTokens to mode } })
        val repeat = result.runs[2].repeats[1]
        assertEquals(400.0, repeat.measures["encode_ms"]!!, 1e-9)
        assertEquals(66, repeat.promptTokens)
        assertEquals(50, repeat.mediaTokens)
        assertEquals("without what was encoded before", 660.0, repeat.timeToFirstTokenMs!!, 1e-6)
        assertEquals(100.0, repeat.prefillTokensPerS!!, 1e-6)
        assertEquals(emptyList<String>(), repeat.notes)
        assertEquals(900.0, result.runs[2].summary["encoded_bytes"]!!.median, 0.0)
        assertEquals(900.0, result.runs[2].summary["encode_peak_bytes"]!!.max, 0.0)
        assertTrue(repeat.samples.any { it.phase == Phase.ENCODE })
        assertNull(result.runs[0].summary["encode_ms"])
        assertNull(result.runs[0].repeats[0].mediaTokens)
        assertEquals("a warm-up and two repeats", 3, engine.calls.count { it == "picture 448x448" })
        assertEquals(3, engine.calls.count { it == "sound 40000 at 8000" })
        assertEquals(result.runs[3].configuration, Comparison.of(result, result)[3].configuration)
        assertFalse(result.runs[0].configuration.sameLengths(result.runs[2].configuration))
    }

    @Test
    fun theMostMemoryWhileEncodingIsSeen() {
        engine.loaded = Loaded(takes = Takes(pictures = true, sound = false, soundRate = 0))
        engine.onEncode = {
            probes.memory = probes.memory.copy(privateBytes = 900)
            Thread.sleep(400)
            probes.memory = probes.memory.copy(privateBytes = 700)
        }
        probes.memory = probes.memory.copy(privateBytes = 500)
        bench("modes" to "vision", "repeats" to 1, "warmups" to 0).run()
        val summary = saved().runs.single().summary
        assertEquals(900.0, summary["encode_peak_bytes"]!!.median, 0.0)
        assertEquals(700.0, summary["encoded_bytes"]!!.median, 0.0)
    }

    @Test
    fun aModeThatTheFileHasNot() {
        engine.loaded = Loaded(takes = Takes(pictures = true, sound = false, soundRate = 0))
        bench("modes" to "speech").run()
        assertEquals("phi.pte takes no sound, or this engine cannot.", (events.last() as Event.Failed).message)
    }
}

package org.pocketphi.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.io.File

class ResultTest {
    @get:Rule val folder = TemporaryFolder()

    private fun repeat(rate: Double?, peak: Long = 5, reason: StopReason = StopReason.NEW_TOKENS) = Repeat(
        known("load_ms" to 12.5, "time_to_first_token_ms" to 100.0, "prefill_tokens_per_s" to 640.0, "decode_tokens_per_s" to rate),
        64, 128, listOf(1.0, 2.0), listOf(Sample(0.5, Phase.DECODE, Memory.UNKNOWN.copy(pss = 3))),
        Memory.UNKNOWN.copy(pss = peak), Thermal.UNKNOWN, Thermal(ThermalStatus.SEVERE, 40.5, 12.0, null), 1, reason, listOf("note"),
    )

    private fun result(vararg rates: Double?, model: String = "a.pte", problem: String? = null) = Result(
        "2026-11-21T10:00:00Z", problem, Device("Pixel", null, 1, "14", "arm64-v8a", 8), Build("a", "1", "e", "1.5.1"),
        Model(model, 7, null, "t.json", Manifest("phi", "8da4w", 4096, 256, "bf16", 9)),
        listOf(Run(Configuration(64, 128, 3, 1, 10, LoadMode.ONCE), rates.map { repeat(it) })),
    )

    @Test
    fun whatIsWrittenIsRead() {
        val files = ResultFiles(File(folder.root, "deep/results"))
        for (problem in listOf(null, "Stopped.")) {
            val result = result(17.0, null, 19.0, problem = problem)
            assertEquals(result, files.read(files.write("r", result)))
        }
    }

    @Test
    fun historyIsNewestFirstAndLeavesOutWhatIsNoResult() {
        val files = ResultFiles(folder.root)
        files.write("a", result(1.0))
        files.write("b", result(2.0).copy(created = "2026-11-22T10:00:00Z"))
        File(folder.root, "c.json").writeText("{\"schema\":\"other\"}")
        File(folder.root, "d.json").writeText("{")
        File(folder.root, "e.json.partial").writeText("{")
        assertEquals(listOf("b", "a"), files.list().map { it.name })
        assertEquals(emptyList<SavedResult>(), ResultFiles(File(folder.root, "none")).list())
    }

    @Test
    fun damagedResultsAreSentences() {
        val whole = Json.write(result(1.0).toJson())
        val damages = listOf(
            "{\"schema\"" to "{", "\"new_tokens\":128" to "\"x\":1", "\"severe\"" to "\"tepid\"", "\"token_ms\":[1,2]" to "\"token_ms\":[\"1\"]",
            "pocketphi-result/1" to "pocketphi-result/9", "\"runs\":[" to "\"runs\":[3,", "\"phase\":\"decode\"" to "\"phase\":7",
        )
        for ((from, to) in damages) {
            assertTrue(from, from in whole)
            val problem = assertThrows(from, BadInput::class.java) { ResultReader.read(whole.replace(from, to)) }.message
            assertTrue(problem, problem.endsWith("."))
        }
        assertThrows(BadInput::class.java) { ResultReader.read("[]") }
    }

    @Test
    fun aFolderThatCannotBeWritten() {
        val blocked = folder.newFile("file")
        val problem = assertThrows(BadInput::class.java) { ResultFiles(blocked).write("r", result(1.0)) }.message
        assertTrue(problem, "could not be written" in problem)
    }

    @Test
    fun summariesLeaveErrorsOut() {
        val summary = Run.summary(listOf(repeat(10.0, peak = 7), repeat(20.0, peak = 9), repeat(null, peak = 99, reason = StopReason.ERROR)))
        assertEquals(15.0, summary["decode_tokens_per_s"]!!.median, 0.0)
        assertEquals(9.0, summary["peak_pss_bytes"]!!.max, 0.0)
        assertEquals(1.5, summary["token_ms"]!!.median, 0.0)
        assertEquals(Contract.current.metrics.map { it.name }.toSet(), Run.summary(emptyList()).keys)
        assertNull(Run.summary(emptyList())["load_ms"])
        assertNull(summary["peak_rss_bytes"])
    }

    @Test
    fun comparison() {
        val before = result(10.0, 12.0)
        val after = result(22.0, model = "b.pte", problem = "Stopped.")
        val rows = Comparison.of(before, after).single().rows.associateBy { it.metric.name }
        val decode = rows.getValue("decode_tokens_per_s")
        assertEquals(1.0, decode.change!!, 1e-9)
        assertEquals(true, decode.better)
        assertEquals(false, decode.copy(metric = rows.getValue("token_ms").metric).better)
        assertNull(decode.copy(metric = rows.getValue("peak_rss_bytes").metric).better)
        assertNull(decode.copy(after = 11.2).better)
        assertNull(decode.copy(before = null).change)
        val notes = Comparison.differences(before, after)
        assertEquals(listOf("Other models: a.pte and b.pte.", "Some repeats ran on a hot, throttled device.", "A run is incomplete."), notes)
        val other = after.copy(runs = after.runs.map { it.copy(configuration = it.configuration.copy(newTokens = 5)) })
        assertEquals(emptyList<Comparison.Pair>(), Comparison.of(before, other))
    }

    @Test
    fun manifests() {
        val text = "{\"checkpoint\":{\"name\":\"phi\"},\"options\":{\"context\":4096,\"prefill_chunk\":256,\"kv_cache\":\"bf16\"," +
            "\"recipe\":\"8da4w g32\"},\"planned\":{\"kv_cache_bytes\":100,\"activation_bytes\":20}}"
        assertEquals(Manifest("phi", "8da4w g32", 4096, 256, "bf16", 120), Manifest.parse(text))
        val newer = text.replace("\"recipe\":\"8da4w g32\"", "\"recipe\":{\"quantized\":true,\"group_size\":32}")
            .replaceFirst("{", "{\"recipe\":\"8da4w g32, embedding int8\",")
        assertEquals(Manifest("phi", "8da4w g32, embedding int8", 4096, 256, "bf16", 120), Manifest.parse(newer))
        assertEquals(Manifest(null, null, null, null, null, null), Manifest.parse("{\"options\":{}}"))
        assertNull(Manifest.parse("{\"a\":1}"))
        assertNull(Manifest.parse("no"))
    }

    @Test
    fun findingModels() {
        for (name in listOf("b.pte", "a.pte", "tokenizer.json", "a-tokenizer.json", "a.json", "notes.txt")) folder.newFile(name)
        val found = ModelFiles.find(listOf(folder.root, File("/nowhere")))
        assertEquals(listOf("a.pte", "b.pte"), found.models.map { it.name })
        assertEquals(listOf("a-tokenizer.json", "tokenizer.json"), found.tokenizers.map { it.name })
        assertEquals("a-tokenizer.json", ModelFiles.tokenizerFor(found.models[0], found.tokenizers)!!.name)
        assertTrue(assertThrows(BadInput::class.java) { ModelFiles.readable(folder.root.path, "model") }.message.contains("not a file"))
        assertTrue(assertThrows(BadInput::class.java) { ModelFiles.readable(found.models[0].path, "model") }.message.contains("is empty"))
    }
}

package org.pocketphi.core

import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File

/** The bundled contract is the repository's, and nothing of it stands in the code: with another, all else follows. */
class ContractTest {
    private val bundled = Contract.current

    @After
    fun putBack() {
        Contract.current = bundled
    }

    private fun change(vararg changes: Pair<String, String>) {
        var text = Contract.bundled()
        for ((from, to) in changes) {
            assertTrue(from, from in text)
            text = text.replace(from, to)
        }
        Contract.current = Contract(Json.read(text) as Map<*, *>)
    }

    private val least = mapOf<String, Any?>("run" to "r", "model" to "/m.pte", "tokenizer" to "/t.json")

    @Test
    fun theBuildBundlesTheRepositorys() =
        assertEquals(File(Repository.root, "export/bench/contract/bundled/contract.json").readText(), Contract.bundled())

    @Test
    fun wordsAreTheSchemas() {
        val schema = Json.read(File(Repository.root, "export/bench/contract/result.schema.json").readText()) as Map<*, *>
        val definitions = schema["\$defs"] as Map<*, *>
        fun words(definition: String, key: String) =
            (((definitions[definition] as Map<*, *>)["properties"] as Map<*, *>)[key] as Map<*, *>)["enum"]
        assertEquals(words("thermal", "status"), ThermalStatus.entries.map { it.json })
        assertEquals(words("configuration", "load_mode"), LoadMode.entries.map { it.json })
        assertEquals(Contract.current.option("load_mode").choices, LoadMode.entries.map { it.json })
        assertEquals(words("configuration", "mode"), Mode.entries.map { it.json })
        assertEquals(Mode.entries.map { it.json } - "text", Contract.current.modeWords.keys.toList())
        assertEquals(words("sample", "phase"), Phase.entries.map { it.json })
        assertEquals(words("repeat", "stop_reason"), StopReason.entries.map { it.json })
    }

    @Test
    fun defaultsAndRanges() {
        change(
            "[64, 512], \"least\": 1" to "[7, 9], \"least\": 6", "\"default\": 128" to "\"default\": 31", "\"default\": 5," to "\"default\": 4,",
            "\"warmups\": {\"default\": 1" to "\"warmups\": {\"default\": 2", "\"default\": 30" to "\"default\": 77",
            "\"most\": 3600" to "\"most\": 99", "\"default\": \"once\"" to "\"default\": \"each\"",
        )
        val request = RunRequest.parse(least)
        assertEquals(listOf(7, 9).map { Configuration(it, 31, 4, 2, 77, LoadMode.EACH) }, request.configurations)
        for (extra in listOf("prompt_tokens" to "5", "cooldown_s" to 100)) {
            val problem = org.junit.Assert.assertThrows(BadInput::class.java) { RunRequest.parse(least + extra) }.message
            assertTrue(problem, extra.first in problem)
        }
    }

    @Test
    fun tolerancesAndDirections() {
        fun better(name: String, after: Double) =
            Compared(Contract.current.metrics.first { it.name == name }, 100.0, after).better
        assertNull(better("decode_tokens_per_s", 95.5))
        assertEquals(false, better("decode_tokens_per_s", 94.5))
        assertNull(better("peak_rss_bytes", 300.0))
        change(
            "\"better\": \"higher\", \"tolerance\": 0.05" to "\"better\": \"lower\", \"tolerance\": 0.5",
            "\"tolerance\": null" to "\"tolerance\": 0.01",
        )
        assertNull(better("decode_tokens_per_s", 55.0))
        assertEquals(true, better("decode_tokens_per_s", 45.0))
        assertEquals(false, better("peak_rss_bytes", 300.0))
    }

    @Test
    fun aRowIsAMetric() {
        change(
            "\"metrics\": [" to "\"metrics\": [{\"name\": \"trial_percent\", \"label\": \"battery\", \"unit\": \"%\", \"better\": \"higher\", " +
                "\"tolerance\": null, \"from\": \"thermal.after.battery_percent\"}, {\"name\": \"invented\", \"label\": \"invented\", " +
                "\"unit\": \"ms\", \"better\": \"lower\", \"tolerance\": 0.1},",
        )
        val repeat = Repeat(
            mapOf("invented" to 3.5), 1, 1, emptyList(), emptyList(), Memory.UNKNOWN, Thermal.UNKNOWN,
            Thermal.UNKNOWN.copy(batteryPercent = 81.0), 0, StopReason.NEW_TOKENS, emptyList(),
        )
        val result = Result(
            "2026-11-21T10:00:00Z", null, Device("d", null, null, "14", "x86_64", null), Build("a", "1", "e", null),
            Model("m", 1, null, "t", null), listOf(Run(Configuration(1, 1, 1, 0, 0, LoadMode.ONCE), listOf(repeat))),
        )
        val read = ResultReader.read(Json.write(result.toJson()))
        assertEquals(81.0, read.runs[0].summary["trial_percent"]!!.median, 0.0)
        assertEquals(3.5, read.runs[0].summary["invented"]!!.median, 0.0)
        assertEquals("invented", Comparison.of(result, read)[0].rows[1].metric.label)
    }

    @Test
    fun heatNotesAndTheChat() {
        assertTrue(ThermalStatus.MODERATE.throttles)
        assertEquals("4 apples", ChatFormat.visible("4 apples<|endoftext|> and"))
        change("\"moderate\", \"severe\"" to "\"severe\"", "<|{role}|>" to "[{role}]", "\"<|end|>\"" to "\"[end]\"", "<|endoftext|>" to "[stop]")
        assertFalse(ThermalStatus.MODERATE.throttles)
        assertEquals("[user]Hi[end][assistant]", ChatFormat.render(listOf(Message(Role.USER, "Hi"))))
        assertEquals("4", ChatFormat.visible("4[stop]<|end|>"))
        assertEquals("4", ChatFormat.visible("4[sto"))
        assertEquals("4[sto", ChatFormat.whole("4[sto"))
        assertEquals("4<|end|>", ChatFormat.visible("4<|end|>"))
    }
}

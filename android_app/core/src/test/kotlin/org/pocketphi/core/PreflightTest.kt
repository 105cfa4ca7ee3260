package org.pocketphi.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.io.File

class PreflightTest {
    @get:Rule val folder = TemporaryFolder()

    private fun model(bytes: Long, planned: Long?) =
        Model("phi.pte", bytes, null, "t.json", Manifest(null, null, null, null, null, planned))

    private fun refusal(model: Model, available: Long?, packed: PackedWeights?) = try {
        Preflight.checkMemory(model, available, packed)
        null
    } catch (short: BadInput) {
        short.message
    }

    @Test
    fun weightsCountUnlessTheyLieInAFile() {
        val model = model(2_800_000_000, 550_000_000)
        assertEquals(
            "phi.pte needs 3.35 GB of memory (2.80 GB of weights, 550.0 MB planned), 3.00 GB are free: close apps.",
            refusal(model, 3_000_000_000, null),
        )
        assertEquals(null, refusal(model, 3_350_000_000, null))
        assertEquals("what nobody tells is no reason", null, refusal(model, null, null))
        val packed = PackedWeights(File(folder.root, "not/yet"))
        assertTrue(packed.free() > 4_000_000)
        assertEquals(null, refusal(model(4_000_000, 500), 600, packed))
        assertEquals("phi.pte needs 700.0 MB of memory (700.0 MB planned), 0.0 MB are free: close apps.", refusal(model(4_000_000, 700_000_000), 600, packed))
    }

    @Test
    fun withoutSpaceForAFileWeightsCountUnlessItIsThereAlready() {
        val full = PackedWeights(File(folder.root, "packed").apply { mkdir() })
        val huge = model(Long.MAX_VALUE / 2, null)
        val refused = refusal(huge, 1_000_000_000, full)!!
        assertTrue(refused, refused.endsWith(" of storage are too few for them."))
        File(full.folder, "a.packed").writeText("packed")
        assertEquals(6, full.bytes())
        assertEquals(null, refusal(huge, 1_000_000_000, full))
        full.delete()
        assertEquals(0, full.bytes())
    }

    @Test
    fun settings() {
        val texts = mapOf(
            "threads" to "4", "draft_tokens" to "8", "temperature" to "0.7", "top_k" to "40", "top_p" to "0.95", "seed" to "123456789012",
            "system" to " Be brief. ",
        )
        val settings = Settings.parse(texts)
        assertEquals(Settings(EngineSettings(4, 8), Sampling(0.7f, 40, 0.95f, 123456789012), "Be brief."), settings)
        assertEquals(settings, Settings.parse(settings.texts()))
        assertEquals(Settings(), Settings.parse(emptyMap()))
        for ((key, text) in listOf("threads" to "1.5", "temperature" to "hot", "top_p" to "1.01", "top_k" to "-1", "seed" to "")) {
            val refused = assertThrows(BadInput::class.java) { Settings.parse(texts + (key to text)) }.message
            assertTrue(refused, refused.startsWith("$key is \"$text\"; it wants a"))
        }
    }
}

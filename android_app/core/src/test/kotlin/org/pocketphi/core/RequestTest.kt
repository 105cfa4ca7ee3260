package org.pocketphi.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

/** The extras of docs/app_protocol.md. */
class RequestTest {
    private val least = mapOf<String, Any?>("run" to "r-1", "model" to "/m.pte", "tokenizer" to "/t.json")

    private fun refused(vararg extras: Pair<String, Any?>): String =
        assertThrows(BadInput::class.java) { RunRequest.parse(least + extras) }.message

    @Test
    fun everythingIsTaken() {
        val request = RunRequest.parse(
            least + mapOf(
                "prompt_tokens" to "64, 512", "prompt_files" to "/a.txt,/b.txt", "new_tokens" to 32, "repeats" to 3, "warmups" to 0,
                "cooldown_s" to 30, "load_mode" to "each", "model_sha256" to "0123456789abcdef".repeat(4),
            ),
        )
        assertEquals(Configuration(64, 32, 3, 0, 30, LoadMode.EACH), request.configurations[0])
        assertEquals(Configuration(512, 32, 3, 0, 30, LoadMode.EACH), request.configurations[1])
        assertEquals(listOf("/a.txt", "/b.txt"), request.promptFiles)
        assertEquals(6, request.repeats)
    }

    @Test
    fun defaults() {
        val request = RunRequest.parse(least)
        assertEquals(listOf(64, 512), request.configurations.map { it.promptTokens })
        assertTrue(request.configurations.all { it.newTokens == 128 && it.repeats == 5 && it.loadMode == LoadMode.ONCE })
    }

    @Test
    fun fieldsOfAScreenAreText() = assertEquals(7, RunRequest.parse(least + ("repeats" to " 7 ")).repeats / 2)

    @Test
    fun wrongValuesAreNamed() {
        assertEquals("The run's name is \"../x\"; 1 to 64 of a-z, 0-9 and - are allowed.", refused("run" to "../x"))
        assertTrue(refused("run" to null).contains("\"run\" is missing"))
        assertTrue(refused("run" to "a".repeat(65)).contains("1 to 64"))
        assertTrue(refused("model" to null).contains("\"model\" is missing"))
        assertTrue(refused("tokenizer" to "t.json").contains("not an absolute path"))
        for (lengths in listOf("", "64,", "0", "64;512", "-1", "131073", "9".repeat(30))) {
            assertTrue(refused("prompt_tokens" to lengths).contains("\"$lengths\""))
        }
        assertEquals("new_tokens is \"0\"; it wants a whole number from 1 to 131072.", refused("new_tokens" to 0))
        assertTrue(refused("repeats" to "many").contains("\"many\""))
        assertTrue(refused("warmups" to -1).contains("from 0 to 100"))
        assertTrue(refused("cooldown_s" to "1.5").contains("whole number"))
        assertTrue(refused("load_mode" to "twice").contains("\"twice\""))
        assertTrue(refused("model_sha256" to "ABC").contains("64 lower-case hex digits"))
        assertEquals("prompt_files names 1 files, but prompt_tokens has 2 lengths.", refused("prompt_files" to "/a.txt"))
    }
}

package org.pocketphi.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class JsonTest {
    @Test
    fun whatIsWrittenIsRead() {
        val value = linkedMapOf(
            "text" to "a\"b\\c\n\t\u0001 é 漢 😀 \ud83d", "numbers" to listOf(1L, -2L, 0.5, 1e-7, 9007199254740993L),
            "nothing" to null, "yes" to true, "empty" to emptyMap<String, Any?>(), "list" to listOf(emptyList<Any?>(), listOf("x")),
        )
        for (indent in 0..2) assertEquals(value, Json.read(Json.write(value, indent)))
    }

    @Test
    fun wholeNumbersHaveNoPoint() {
        assertEquals("[5,0,-3,5.5]", Json.write(listOf(5.0, 0.0, -3L, 5.5)))
        assertThrows(IllegalArgumentException::class.java) { Json.write(Double.NaN) }
        assertThrows(IllegalArgumentException::class.java) { Json.write(listOf(Double.POSITIVE_INFINITY)) }
    }

    @Test
    fun oneLineWithoutIndent() = assertEquals("{\"a\":[1,2],\"b\":{}}", Json.write(mapOf("a" to listOf(1, 2), "b" to emptyMap<String, Any?>())))

    @Test
    fun escapes() = assertEquals("/\b\u000c\n\r\té", Json.read("\"\\/\\b\\f\\n\\r\\t\\u00e9\""))

    @Test
    fun damageIsASentence() {
        val damaged = listOf(
            "", "{", "[1,", "[1 2]", "{\"a\" 1}", "{a:1}", "01", "1.", "+1", "nul", "\"a", "\"\\x\"", "\"\\u12\"", "\"\\u-123\"", "[1]]",
            "{\"a\":1,}", "[,]", "\"\n\"", "NaN", "[".repeat(5000),
        )
        for (text in damaged) {
            val problem = assertThrows(text, JsonError::class.java) { Json.read(text) }
            assertTrue(problem.message!!, problem.message!!.startsWith("not JSON at character "))
        }
    }
}

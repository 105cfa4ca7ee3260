package org.pocketphi.core

/** The text was not JSON; [message] is a sentence with the position in characters. */
class JsonError(message: String) : Exception(message)

/**
 * Reads and writes JSON as plain Kotlin values: Map, List, String, Long, Double, Boolean, null.
 *
 * Android's org.json is empty outside a device and sorts nothing; a library would be this module's only dependency.
 */
object Json {
    /** [indent] 0 gives one line. Numbers that JSON cannot write (NaN, infinity) are a programming error. */
    fun write(value: Any?, indent: Int = 0): String = StringBuilder().also { append(it, value, indent, 0) }.toString()

    /** One value and nothing after it. Throws [JsonError]. */
    fun read(text: String): Any? = Reader(text).document()

    private fun append(out: StringBuilder, value: Any?, indent: Int, depth: Int) {
        when (value) {
            null -> out.append("null")
            is String -> quote(out, value)
            is Boolean -> out.append(value)
            is Int, is Long -> out.append(value)
            is Double -> {
                require(!value.isNaN() && !value.isInfinite()) { "$value has no JSON form" }
                val whole = value.toLong()
                if (whole.toDouble() == value && Math.abs(value) < 1e15) out.append(whole) else out.append(value)
            }
            is Map<*, *> -> block(out, '{', '}', value.entries, indent, depth) { entry ->
                quote(out, entry.key as String)
                out.append(if (indent > 0) ": " else ":")
                append(out, entry.value, indent, depth + 1)
            }
            // Numbers alone stay on one line: token times are hundreds.
            is List<*> -> block(out, '[', ']', value, if (value.all { it is Number }) 0 else indent, depth) {
                append(out, it, indent, depth + 1)
            }
            else -> throw IllegalArgumentException("${value.javaClass.name} has no JSON form")
        }
    }

    private fun <T> block(
        out: StringBuilder, open: Char, close: Char, items: Collection<T>, indent: Int, depth: Int, item: (T) -> Unit,
    ) {
        out.append(open)
        items.forEachIndexed { index, value ->
            if (index > 0) out.append(',')
            if (indent > 0) newline(out, indent * (depth + 1))
            item(value)
        }
        if (indent > 0 && items.isNotEmpty()) newline(out, indent * depth)
        out.append(close)
    }

    private fun newline(out: StringBuilder, spaces: Int) {
        out.append('\n')
        repeat(spaces) { out.append(' ') }
    }

    private fun quote(out: StringBuilder, text: String) {
        out.append('"')
        for (char in text) {
            when {
                char == '"' -> out.append("\\\"")
                char == '\\' -> out.append("\\\\")
                char == '\n' -> out.append("\\n")
                char == '\r' -> out.append("\\r")
                char == '\t' -> out.append("\\t")
                // Lone surrogates have no UTF-8 form, so they go out escaped as pairs do.
                char < ' ' || char.isSurrogate() || char == '\u2028' || char == '\u2029' -> escape(out, char)
                else -> out.append(char)
            }
        }
        out.append('"')
    }

    private fun escape(out: StringBuilder, char: Char) {
        out.append("\\u").append(char.code.toString(16).padStart(4, '0'))
    }

    private class Reader(private val text: String) {
        private var at = 0

        fun document(): Any? {
            val value = value(0)
            space()
            if (at < text.length) fail("something follows the value")
            return value
        }

        private fun value(depth: Int): Any? {
            if (depth > 100) fail("more than 100 values inside each other")
            space()
            return when (peek()) {
                '{' -> map(depth)
                '[' -> list(depth)
                '"' -> string()
                't' -> word("true", true)
                'f' -> word("false", false)
                'n' -> word("null", null)
                else -> number()
            }
        }

        private fun map(depth: Int): Map<String, Any?> {
            val map = LinkedHashMap<String, Any?>()
            at++
            space()
            while (peek() != '}') {
                if (map.isNotEmpty()) expect(',')
                space()
                if (peek() != '"') fail("a key was expected")
                val key = string()
                space()
                expect(':')
                map[key] = value(depth + 1)
                space()
            }
            at++
            return map
        }

        private fun list(depth: Int): List<Any?> {
            val list = ArrayList<Any?>()
            at++
            space()
            while (peek() != ']') {
                if (list.isNotEmpty()) expect(',')
                list.add(value(depth + 1))
                space()
            }
            at++
            return list
        }

        private fun string(): String {
            val out = StringBuilder()
            at++
            while (true) {
                val char = peek()
                at++
                when {
                    char == '"' -> return out.toString()
                    char == '\\' -> out.append(escaped())
                    char < ' ' -> fail("a control character stands in a string")
                    else -> out.append(char)
                }
            }
        }

        private fun escaped(): Char {
            val char = peek()
            at++
            return when (char) {
                '"', '\\', '/' -> char
                'b' -> '\b'
                'f' -> '\u000c'
                'n' -> '\n'
                'r' -> '\r'
                't' -> '\t'
                'u' -> {
                    val digits = text.substring(at, minOf(at + 4, text.length))
                    if (digits.length < 4 || digits.any { Character.digit(it, 16) < 0 }) fail("\\u wants four hex digits")
                    at += 4
                    digits.toInt(16).toChar()
                }
                else -> fail("\\$char is no escape")
            }
        }

        private fun number(): Any {
            val match = NUMBER.find(text, at)
            if (match == null || match.range.first != at) fail("a value was expected")
            at = match.range.last + 1
            return match.value.toLongOrNull() ?: match.value.toDouble()
        }

        private fun word(word: String, value: Any?): Any? {
            if (!text.startsWith(word, at)) fail("a value was expected")
            at += word.length
            return value
        }

        private fun space() {
            while (at < text.length && text[at] in " \t\r\n") at++
        }

        private fun peek(): Char = if (at < text.length) text[at] else fail("the text ends too early")

        private fun expect(char: Char) {
            if (peek() != char) fail("'$char' was expected")
            at++
        }

        private fun fail(what: String): Nothing = throw JsonError("not JSON at character $at: $what")
    }

    private val NUMBER = Regex("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?")
}

package org.pocketphi.core

/** Text of a wanted number of tokens, for an engine that can count but not tokenize. */
object Prompts {
    private const val TEXT =
        "The old harbour lay quiet in the morning light while the boats came home from the sea . " +
            "People walked along the long stone wall and talked about the weather , the price of fish and the children . " +
            "A small dog ran up and down between them and looked for something to eat . "
    private val WORDS = TEXT.trim().split(' ')
    private const val TRIES = 8

    /** [words] words of a text that begins again at its end. */
    fun text(words: Int): String = (0 until words).joinToString(" ") { WORDS[it % WORDS.size] }

    /**
     * The text whose number of tokens is [tokens] or, where no text that was tried has just as many, comes nearest.
     * [count] asks the engine, which costs a prefill, so the next try is always a straight line's guess.
     */
    fun ofLength(tokens: Int, count: (String) -> Int): Counted {
        var words = tokens
        val tried = sortedMapOf<Int, Int>()
        repeat(TRIES) {
            val found = tried.getOrPut(words) { count(text(words)) }
            if (found == tokens) return Counted(text(words), tokens)
            words = next(words, found, tokens, tried)
            if (words in tried) return@repeat
        }
        val nearest = tried.minByOrNull { Math.abs(it.value - tokens) }!!
        return Counted(text(nearest.key), nearest.value)
    }

    private fun next(words: Int, found: Int, wanted: Int, tried: Map<Int, Int>): Int {
        val slope = tried.entries.filter { it.key != words }.minByOrNull { Math.abs(it.value - wanted) }
            ?.let { (found - it.value).toDouble() / (words - it.key) }?.takeIf { it > 0.1 }
            ?: (found.toDouble() / words)
        val guess = maxOf(1, Math.round(words + (wanted - found) / slope).toInt())
        if (guess !in tried) return guess
        return maxOf(1, words + if (found < wanted) 1 else -1)
    }

    /** [tokens] as counted by the engine. */
    data class Counted(val text: String, val tokens: Int)
}

package org.pocketphi.core

import java.io.File

/** A clock that only moves when told, so that rates are exact. */
class FakeClock : Clock {
    @Volatile var now = 1_000_000L
    val rests = ArrayList<Long>()

    override fun nanos(): Long = now

    override fun utcMillis(): Long = 1_790_000_000_000

    override fun rest(millis: Long, until: () -> Boolean) {
        rests.add(millis)
    }

    fun pass(millis: Double) {
        now += (millis * 1e6).toLong()
    }
}

/** Counts two tokens more than words; 10 ms a prompt token, 50 ms a new one, 700 ms to load. */
open class FakeEngine(private val clock: FakeClock) : LlmEngine {
    val calls = ArrayList<String>()
    val prompts = ArrayList<String>()
    val promptTokens = ArrayList<Int?>()
    var failAt: (Int) -> EngineError? = { null }
    var piecesEvery = 1
    var endAfter = Int.MAX_VALUE
    var room = Int.MAX_VALUE
    @Volatile var stopAsked = false
    var onBegin: () -> Unit = {}
    var onToken: (Int) -> Unit = {}
    private var generations = 0

    var loaded = Loaded()
    var onEncode: () -> Unit = {}

    override fun load(): Loaded {
        calls.add("load")
        clock.pass(700.0)
        return loaded
    }

    override fun generate(prompt: List<Part>, promptTokens: Int?, newTokens: Int, sampling: Sampling, onPiece: (String) -> Unit): Generated {
        calls.add("generate $newTokens")
        val text = prompt.filterIsInstance<Part.Words>().joinToString("") { it.text }
        prompts.add(text)
        this.promptTokens.add(promptTokens)
        failAt(generations++)?.let { throw it }
        val tokens = text.split(' ').size + 2 + prompt.count { it !is Part.Words } * MEDIA_TOKENS
        clock.pass(10.0 * tokens)
        onBegin()
        stopAsked = false
        var made = 0
        var pieces = 0
        val limit = minOf(newTokens, room)
        while (made < minOf(limit, endAfter) && !stopAsked) {
            if (made > 0) clock.pass(50.0)
            made++
            if (made % piecesEvery == 0) {
                pieces++
                onPiece("t$made ")
            }
            onToken(made)
        }
        val reason = if (stopAsked) StopReason.STOPPED else if (made == limit) StopReason.NEW_TOKENS else StopReason.END_OF_TURN
        return Generated(tokens, made, pieces, 10.0 * tokens, 50.0 * (made - 1), reason, "t$made ")
    }

    override fun encode(prompt: List<Part>, onPart: (Encoding) -> Unit): List<Encoded> = prompt.filter { it !is Part.Words }.map {
        for (done in 0..1) onPart(Encoding(it, done, 2))
        calls.add(if (it is Part.Picture) "picture ${it.width}x${it.height}" else "sound ${(it as Part.Sound).samples.size} at ${it.rate}")
        onEncode()
        clock.pass(400.0)
        Encoded(MEDIA_TOKENS, 2, false, 30.0, 370.0)
    }

    override fun stop() {
        stopAsked = true
    }

    override fun reset() {
        calls.add("reset")
    }

    override fun close() {
        calls.add("close")
    }

    companion object {
        const val MEDIA_TOKENS = 50
    }
}

class FakeProbes : Probes {
    @Volatile var memory = Memory(2_000_000_000, 2_100_000_000, 1_900_000_000, 1_500_000_000, 3_000_000_000)
    var thermal = Thermal(ThermalStatus.NONE, 31.5, 80.0, false)
    var resets = true
    @Volatile var peak: Long? = 2_200_000_000

    @Volatile var low = false
    val walks = java.util.concurrent.ConcurrentLinkedQueue<Boolean>()

    override fun memory(walk: Boolean): Memory {
        walks.add(walk)
        return if (walk) memory else memory.copy(pss = null, privateDirty = null)
    }

    override fun lowMemory() = low

    override fun thermal() = thermal

    override fun resetPeakRss() = resets

    override fun peakRss() = peak
}

object Repository {
    /** The repository's folder, which Gradle's and Maven's tests both find. */
    val root: File = System.getProperty("pocketphi.root")?.let { File(it) }
        ?: generateSequence(File("").absoluteFile) { it.parentFile }.first { File(it, "export/bench/contract").isDirectory }

    @Suppress("UNCHECKED_CAST")
    fun vectors(key: String): List<Map<String, Any?>> {
        val all = Json.read(File(root, "export/bench/contract/vectors.json").readText()) as Map<String, Any?>
        return (all[key] as List<Map<String, Any?>>).also { check(it.isNotEmpty()) }
    }
}

package org.pocketphi.bench

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.pocketphi.core.Part
import org.robolectric.RobolectricTestRunner
import org.robolectric.annotation.Config
import org.robolectric.shadows.ShadowAudioRecord
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit

/** What a microphone gives to [ShadowAudioRecord]: numbers that count on, [pieces] times. */
class Microphone(private val pieces: Int = Int.MAX_VALUE, private val then: () -> Int = { 0 }) : ShadowAudioRecord.AudioRecordSource {
    private var given = 0
    private var next = 0

    override fun readInShortArray(into: ShortArray, at: Int, count: Int, isBlocking: Boolean): Int {
        if (given++ >= pieces) return then()
        for (index in 0 until count) into[at + index] = (next++ % 20_000).toShort()
        return count
    }
}

fun setMicrophone(microphone: Microphone) = ShadowAudioRecord.setSourceProvider { microphone }

@RunWith(RobolectricTestRunner::class)
@Config(sdk = [34])
class RecorderTest {
    private fun record(microphone: Microphone, stopAfter: Int): Triple<Part.Sound?, String?, List<Pair<Int, Float>>> {
        setMicrophone(microphone)
        val heard = ArrayList<Pair<Int, Float>>()
        val ended = CountDownLatch(1)
        var sound: Part.Sound? = null
        var problem: String? = null
        lateinit var recorder: Recorder
        recorder = Recorder(
            { count, loudness ->
                heard.add(count to loudness)
                if (heard.size == stopAfter) recorder.stop()
            },
            { made, said ->
                sound = made
                problem = said
                ended.countDown()
            },
        )
        recorder.start()
        assertTrue("the recording's end", ended.await(20, TimeUnit.SECONDS))
        ShadowAudioRecord.clearSource()
        return Triple(sound, problem, heard)
    }

    @Test
    fun samplesAreThoseOfTheMicrophone() {
        val (sound, problem, heard) = record(Microphone(), stopAfter = 3)
        assertNull(problem)
        assertEquals(16_000, sound!!.rate)
        assertEquals(listOf(1600, 3200, 4800), heard.map { it.first })
        assertEquals(4800, sound.samples.size)
        for (at in listOf(0, 1, 1600, 4799)) assertEquals(at / 32768f, sound.samples[at], 0f)
        assertTrue("$heard", heard[0].second in 0.02f..0.04f && heard[2].second > heard[1].second)
    }

    @Test
    fun itEndsByItselfAtTheLimit() {
        val (sound, problem, _) = record(Microphone(), stopAfter = -1)
        assertNull(problem)
        assertEquals(60.0, sound!!.seconds, 0.0)
    }

    @Test
    fun failuresAreSentencesAndKeepNothing() {
        val broken = record(Microphone(pieces = 2) { -3 }, stopAfter = -1)
        assertEquals("The microphone failed while it was recording (code -3).", broken.second)
        assertNull(broken.first)
    }
}

package org.pocketphi.core

interface Clock {
    /** Never goes back; nanoseconds. */
    fun nanos(): Long

    /** Since 1970. */
    fun utcMillis(): Long

    /** Sleeps [millis], or less when [until] becomes true. */
    fun rest(millis: Long, until: () -> Boolean)

    object System : Clock {
        override fun nanos(): Long = java.lang.System.nanoTime()

        override fun utcMillis(): Long = java.lang.System.currentTimeMillis()

        override fun rest(millis: Long, until: () -> Boolean) {
            val end = nanos() + millis * 1_000_000
            while (!until()) {
                val left = (end - nanos()) / 1_000_000
                if (left <= 0) return
                Thread.sleep(minOf(left, 50))
            }
        }
    }
}

package org.pocketphi.core

/** What a conversation is made of for the C++ engine: ids of words, and pictures and sounds with theirs where they are known. */
internal class Transcript(private val pieces: List<Piece>) {
    sealed interface Piece {
        class Ids(val ids: LongArray) : Piece

        /** [ids] by the mode of the whole prompt: a sound is other ids beside a picture. Empty until it is encoded. */
        class Media(val of: Part, val ids: HashMap<Mode, LongArray>) : Piece
    }

    val media: List<Piece.Media> get() = pieces.filterIsInstance<Piece.Media>()
    val mode: Mode get() = Mode.of(media.map { it.of })

    operator fun plus(other: Transcript) = Transcript(pieces + other.pieces)

    /** All ids, without those of what has not been encoded for [mode]. */
    fun ids(mode: Mode): LongArray = joined(pieces, mode)

    /** Whether the session that holds [fed] has all of [piece] and everything before it, so that its rows are not needed again. */
    fun isFed(piece: Piece.Media, fed: LongArray): Boolean {
        val upTo = pieces.take(pieces.indexOf(piece) + 1)
        if (upTo.any { it is Piece.Media && mode !in it.ids }) return false
        val ids = joined(upTo, mode)
        return ids.size <= fed.size && ids.indices.all { ids[it] == fed[it] }
    }

    private fun joined(pieces: List<Piece>, mode: Mode): LongArray {
        val parts = pieces.map { if (it is Piece.Media) it.ids[mode] ?: LongArray(0) else (it as Piece.Ids).ids }
        val all = LongArray(parts.sumOf { it.size })
        parts.fold(0) { at, ids -> ids.copyInto(all, at).let { at + ids.size } }
        return all
    }
}

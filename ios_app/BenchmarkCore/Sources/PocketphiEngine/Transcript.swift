import BenchmarkCore

/// A picture or sound, and its ids by the mode of the whole prompt: a sound is other ids beside a picture. Empty until it
/// is encoded.
final class MediaIds {
  let media: Media
  var by: [Mode: [Int64]] = [:]

  init(_ media: Media) {
    self.media = media
  }
}

/// What a conversation is made of for the engine: ids of words, and pictures and sounds with theirs.
struct Transcript {
  enum Piece {
    case ids([Int64])
    case media(MediaIds)
  }

  private var pieces: [Piece] = []
  /// The pictures and sounds that have been encoded, which are kept: another could get the place of one that is gone.
  var known: [ObjectIdentifier: MediaIds] = [:]

  init(pieces: [Piece] = []) {
    self.pieces = pieces
  }

  static func + (one: Transcript, other: Transcript) -> Transcript {
    var both = one
    both.pieces += other.pieces
    return both
  }

  /// Pictures and sounds, each with its place among the pieces.
  var media: [(at: Int, ids: MediaIds)] {
    pieces.enumerated().compactMap { at, piece in
      if case .media(let ids) = piece { (at, ids) } else { nil }
    }
  }

  var hasMedia: Bool { !media.isEmpty }
  var mode: Mode { Mode(of: media.map(\.ids.media)) }

  /// All ids, without those of what has not been encoded for the mode.
  var ids: [Int64] { ids(upTo: pieces.count) }

  /// Whether the session that holds `fed` has all of the piece `at` and everything before it, so that its rows are not
  /// needed again.
  func isFed(_ at: Int, _ fed: [Int64]) -> Bool {
    let mode = mode
    guard media.allSatisfy({ $0.at > at || $0.ids.by[mode] != nil }) else { return false }
    return fed.starts(with: ids(upTo: at + 1))
  }

  private func ids(upTo end: Int) -> [Int64] {
    let mode = mode
    return pieces[..<end].flatMap { piece in
      switch piece {
      case .ids(let ids): ids
      case .media(let ids): ids.by[mode] ?? []
      }
    }
  }
}

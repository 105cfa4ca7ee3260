import BenchmarkCore
import Foundation
import Testing

@testable import PocketphiEngine

/// The real engine on a multimodal file: mm.pte, mm-tokenizer.json and turns.json of POCKETPHI_CASE, where Python's side
/// says what the session holds after each turn of a conversation.
struct MediaTurns: Decodable {
  struct Turn: Decodable {
    let text: String
    let held: [Int64]
  }

  let sound: Turn
  let picture: Turn
  let words: Turn

  static func read() throws -> MediaTurns {
    let file = try #require(Case.folder).appending(path: "turns.json")
    return try JSONDecoder().decode(MediaTurns.self, from: Data(contentsOf: file))
  }
}

// Within the other suite, for suites of their own would run side by side, and all engines have one number of threads.
extension NativeEngineTests {
  @Suite(.enabled(if: Case.wanted), .serialized) struct Multimodal {
    let loading = Loading()
    let picture = Media.picture(Contract.current.media.picture)
    let sound = Media.sound(
      Sound(samples: (0..<32000).map { Float(0.5 * sin(2 * Double.pi * 440 * Double($0) / 16000)) }, rate: 16000))

    func engine() throws -> NativeEngine { try loading.engine(model: "mm.pte", tokenizer: "mm-tokenizer.json") }

    func ask(_ engine: NativeEngine, _ parts: PromptPart...) throws {
      _ = try engine.generate(parts, newTokens: 4, onToken: {}, onText: { _ in })
    }

    @Test func aConversationThatChangesItsModeIsThatOfPython() throws {
      let turns = try MediaTurns.read()
      let engine = try engine()
      #expect(try engine.load().takes == Takes(pictures: true, sound: true, soundRate: 16000))
      var told: [ObjectIdentifier] = []
      let first = [PromptPart.media(sound), .text(turns.sound.text)]
      let encoded = try engine.encode(first) { told.append($0.media.id) }
      #expect(encoded.count == 1 && !encoded[0].reused && encoded[0].encodeMs > 0)
      #expect(Set(told) == [sound.id])
      try ask(engine, .media(sound), .text(turns.sound.text))
      #expect(try engine.held() == turns.sound.held)
      // With a picture the same sound is other rows, and all before it is fed anew.
      #expect(try engine.encode([.media(picture), .text(turns.picture.text)]) { _ in }.count == 2)
      try ask(engine, .media(picture), .text(turns.picture.text))
      #expect(try engine.held() == turns.picture.held)
      #expect(try engine.encode([.text(turns.words.text)]) { _ in }.isEmpty)
      try ask(engine, .text(turns.words.text))
      #expect(try engine.held() == turns.words.held)
      engine.reset()
      try ask(engine, .media(sound), .text(turns.sound.text))
      #expect(try engine.held() == turns.sound.held)
    }

    @Test func whatCannotBeUsedIsASentenceAndLeavesTheConversation() throws {
      let turns = try MediaTurns.read()
      let engine = try engine()
      try engine.load()
      try ask(engine, .media(sound), .text(turns.sound.text))
      let narrow = Media.picture(Picture(rgb: [UInt8](repeating: 0, count: 6000), width: 2000, height: 1))
      #expect(failure { _ = try engine.encode([.media(narrow)]) { _ in } }.contains("too narrow"))
      let short = Media.picture(Picture(rgb: [0, 0], width: 2, height: 2))
      let few = failure { _ = try engine.encode([.media(short)]) { _ in } }
      #expect(few.hasPrefix("The picture has fewer or more bytes"))
      let fast = Media.sound(Sound(samples: [Float](repeating: 0, count: 44100), rate: 44100))
      #expect(failure { _ = try engine.encode([.media(fast)]) { _ in } }.contains("44"))
      #expect(throws: EngineStopped.self) {
        try engine.encode([.media(picture)]) { _ in engine.stop() }
      }
      #expect(try engine.held() == turns.sound.held)
      try ask(engine, .media(picture), .text(turns.picture.text))
      #expect(try engine.held() == turns.picture.held)
    }

    @Test func aModelOfTextTakesNone() throws {
      let engine = try loading.engine()
      #expect(try engine.load().takes == .text)
      #expect(!failure { _ = try engine.encode([.media(picture)]) { _ in } }.isEmpty)
    }
  }
}

import Foundation
import Testing

@testable import BenchmarkCore

@Suite struct ChatSessionTests {
  /// Answers with given pieces and keeps the prompts.
  final class Echo: TextEngine {
    let pieces: [String]
    let reason: StopReason
    let prompts = Locked<[String]>([])

    init(_ pieces: [String], _ reason: StopReason) {
      self.pieces = pieces
      self.reason = reason
    }

    func load(onProgress: @escaping (Double) -> Void) -> Loaded { Loaded(packing: .warm, threads: 2) }
    func count(_ text: String) -> Int { text.count }
    func generate(
      _ prompt: [PromptPart], newTokens: Int, onToken: @escaping () -> Void, onText: @escaping (String) -> Void
    ) -> Generated {
      let text = prompt.map { if case .text(let text) = $0 { text } else { "" } }.joined()
      prompts.with { $0.append(text) }
      for piece in pieces {
        onToken()
        onText(piece)
      }
      return Generated(promptTokens: 3, generatedTokens: pieces.count, stopReason: reason)
    }
    func stop() {}
    func reset() {}
    func unload() {}
  }

  @Test func aTurnFeedsOnlyWhatIsNew() throws {
    let engine = Echo(["Hello", "."], .endOfTurn)
    let session = ChatSession(engine: engine, system: "Be brief.")
    var shown = ""
    _ = try session.ask("Hi", newTokens: 9, onText: { shown += $0 })
    _ = try session.ask("2 + 2?", newTokens: 9, onText: { _ in })
    #expect(shown == "Hello.")
    let fed = engine.prompts.current
    #expect(
      fed == [
        "<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>", "<|end|><|user|>2 + 2?<|end|><|assistant|>",
      ])
    #expect(session.messages.map(\.content) == ["Be brief.", "Hi", "Hello.", "2 + 2?", "Hello."])
    // What the model has read is the conversation's text.
    let read = fed[0] + "Hello." + fed[1]
    #expect(read == ChatTemplate.render(Array(session.messages.dropLast())))
  }

  @Test func anAnswerThatWasCutIsClosed() throws {
    let engine = Echo(["Once", " upon"], .newTokens)
    let session = ChatSession(engine: engine, system: nil)
    _ = try session.ask("Go", newTokens: 2, onText: { _ in })
    _ = try session.ask("On", newTokens: 2, onText: { _ in })
    #expect(engine.prompts.current[1] == "<|end|><|user|>On<|end|><|assistant|>")
  }
}

@Suite struct PromptTextTests {
  @Test(arguments: [1, 2, 7, 64, 512, 4000]) func reachesItsLength(_ tokens: Int) {
    // A tokenizer that splits every fifth word in two.
    func count(_ text: String) -> Int {
      let words = text.split(separator: " ").count
      return words + words / 5
    }
    let prompt = PromptText.ofLength(tokens, count: count)
    #expect(count(prompt.text) == prompt.tokens)
    #expect(abs(prompt.tokens - tokens) <= 1)
  }

  @Test func takesTheNearestAndFewTries() {
    var tries = 0
    let prompt = PromptText.ofLength(10) { text in
      tries += 1
      return text.split(separator: " ").count * 3
    }
    #expect(prompt.tokens == 9)
    #expect(tries <= 8)
  }
}

@Suite struct ThrottleTests {
  @Test func aScreenIsToldFourTimesASecond() {
    var throttle = Throttle()
    // A token every 10 ms for two seconds.
    let passed = (0..<200).map { UInt64($0) * 10_000_000 }.filter { throttle.passes(at: $0) }
    #expect(passed == (0..<8).map { UInt64($0) * 250_000_000 })
  }

  @Test func whatIsSlowerPasses() {
    var throttle = Throttle(perSecond: 2)
    #expect((0..<5).allSatisfy { throttle.passes(at: 7 + UInt64($0) * 500_000_000) })
  }
}

@Suite struct PackedWeightsTests {
  @Test func theirSizeIsToldAndTheyAreDeleted() throws {
    let folder = try Folder()
    let packed = PackedWeights(folder: folder.url.appending(path: "packed"))
    #expect(packed.bytes == 0)
    try packed.prepare()
    try packed.prepare()
    try Data(count: 700).write(to: packed.folder.appending(path: "a.packed"))
    try Data(count: 30).write(to: packed.folder.appending(path: "a.check"))
    #expect(packed.bytes == 730)
    #expect(packed.holds(1000))
    #expect(packed.holds(.max) == false)
    try packed.delete()
    #expect(packed.bytes == 0)
    #expect(packed.holds(1000), "there is room on the disk")
  }

  @Test func aFolderThatCannotBeMadeIsASentence() throws {
    let folder = try Folder()
    let file = try folder.put("file", Data())
    #expect(
      badInput { try PackedWeights(folder: file.appending(path: "packed")).prepare() }
        .hasPrefix("The folder for packed weights cannot be made: "))
  }
}

@Suite struct ProgressLineTests {
  func line(_ event: RunEvent) throws -> [String: Any]? {
    guard let line = ProgressLines(run: "r").line(for: event) else { return nil }
    #expect(!line.contains("\n"))
    return try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any]
  }

  @Test func keysOfTheProtocol() throws {
    let repeated = try line(.repeated(configuration: 1, repeat: 2, record: record(decode: .nan), soFar: document([])))
    #expect(
      Set(try #require(repeated).keys) == [
        "run", "event", "configuration", "repeat", "prefill_tokens_per_s", "decode_tokens_per_s",
        "time_to_first_token_ms", "peak_footprint_bytes", "available_bytes", "thermal",
      ])
    #expect(repeated?["decode_tokens_per_s"] is NSNull)
    #expect(repeated?["repeat"] as? Int == 2)
    let memory = try line(.sampled(phase: .load, memory: Memory(footprintBytes: 5, rssBytes: 6, availableBytes: nil)))
    #expect(memory?["footprint_bytes"] as? Int == 5)
    #expect(memory?["available_bytes"] is NSNull)
    #expect(try line(.failed(message: "a \"b\"\nc"))?["message"] as? String == "a \"b\"\nc")
    #expect(try line(.lowMemory)?["event"] as? String == "low_memory")
    #expect(try line(.token(index: 0, sinceFirstMs: 0)) == nil)
  }
}

@Suite struct FormatTests {
  @Test func unitsArePeoples() {
    #expect(Format.bytes(3_206_000_000) == "3.21 GB")
    #expect(Format.bytes(18_100_000) == "18.1 MB")
    #expect(Format.bytes(12) == "12 bytes")
    #expect(Format.milliseconds(57.8) == "57.8 ms")
    #expect(Format.milliseconds(1234) == "1.23 s")
    #expect(Format.change(-0.031) == "−3.1 %")
  }
}

@Test func aClipEndsAtItsLimit() {
  var clip = Clip()
  #expect(clip.sound == nil && clip.seconds == 0)
  clip.append([0.5, -0.5])
  #expect(clip.loudness == 0.5 && clip.sound?.samples == [0.5, -0.5] && clip.sound?.rate == 16000)
  clip.append([])
  #expect(clip.loudness == 0.5)
  for _ in 0..<100 { clip.append([Float](repeating: 0, count: 16000)) }
  #expect(clip.isFull && clip.seconds == 60 && clip.loudness == 0)
  #expect([0, 7.9, 61].map(Format.time) == ["0:00", "0:07", "1:01"])
}

@Test func fourBytesAPixelBecomeThree() {
  let picture = Picture(rgbx: [1, 2, 3, 255, 4, 5, 6, 0], width: 2, height: 1)
  #expect(picture.rgb == [1, 2, 3, 4, 5, 6] && picture.width == 2 && picture.height == 1)
}

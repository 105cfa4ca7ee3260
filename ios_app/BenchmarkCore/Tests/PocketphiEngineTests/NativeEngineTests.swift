import BenchmarkCore
import Foundation
import Testing

@testable import PocketphiEngine

/// The real engine on a real model. POCKETPHI_CASE is a folder with tiny.pte, tokenizer.json, and expected.json: what
/// Python's side of the repository made of the same file. tests/test_ios_app.py makes it.
struct Case: Decodable {
  struct Turn: Decodable {
    let prompt: String
    let ids: [Int64]
    let answerIds: [Int64]
    let answer: String
  }

  let question: Turn
  /// Answered by characters that are spread over tokens, with an end that the model does not choose.
  let spread: Turn
  let context: Int

  static let folder = ProcessInfo.processInfo.environment["POCKETPHI_CASE"].map { URL(filePath: $0) }
  static let wanted = folder != nil

  static func read() throws -> Case {
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    return try decoder.decode(Case.self, from: Data(contentsOf: #require(folder).appending(path: "expected.json")))
  }
}

/// A folder of its own for packed weights, gone when the test ends.
final class Loading {
  let packed = PackedWeights(
    folder: FileManager.default.temporaryDirectory.appending(path: UUID().uuidString))

  deinit { try? FileManager.default.removeItem(at: packed.folder) }

  func engine(_ settings: EngineSettings = .init(), model: String = "tiny.pte", tokenizer: String = "tokenizer.json")
    throws -> NativeEngine
  {
    let folder = try #require(Case.folder)
    let files = try ModelFiles(
      model: folder.appending(path: model), tokenizer: folder.appending(path: tokenizer), availableBytes: nil,
      executorch: NativeEngine.executorch, packed: packed)
    return NativeEngine(files: files, settings: settings, packed: packed)
  }
}

extension NativeEngine {
  @discardableResult
  func load() throws -> Loaded { try load { _ in } }

  func answer(_ prompt: String, _ newTokens: Int = 64, onToken: @escaping () -> Void = {}) throws
    -> (String, Generated)
  {
    var text = ""
    let generated = try generate(prompt, newTokens: newTokens, onToken: onToken, onText: { text += $0 })
    return (text, generated)
  }
}

func failure(_ body: () throws -> Void) -> String {
  do {
    try body()
    return "nothing was thrown"
  } catch let wrong as EngineFailure {
    return wrong.message
  } catch {
    return "another error: \(error)"
  }
}

@Suite(.enabled(if: Case.wanted), .serialized) struct NativeEngineTests {
  let expected: Case
  let loading = Loading()

  init() throws { expected = try Case.read() }

  @Test func idsAndTextAreThoseOfPython() throws {
    let engine = try loading.engine()
    try engine.load()
    let (text, generated) = try engine.answer(expected.question.prompt)
    #expect(text == expected.question.answer)
    #expect(generated.stopReason == .endOfTurn)
    #expect(generated.promptTokens == expected.question.ids.count)
    #expect(generated.generatedTokens == expected.question.answerIds.count)
    #expect(try engine.held() == expected.question.ids + expected.question.answerIds)
    #expect(try engine.count(expected.question.prompt) == expected.question.ids.count)
  }

  @Test func charactersSpreadOverTokensComeWhole() throws {
    let engine = try loading.engine()
    try engine.load()
    var pieces: [String] = []
    let count = expected.spread.answerIds.count
    let generated = try engine.generate(
      expected.spread.prompt, newTokens: count, onToken: {}, onText: { pieces.append($0) })
    #expect(pieces.joined() == expected.spread.answer)
    #expect(generated.generatedTokens == count)
    #expect(pieces.count < count, "some tokens are only a part of a character")
  }

  @Test func weightsArePackedOnce() throws {
    var seen: [Double] = []
    let first = try loading.engine()
    let cold = try first.load { seen.append($0) }
    #expect(cold.packing == .cold && cold.packingNote == nil && cold.threads > 0)
    #expect(seen == seen.sorted() && seen.count > 3 && seen.allSatisfy { 0...1 ~= $0 })
    #expect(loading.packed.bytes > 1_000_000)
    first.unload()
    let second = try loading.engine()
    #expect(try second.load().packing == .warm)
    #expect(try second.answer(expected.question.prompt).0 == expected.question.answer)
    // Deleted under a model that is loaded, which keeps working.
    try loading.packed.delete()
    #expect(loading.packed.bytes == 0)
    second.reset()
    #expect(try second.answer(expected.question.prompt).0 == expected.question.answer)
    second.unload()
    #expect(try second.load().packing == .cold, "an engine may be loaded again")
  }

  @Test func aFolderThatCannotBeHadIsSaid() throws {
    try Data("in the way".utf8).write(to: loading.packed.folder)
    let loaded = try loading.engine().load()
    #expect(loaded.packing == .nowhere)
    #expect(loaded.packingNote?.contains(loading.packed.folder.lastPathComponent) == true)
    #expect(loaded.packingNote?.contains("/") == false)
  }

  @Test func aConversationFeedsOnlyWhatIsNew() throws {
    let engine = try loading.engine()
    try engine.load()
    let session = ChatSession(engine: engine, system: nil)
    let ask = { (text: String) in try session.ask(text, newTokens: 24, onText: { _ in }) }
    let first = try ask("What is the capital of France?")
    #expect(first.reusedTokens == 0)
    let second = try ask("And of Italy?")
    #expect(second.reusedTokens == first.promptTokens + first.generatedTokens)
    // As if the whole conversation had been read at once.
    let whole = ChatTemplate.render(Array(session.messages.dropLast()))
    engine.reset()
    let (again, generated) = try engine.answer(whole, 24)
    #expect(again == session.messages.last?.content)
    #expect(generated.promptTokens == second.promptTokens)
    #expect(generated.reusedTokens == 0, "what is measured again must be computed again")
  }

  @Test func equalSeedsGiveEqualAnswers() throws {
    var settings = EngineSettings()
    settings.temperature = 5
    var texts: [String] = []
    for seed: UInt64 in [7, 7, 8] {
      settings.seed = seed
      let engine = try loading.engine(settings)
      try engine.load()
      texts.append(try engine.answer("Once upon a time", 24).0)
      engine.unload()
    }
    #expect(texts[0] == texts[1])
    #expect(texts[0] != texts[2])
    // The likeliest alone, however hot.
    settings.topK = 1
    let engine = try loading.engine(settings)
    try engine.load()
    #expect(try engine.answer(expected.question.prompt).0 == expected.question.answer)
  }

  @Test func guessingAheadChangesNoAnswer() throws {
    var settings = EngineSettings()
    settings.draftTokens = 4
    let engine = try loading.engine(settings)
    try engine.load()
    let (text, generated) = try engine.answer(expected.question.prompt)
    #expect(text == expected.question.answer)
    #expect(1..<generated.generatedTokens ~= generated.acceptedTokens)
    #expect(try engine.held() == expected.question.ids + expected.question.answerIds)
  }

  @Test func threadsAreAsAsked() throws {
    var settings = EngineSettings()
    settings.threads = 1
    #expect(try loading.engine(settings).load().threads == 1)
  }

  @Test func aStopEndsAnAnswer() throws {
    let engine = try loading.engine()
    try engine.load()
    engine.stop()  // nothing runs: it is forgotten
    var tokens = 0
    let (_, generated) = try engine.answer(expected.spread.prompt, 100) {
      tokens += 1
      if tokens == 3 { engine.stop() }
    }
    #expect(generated.stopReason == .stopped)
    #expect(generated.generatedTokens == 3)
    #expect(try engine.answer("", 2).1.promptTokens == generated.promptTokens + 3)
  }

  @Test func aStopEndsALoad() throws {
    let engine = try loading.engine()
    #expect(throws: EngineStopped.self) { try engine.load { _ in engine.stop() } }
    #expect(loading.packed.bytes == 0, "half a file stays")
    #expect(failure { _ = try engine.answer("Hi") } == "The model is not loaded.")
    #expect(try engine.load().packing == .cold)
  }

  @Test func unloadingEndsWhatRuns() async throws {
    let engine = try loading.engine()
    try engine.load()
    let begun = DispatchSemaphore(value: 0)
    let prompt = expected.spread.prompt
    let answering = Task.detached {
      try engine.generate(
        prompt, newTokens: 200,
        onToken: {
          begun.signal()
          Thread.sleep(forTimeInterval: 0.1)  // else the answer may be over first
        }, onText: { _ in })
    }
    await withCheckedContinuation { continuation in
      DispatchQueue.global().async {
        begun.wait()
        engine.unload()
        continuation.resume()
      }
    }
    #expect(try await answering.value.stopReason == .stopped)
    #expect(failure { _ = try engine.answer("Hi") } == "The model is not loaded.")
  }

  @Test func manyThreadsAtOnce() async throws {
    let engine = try loading.engine()
    try engine.load()
    let prompt = expected.question.prompt
    await withTaskGroup(of: Void.self) { group in
      for index in 0..<12 {
        group.addTask {
          switch index % 4 {
          case 0: _ = try? engine.generate(prompt, newTokens: 20, onToken: {}, onText: { _ in })
          case 1: engine.reset()
          case 2: engine.stop()
          default: if index == 11 { engine.unload() } else { _ = try? engine.count(prompt) }
          }
        }
      }
    }
    engine.unload()
    #expect(try engine.load().packing == .warm)
    #expect(try engine.answer(prompt).0 == expected.question.answer)
  }

  @Test func whatCannotBeIsASentence() throws {
    let engine = try loading.engine()
    #expect(failure { _ = try engine.answer("Hi") } == "The model is not loaded.")
    try engine.load()
    #expect(failure { _ = try engine.answer("") } == "The prompt is empty.")
    let long = String(repeating: "word ", count: expected.context)
    let tokens = try engine.count(long)
    #expect(
      failure { _ = try engine.answer(long) }
        == "The prompt has \(tokens) tokens, tiny.pte has a context of \(expected.context).")
    // The conversation is as it was.
    #expect(try engine.answer(expected.question.prompt).0 == expected.question.answer)
    let damaged = failure { try loading.engine(model: "damaged.pte").load() }
    #expect(damaged.hasPrefix("damaged.pte") && !damaged.contains("/"))
    let foreign = failure { try loading.engine(tokenizer: "foreign.json").load() }
    #expect(foreign == "foreign.json is no tokenizer that ExecuTorch's runner reads.")
  }
}

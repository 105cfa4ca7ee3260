import Foundation
import Testing

@testable import BenchmarkCore

@Suite struct StopScannerTests {
  func shown(_ pieces: [String]) -> (text: String, stopped: Bool) {
    var scanner = StopScanner()
    var text = pieces.map { scanner.show($0) }.joined()
    text += scanner.rest()
    return (text, scanner.stopped)
  }

  @Test(arguments: [
    (["Paris", ".", "<|end|>"], "Paris.", true),
    (["Paris.<|en", "d|>", " more"], "Paris.", true),
    (["a <", "|", "b"], "a <|b", false),
    (["x<|endoftext|>"], "x", true),
    (["<|endof", "line"], "<|endofline", false),
    (["<<|end|>"], "<", true),
    ([], "", false),
  ]) func scans(_ pieces: [String], _ text: String, _ stopped: Bool) {
    #expect(shown(pieces) == (text, stopped))
  }

  @Test func whatCannotBeAStopIsShownAtOnce() {
    var scanner = StopScanner()
    #expect(scanner.show("one <") == "one ")
    #expect(scanner.show("two") == "<two")
  }
}

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

    func load() {}
    func generate(
      _ prompt: String, promptTokens: Int?, newTokens: Int, onToken: @escaping (String) -> Void
    ) -> Generated {
      prompts.with { $0.append(prompt) }
      pieces.forEach(onToken)
      return Generated(promptTokens: 3, generatedTokens: pieces.count, stopReason: reason)
    }
    func stop() {}
    func reset() {}
    func unload() {}
  }

  @Test func aTurnFeedsOnlyWhatIsNew() throws {
    let engine = Echo(["Hello", ".", "<|end|>"], .endOfTurn)
    let session = ChatSession(engine: engine, system: "Be brief.")
    var shown = ""
    _ = try session.ask("Hi", newTokens: 9) { shown += $0 }
    _ = try session.ask("2 + 2?", newTokens: 9) { _ in }
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
    _ = try session.ask("Go", newTokens: 2) { _ in }
    _ = try session.ask("On", newTokens: 2) { _ in }
    #expect(engine.prompts.current[1] == " upon<|end|><|user|>On<|end|><|assistant|>")
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

@Suite struct RunnerTests {
  @Test func theReportIsFoundAmongText() throws {
    let output = """
       The capital.
      PyTorchObserver {"prompt_tokens":1,"generated_tokens":1,"SCALING_FACTOR_UNITS_PER_SECOND":1000}
      more
      PyTorchObserver {"prefill_token_per_sec":512.5,"prompt_tokens":64,"generated_tokens":127,"inference_end_ms":17}
      tail
      """
    let report = try #require(RunnerReport(in: output))
    #expect(report.promptTokens == 64)
    #expect(report.generatedTokens == 127)
    #expect(RunnerReport(in: "PyTorchObserver {\"prompt_tokens\":") == nil)
    #expect(RunnerReport(in: "nothing") == nil)
  }

  @Test func codesAreSentences() {
    #expect(
      RunnerErrors.loading(code: 0x21, model: "m.pte", tokenizer: "t").message
        == "m.pte could not be loaded: there is not enough memory (code 0x21).")
    #expect(
      RunnerErrors.loading(code: -1, model: "m.pte", tokenizer: "t.json").message.contains("t.json is no tokenizer"))
    #expect(RunnerErrors.loading(code: 99, model: "m.pte", tokenizer: "t").message.hasSuffix("(code 0x63)."))
    #expect(
      RunnerErrors.generating(code: 0x12, promptTokens: 5000, newTokens: 10).message
        == "The prompt does not fit the model's context, or its text cannot be tokenized (5000 prompt and 10 new tokens "
        + "were asked for) (code 0x12).")
    #expect(RunnerErrors.generating(code: 1, promptTokens: nil, newTokens: 1).code == 1)
  }

  @Test func theContextIsNeverOverrun() throws {
    var budget = ContextBudget(contextTokens: 100)
    #expect(try budget.newTokens(50, prompt: "", promptTokens: 40) == 50)
    budget.advance(promptTokens: 40, generatedTokens: 50)
    #expect(budget.position == 89)
    #expect(try budget.newTokens(50, prompt: "", promptTokens: 5) == 6)
    #expect(try budget.newTokens(50, prompt: "12345678", promptTokens: nil) == 7)
    #expect(throws: EngineFailure.self) { try budget.newTokens(1, prompt: "", promptTokens: 11) }
    budget.reset()
    #expect(try budget.newTokens(1000, prompt: "", promptTokens: 1) == 99)
    #expect(try ContextBudget(contextTokens: nil).newTokens(1000, prompt: "", promptTokens: 1) == 1000)
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
    #expect(try line(.token(piece: "x", index: 0, sinceFirstMs: 0)) == nil)
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

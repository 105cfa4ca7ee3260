import BenchmarkCore
import ExecuTorchLLM
import Foundation

/// `TextEngine` over ExecuTorch's TextRunner: the only file that touches ExecuTorch.
///
/// Unchecked because TextRunner is not Sendable: one thread at a time uses it, but for `stop`, which only sets an
/// atomic flag in the runner.
final class ExecuTorchEngine: TextEngine, @unchecked Sendable {
  static let name = "TextRunner"
  /// The release that the package branch of the project holds.
  static let release = "1.5.1"

  private let files: ModelFiles
  private let lock = NSLock()
  private var runner: TextRunner?
  private var budget: ContextBudget
  private let stopAsked = Locked(false)

  init(files: ModelFiles) {
    self.files = files
    budget = ContextBudget(contextTokens: files.manifest?.contextTokens)
  }

  func load() throws {
    try StandardOutput.shared.take()
    let made = TextRunner(
      modelPath: files.model.path(percentEncoded: false), tokenizerPath: files.tokenizer.path(percentEncoded: false))
    do {
      try made.load()
    } catch {
      throw RunnerErrors.loading(
        code: (error as NSError).code, model: files.model.lastPathComponent,
        tokenizer: files.tokenizer.lastPathComponent)
    }
    lock.withLock { runner = made }
  }

  func generate(
    _ prompt: String, promptTokens: Int?, newTokens: Int, onToken: @escaping (String) -> Void
  ) throws -> Generated {
    guard let runner = current else { throw EngineFailure("The model is not loaded.") }
    let limit = try budget.newTokens(newTokens, prompt: prompt, promptTokens: promptTokens)
    stopAsked.with { $0 = false }
    let config = Config {
      $0.isEchoEnabled = false
      $0.maximumNewTokens = limit
      $0.temperature = 0
    }
    let answer = Answer()
    _ = StandardOutput.shared.printed()
    do {
      try runner.generate(prompt, config) { [stopAsked] piece in
        answer.tokens += 1
        onToken(piece)
        // The runner prints each piece as well; unread they would push its last line out.
        _ = StandardOutput.shared.printed()
        _ = answer.scanner.show(piece)
        // The runner does not look at the first token, and forgets a stop that came before it: so it is repeated.
        if stopAsked.current || answer.scanner.stopped { runner.stop() }
      }
    } catch {
      throw RunnerErrors.generating(code: (error as NSError).code, promptTokens: promptTokens, newTokens: newTokens)
    }
    let counted = RunnerReport(in: StandardOutput.shared.printed())?.promptTokens
    budget.advance(promptTokens: counted ?? promptTokens ?? prompt.utf8.count, generatedTokens: answer.tokens)
    let reason: StopReason =
      if stopAsked.current {
        .stopped
      } else if answer.scanner.stopped || answer.tokens < limit {
        .endOfTurn
      } else {
        .newTokens
      }
    return Generated(promptTokens: counted, generatedTokens: answer.tokens, stopReason: reason)
  }

  func stop() {
    stopAsked.with { $0 = true }
    current?.stop()
  }

  func reset() {
    current?.reset()
    budget.reset()
  }

  func unload() {
    lock.withLock { runner = nil }
  }

  private var current: TextRunner? { lock.withLock { runner } }

  private final class Answer {
    var tokens = 0
    var scanner = StopScanner()
  }
}

/// How many tokens a model's context holds and has left. The runner itself does not count them for files that take a
/// prompt in chunks, and fails in the middle of an answer when the cache is full.
public struct ContextBudget: Equatable, Sendable {
  /// Nil where it is not known: then nothing is limited.
  public let contextTokens: Int?
  public private(set) var position = 0

  // A token is seldom shorter than this; only for prompts whose tokens nobody counted.
  private static let bytesPerToken = 2

  public init(contextTokens: Int?) {
    self.contextTokens = contextTokens
  }

  /// How many of `wanted` new tokens fit after `prompt`; throws `EngineFailure` where none does.
  public func newTokens(_ wanted: Int, prompt: String, promptTokens: Int?) throws -> Int {
    guard let contextTokens else { return wanted }
    let room = contextTokens - position - (promptTokens ?? prompt.utf8.count / Self.bytesPerToken)
    guard room >= 1 else {
      let before = position > 0 ? " after the \(position) it holds" : ""
      let text = promptTokens.map { "\($0) tokens" } ?? "\(prompt.utf8.count) bytes"
      throw EngineFailure(
        "The prompt of \(text) does not fit the model's context of \(contextTokens) tokens\(before).")
    }
    return min(wanted, room)
  }

  /// The last new token is not in the context yet: it is fed with what comes next.
  public mutating func advance(promptTokens: Int, generatedTokens: Int) {
    position += promptTokens + max(0, generatedTokens - 1)
  }

  public mutating func reset() {
    position = 0
  }
}

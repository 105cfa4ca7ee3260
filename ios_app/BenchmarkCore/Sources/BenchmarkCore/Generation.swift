/// Why a generation ended.
public enum StopReason: String, Codable, Sendable {
  case newTokens = "new_tokens"
  case endOfTurn = "end_of_turn"
  case stopped
  case error
}

/// What an engine tells after a generation. `promptTokens` is nil where it does not say.
public struct Generated: Equatable, Sendable {
  public let promptTokens: Int?
  public let generatedTokens: Int
  public let stopReason: StopReason

  public init(promptTokens: Int?, generatedTokens: Int, stopReason: StopReason) {
    self.promptTokens = promptTokens
    self.generatedTokens = generatedTokens
    self.stopReason = stopReason
  }
}

/// Runs one model. One thread at a time, but for `stop`. Failures are `EngineFailure`.
public protocol TextEngine: AnyObject, Sendable {
  /// Slow: seconds, and most of the memory.
  func load() throws

  /// Feeds `prompt` after what the context holds already and makes at most `newTokens` tokens, always the likeliest.
  /// `promptTokens` is how many tokens the prompt has, where that is known. `onToken` is called for every token with
  /// its text, which is empty where the token is only a part of a character.
  func generate(
    _ prompt: String, promptTokens: Int?, newTokens: Int, onToken: @escaping (String) -> Void
  ) throws -> Generated

  /// Ends a generation after the token it is at; from any thread.
  func stop()

  /// Empties the context.
  func reset()

  /// Gives the model's memory back.
  func unload()
}

/// Makes an engine for a model, its tokenizer and what is known of them, without loading it.
public typealias EngineFactory = @Sendable (ModelFiles) -> any TextEngine

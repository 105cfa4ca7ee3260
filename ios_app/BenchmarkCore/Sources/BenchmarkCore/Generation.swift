import Foundation

/// Why a generation ended.
public enum StopReason: String, Codable, Sendable {
  case newTokens = "new_tokens"
  case endOfTurn = "end_of_turn"
  case stopped
  case error
}

/// What an engine tells after a generation.
public struct Generated: Equatable, Sendable {
  public let promptTokens: Int
  /// Of the conversation before it, which the engine held already.
  public let reusedTokens: Int
  public let generatedTokens: Int
  /// Guessed ahead and right; they are among the generated ones.
  public let acceptedTokens: Int
  public let stopReason: StopReason

  public init(
    promptTokens: Int, reusedTokens: Int = 0, generatedTokens: Int, acceptedTokens: Int = 0, stopReason: StopReason
  ) {
    self.promptTokens = promptTokens
    self.reusedTokens = reusedTokens
    self.generatedTokens = generatedTokens
    self.acceptedTokens = acceptedTokens
    self.stopReason = stopReason
  }
}

/// Where packed weights came from: packed by this load, kept from an earlier one, or kept nowhere.
public enum Packing: String, Codable, Sendable {
  case cold, warm
  case nowhere = "none"
}

/// What an engine tells after a load.
public struct Loaded: Equatable, Sendable {
  public let packing: Packing
  /// Why packed weights are kept nowhere, a sentence without its full stop; nil where they are kept.
  public let packingNote: String?
  public let threads: Int
  public let takes: Takes

  public init(packing: Packing, packingNote: String? = nil, threads: Int, takes: Takes = .text) {
    self.packing = packing
    self.packingNote = packingNote
    self.threads = threads
    self.takes = takes
  }
}

/// How an engine runs and chooses tokens. The default is what is measured: the likeliest token, none guessed ahead.
public struct EngineSettings: Codable, Equatable, Sendable {
  /// 0: one for each performance core.
  public var threads = 0
  /// 0: always the likeliest token.
  public var temperature = 0.0
  /// Only so many of the likeliest; 0: all.
  public var topK = 0
  /// Only the likeliest that have this much probability together; 1: all.
  public var topP = 1.0
  /// Equal seeds give equal answers.
  public var seed: UInt64 = 0
  /// How many tokens are guessed ahead at most.
  public var draftTokens = 0

  public init() {}
}

/// Runs one model. One thread at a time, but for `stop`. Failures are `EngineFailure`; a call that was stopped before
/// it had a result throws `EngineStopped`.
public protocol TextEngine: AnyObject, Sendable {
  /// Slow: seconds. `onProgress` is told the part that is done, 0 to 1.
  func load(onProgress: @escaping (Double) -> Void) throws -> Loaded

  /// How many tokens a text has.
  func count(_ text: String) throws -> Int

  /// Encodes the pictures and sounds of a prompt that `generate` is about to be given, and those before it that must be
  /// encoded anew; `onPart` is told before each part. Slow: seconds. Without this `generate` does it.
  func encode(_ prompt: [PromptPart], onPart: @escaping (EncodingStep) -> Void) throws -> [Encoded]

  /// Feeds `prompt` after what the context holds already and makes at most `newTokens` tokens. `onToken` is called for
  /// every token, `onText` with whole characters as they come.
  func generate(
    _ prompt: [PromptPart], newTokens: Int, onToken: @escaping () -> Void, onText: @escaping (String) -> Void
  ) throws -> Generated

  /// Ends the running load, encoding, or a generation after the token or the piece of the prompt it is at; from any thread.
  func stop()

  /// Empties the context.
  func reset()

  /// Gives the model's memory back; ends what is running.
  func unload()
}

extension TextEngine {
  /// Of engines that take text alone.
  public func encode(_ prompt: [PromptPart], onPart: @escaping (EncodingStep) -> Void) throws -> [Encoded] {
    let isText = prompt.allSatisfy { if case .text = $0 { true } else { false } }
    guard isText else { throw EngineFailure("This engine takes no pictures and no sound.") }
    return []
  }

  /// A prompt that is text alone.
  public func generate(
    _ prompt: String, newTokens: Int, onToken: @escaping () -> Void, onText: @escaping (String) -> Void
  ) throws -> Generated {
    try generate([.text(prompt)], newTokens: newTokens, onToken: onToken, onText: onText)
  }
}

/// Makes an engine for a model, its tokenizer and what is known of them, without loading it.
public typealias EngineFactory = @Sendable (ModelFiles) -> any TextEngine

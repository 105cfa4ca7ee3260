import Foundation

/// When a run loads the model: before its first repeat, or again for every repeat.
public enum LoadMode: String, Codable, CaseIterable, Sendable {
  case once, each
}

/// One thing to measure: so many tokens in, so many out, so often. Times in seconds.
public struct Configuration: Codable, Equatable, Hashable, Sendable {
  public let promptTokens: Int
  public let newTokens: Int
  public let repeats: Int
  public let warmups: Int
  public let cooldownS: Double
  public let loadMode: LoadMode
  /// After the standard picture or sound; nil for text alone.
  public let mode: Mode?

  /// Throws `BadInput` that names the value and what it may be.
  public init(
    promptTokens: Int, newTokens: Int, repeats: Int, warmups: Int, cooldownS: Double, loadMode: LoadMode,
    mode: Mode = .text
  ) throws {
    try Self.check(promptTokens, "Prompt tokens", "prompt_tokens")
    try Self.check(newTokens, "New tokens", "new_tokens")
    try Self.check(repeats, "Repeats", "repeats")
    try Self.check(warmups, "Warm-ups", "warmups")
    let rest = Contract.current.option("cooldown_s").range
    guard Double(rest.lowerBound)...Double(rest.upperBound) ~= cooldownS else {
      throw BadInput("Cool-down is \(cooldownS) s; it wants \(rest.lowerBound) to \(rest.upperBound) seconds.")
    }
    self.promptTokens = promptTokens
    self.newTokens = newTokens
    self.repeats = repeats
    self.warmups = warmups
    self.cooldownS = cooldownS
    self.loadMode = loadMode
    self.mode = mode == .text ? nil : mode
  }

  /// One for each of the lengths where text is among the modes, then one for each other mode with the first length.
  public static func all(
    lengths: [Int], modes: [Mode], newTokens: Int, repeats: Int, warmups: Int, cooldownS: Double, loadMode: LoadMode
  ) throws -> [Configuration] {
    let others = modes.filter { $0 != .text }.map { (lengths[0], $0) }
    return try ((modes.contains(.text) ? lengths.map { ($0, .text) } : []) + others).map {
      try Configuration(
        promptTokens: $0, newTokens: newTokens, repeats: repeats, warmups: warmups, cooldownS: cooldownS,
        loadMode: loadMode, mode: $1)
    }
  }

  /// For people: "64 + 128 tokens with a picture".
  public var lengths: String {
    let words = mode.flatMap { Contract.current.modes[$0.rawValue] }
    return "\(promptTokens) + \(newTokens) tokens" + (words.map { " \($0)" } ?? "")
  }

  private static func check(_ value: Int, _ name: String, _ option: String) throws {
    let range = Contract.current.option(option).range
    guard range.contains(value) else {
      throw BadInput("\(name) is \(value); it wants a whole number from \(range.lowerBound) to \(range.upperBound).")
    }
  }

  /// Throws `BadInput` where prompt and answer are more than a model's context; nil where that is not known.
  func check(contextTokens: Int?) throws {
    guard let contextTokens, promptTokens + newTokens > contextTokens else { return }
    throw BadInput(
      "\(promptTokens) prompt tokens and \(newTokens) new ones do not fit the model's context of \(contextTokens) "
        + "tokens.")
  }

  /// The same lengths and modes are worth comparing, whatever the number of repeats.
  public func sameLengths(as other: Configuration) -> Bool {
    promptTokens == other.promptTokens && newTokens == other.newTokens && mode == other.mode
  }
}

/// A whole run: one configuration for each length of prompt, the files it needs.
public struct RunRequest: Equatable, Sendable {
  public let name: String
  public let model: URL
  public let tokenizer: URL
  public let modelSha256: String?
  public let configurations: [Configuration]
  /// Texts with the tokens that the configurations ask for, or none: then the app makes texts of its own.
  public let promptFiles: [URL]

  public var repeats: Int { configurations.reduce(0) { $0 + $1.repeats } }

  /// Throws `BadInput` for a name that is no file's name, a hash that is none, or too few or many prompts.
  public init(
    name: String, model: URL, tokenizer: URL, modelSha256: String? = nil, configurations: [Configuration],
    promptFiles: [URL] = []
  ) throws {
    try Self.check(name: name)
    guard !configurations.isEmpty else { throw BadInput("A run needs at least one length of prompt.") }
    if let modelSha256, modelSha256.wholeMatch(of: /[0-9a-f]{64}/) == nil {
      throw BadInput("The model's sha256 is \"\(modelSha256)\", which is not 64 lower-case hex digits.")
    }
    guard promptFiles.isEmpty || promptFiles.count == configurations.count else {
      throw BadInput("There are \(promptFiles.count) prompt files, but \(configurations.count) lengths of prompt.")
    }
    self.name = name
    self.model = model
    self.tokenizer = tokenizer
    self.modelSha256 = modelSha256
    self.configurations = configurations
    self.promptFiles = promptFiles
  }

  /// A run's name is its result's file name too, so it is checked before anything is written under it.
  static func check(name: String) throws {
    guard name.wholeMatch(of: /[a-z0-9-]{1,64}/) != nil else {
      throw BadInput("The run's name is \"\(name)\"; 1 to 64 of a-z, 0-9 and - are allowed.")
    }
  }
}

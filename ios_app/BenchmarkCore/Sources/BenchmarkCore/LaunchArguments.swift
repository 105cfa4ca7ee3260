import Foundation

/// The launch arguments of a scripted run (docs/ios_protocol.md).
public struct LaunchArguments: Sendable {
  private static let names = [
    "run", "model", "tokenizer", "model-sha256", "prompt-tokens", "prompt-files", "new-tokens", "repeats", "warmups",
    "cooldown", "load-mode", "modes",
  ]

  private let values: [String: String]

  /// Whether these arguments ask for a scripted run; Xcode and the system may add others of their own.
  public static func areScripted(_ arguments: [String]) -> Bool {
    arguments.contains("--run")
  }

  /// Throws `BadInput` for an argument that is not known, is given twice or has no value.
  public init(_ arguments: [String]) throws {
    var values: [String: String] = [:]
    var rest = arguments[...]
    while let argument = rest.popFirst() {
      guard argument.hasPrefix("--") else {
        // "-AppleLanguages (de)" and its like are the system's.
        if argument.hasPrefix("-"), rest.first.map({ !$0.hasPrefix("-") }) == true { rest.removeFirst() }
        continue
      }
      let name = String(argument.dropFirst(2))
      guard Self.names.contains(name) else {
        throw BadInput("The argument \(argument) is not known; there are --\(Self.names.joined(separator: ", --")).")
      }
      guard let value = rest.first, !value.hasPrefix("--") else {
        throw BadInput("The argument \(argument) has no value.")
      }
      guard values.updateValue(value, forKey: name) == nil else {
        throw BadInput("The argument \(argument) is given twice.")
      }
      rest.removeFirst()
    }
    self.values = values
  }

  /// The name of the run, which progress lines carry.
  public func runName() throws -> String {
    let name = try required("run")
    try RunRequest.check(name: name)
    return name
  }

  /// The run they ask for, with paths relative to `documents`.
  public func request(documents: URL) throws -> RunRequest {
    let contract = Contract.current
    let newTokens = try integer("new-tokens", "new_tokens")
    let repeats = try integer("repeats", "repeats")
    let warmups = try integer("warmups", "warmups")
    let cooldown = values["cooldown"] ?? contract.option("cooldown_s").text
    guard let cooldownS = Double(cooldown) else { throw BadInput("--cooldown is \"\(cooldown)\"; it wants seconds.") }
    let mode = values["load-mode"] ?? contract.option("load_mode").text
    guard let loadMode = LoadMode(rawValue: mode) else {
      throw BadInput("--load-mode is \"\(mode)\", but only \"once\" and \"each\" exist.")
    }
    let lengths = try Self.lengths(values["prompt-tokens"] ?? contract.option("prompt_tokens").text)
    let configurations = try Configuration.all(
      lengths: lengths, modes: Self.modes(values["modes"] ?? Mode.text.rawValue), newTokens: newTokens,
      repeats: repeats, warmups: warmups, cooldownS: cooldownS, loadMode: loadMode)
    let prompts = try (values["prompt-files"] ?? "").split(separator: ",").map {
      try Self.file(String($0), in: documents)
    }
    guard prompts.isEmpty || prompts.count == lengths.count else {
      throw BadInput("There are \(prompts.count) prompt files, but \(lengths.count) lengths of prompt.")
    }
    let files = Dictionary(zip(lengths, prompts)) { first, _ in first }
    return try RunRequest(
      name: runName(),
      model: Self.file(required("model"), in: documents),
      tokenizer: Self.file(required("tokenizer"), in: documents),
      modelSha256: values["model-sha256"],
      configurations: configurations,
      promptFiles: configurations.compactMap { files[$0.promptTokens] })
  }

  /// "text,vision" as modes.
  static func modes(_ text: String) throws -> [Mode] {
    let found = text.split(separator: ",", omittingEmptySubsequences: false)
      .map { Mode(rawValue: $0.trimmingCharacters(in: .whitespaces)) }
    guard !found.contains(nil), Set(found).count == found.count else {
      let words = Mode.allCases.map(\.rawValue).joined(separator: ", ")
      throw BadInput("--modes is \"\(text)\"; it wants words of \(words), each once, with commas between.")
    }
    return found.compactMap { $0 }
  }

  /// "64,512" as numbers.
  public static func lengths(_ text: String) throws -> [Int] {
    let range = Contract.current.option("prompt_tokens").range
    return try text.split(separator: ",", omittingEmptySubsequences: false).map { part in
      guard let length = Int(part.trimmingCharacters(in: .whitespaces)), range.contains(length) else {
        throw BadInput(
          "The prompt's tokens are \"\(text)\"; they want whole numbers from \(range.lowerBound) to "
            + "\(range.upperBound) with commas between, as 64,512.")
      }
      return length
    }
  }

  private func required(_ name: String) throws -> String {
    guard let value = values[name], !value.isEmpty else { throw BadInput("The argument --\(name) is missing.") }
    return value
  }

  private func integer(_ name: String, _ option: String) throws -> Int {
    guard let text = values[name] else { return Contract.current.option(option).number }
    guard let number = Int(text) else { throw BadInput("--\(name) is \"\(text)\"; it wants a whole number.") }
    return number
  }

  private static func file(_ path: String, in documents: URL) throws -> URL {
    let parts = path.split(separator: "/", omittingEmptySubsequences: false)
    guard !path.hasPrefix("/"), !parts.contains("..") else {
      throw BadInput("The path \"\(path)\" must lie in the app's Documents and be relative to them.")
    }
    return documents.appending(path: path)
  }
}

import Foundation

/// A number of every repeat.
public struct Metric: Decodable, Hashable, Identifiable, Sendable {
  public enum Direction: String, Decodable, Sendable {
    case higher, lower
  }

  /// In a summary.
  public let name: String
  public let label: String
  public let unit: String
  public let better: Direction
  /// How much worse a median may be, a fraction; nil where that is not judged.
  public let tolerance: Double?
  private let from: String?

  public var id: String { name }
  public var title: String { label.prefix(1).uppercased() + label.dropFirst() }

  /// Measured in the repeat itself, under its own name.
  var measured: Bool { from == nil && name != "token_ms" }

  /// The values in a repeat's JSON: one, many where it is a series, none where it is not known.
  func values(in record: [String: Any]) -> [Double] {
    let found = (from ?? name).split(separator: ".").reduce(record as Any?) { ($0 as? [String: Any])?[String($1)] }
    return (found as? [Any] ?? [found as Any]).compactMap { ($0 as? NSNumber)?.doubleValue }
  }

  /// With its unit.
  public func text(_ value: Double) -> String {
    switch unit {
    case "tokens/s": Format.rate(value)
    case "ms": Format.milliseconds(value)
    case "bytes": Format.bytes(Int64(value))
    default: "\(Format.fixed(value, 1)) \(unit)"
    }
  }
}

/// What is measured, by which rules: contract.json in Resources, which is a link to export/bench/contract/bundled.
public struct Contract: Decodable, Sendable {
  /// What may be asked for.
  public struct Option: Decodable, Sendable {
    /// The default, as a person or a program writes it.
    public let text: String
    public let range: ClosedRange<Int>
    let choices: [String]

    /// The default of a number.
    public var number: Int { Int(text) ?? range.lowerBound }

    private enum Keys: String, CodingKey {
      case `default`, least, most, choices
    }

    public init(from decoder: any Decoder) throws {
      let values = try decoder.container(keyedBy: Keys.self)
      if let numbers = try? values.decode([Int].self, forKey: .default) {
        text = numbers.map(String.init).joined(separator: ",")
      } else if let number = try? values.decode(Int.self, forKey: .default) {
        text = String(number)
      } else {
        text = try values.decode(String.self, forKey: .default)
      }
      choices = try values.decodeIfPresent([String].self, forKey: .choices) ?? []
      range =
        try
        (values.decodeIfPresent(Int.self, forKey: .least) ?? 0)...(values.decodeIfPresent(
          Int.self, forKey: .most) ?? 0)
    }
  }

  public struct Chat: Decodable, Sendable {
    let turn: String
    let end: String
    let stops: [String]
    public let newTokens: Int
  }

  let format: String
  let options: [String: Option]
  public let metrics: [Metric]
  /// For people: a run "with a picture".
  public let modes: [String: String]
  public let media: StandardMedia
  let hot: [String]
  private let goingOn: String
  private let notes: [String: String]
  private let remarks: [String: String]
  public let chat: Chat

  /// The one that holds; tests put another here to see that it is read.
  @TaskLocal public static var current = try! Contract(json: bundled())

  /// The file as it was bundled.
  static func bundled() -> Data {
    try! Data(contentsOf: Bundle.module.url(forResource: "contract", withExtension: "json")!)
  }

  init(json: Data) throws {
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    self = try decoder.decode(Contract.self, from: json)
  }

  public func option(_ name: String) -> Option { options[name]! }

  /// The problem of a result whose run has not ended.
  func goesOn(done: Int, all: Int) -> String { Self.fill(goingOn, ["done": done, "all": all]) }

  /// A sentence that a repeat carries.
  public func note(_ name: String, _ values: [String: Any] = [:]) -> String { Self.fill(notes[name]!, values) }

  /// A sentence that a reader makes of a run's fields.
  func remark(_ name: String, _ values: [String: Any]) -> String { Self.fill(remarks[name]!, values) }

  private static func fill(_ text: String, _ values: [String: Any]) -> String {
    values.reduce(text) { $0.replacing("{\($1.key)}", with: "\($1.value)") }
  }
}

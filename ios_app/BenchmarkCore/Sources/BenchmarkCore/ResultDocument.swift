import Foundation

/// The result of a run, key for key as export/bench/contract/result.schema.json says.
public struct ResultDocument: Codable, Equatable, Sendable {
  public enum Status: String, Codable, Sendable {
    case complete, incomplete
  }

  public let schema: String
  public let created: String
  public let status: Status
  @Explicit public var problem: String?
  public let device: DeviceFacts
  public let build: BuildFacts
  public let model: ModelRecord
  public let runs: [RunRecord]

  /// Complete where `problem` is nil.
  public init(
    created: Date, problem: String?, device: DeviceFacts, build: BuildFacts, model: ModelRecord, runs: [RunRecord]
  ) {
    schema = Contract.current.format
    self.created = created.formatted(.iso8601)
    status = problem == nil ? .complete : .incomplete
    self.problem = problem
    self.device = device
    self.build = build
    self.model = model
    self.runs = runs
  }

  public var createdDate: Date? { try? Date(created, strategy: .iso8601) }

  /// Keys sorted, nulls written.
  public func json() throws -> Data {
    let encoder = JSONEncoder()
    encoder.keyEncodingStrategy = .convertToSnakeCase
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
    return try encoder.encode(self) + Data("\n".utf8)
  }

  /// Throws `BadInput` where `json` is no result of this format.
  public init(json: Data) throws {
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    do {
      self = try decoder.decode(ResultDocument.self, from: json)
    } catch {
      throw BadInput("This is no benchmark result: \(Self.reason(error)).")
    }
    let read = Contract.current.format
    guard schema == read else {
      throw BadInput("This result has the format \"\(schema)\", this app reads \"\(read)\".")
    }
  }

  private static func reason(_ error: any Error) -> String {
    func path(_ context: DecodingError.Context) -> String {
      context.codingPath.map(\.stringValue).joined(separator: ".")
    }
    switch error as? DecodingError {
    case .keyNotFound(let key, let context): return "\(path(context) + "." + key.stringValue) is missing"
    case .typeMismatch(_, let context), .valueNotFound(_, let context): return "\(path(context)) is of another type"
    case .dataCorrupted(let context):
      return path(context).isEmpty ? "it is not JSON" : "\(path(context)) is not valid"
    default: return error.localizedDescription
    }
  }
}

/// The device that ran; nil where it does not tell.
public struct DeviceFacts: Codable, Equatable, Sendable {
  public enum Kind: String, Codable, Sendable {
    case android, ios, desktop
  }

  public let kind: Kind
  public let model: String
  @Explicit public var soc: String?
  @Explicit public var ramBytes: Int64?
  public let os: String
  public let osVersion: String
  public let abi: String
  @Explicit public var cores: Int?
  @Explicit public var serial: String?

  /// An iPhone or iPad: `model` as in "iPhone16,1".
  public init(model: String, ramBytes: Int64?, os: String, osVersion: String, abi: String, cores: Int?) {
    kind = .ios
    self.model = model
    self.ramBytes = ramBytes
    self.os = os
    self.osVersion = osVersion
    self.abi = abi
    self.cores = cores
  }
}

/// What ran the model.
public struct BuildFacts: Codable, Equatable, Sendable {
  public let app: String
  public let appVersion: String
  public let engine: String
  @Explicit public var executorch: String?

  public init(app: String, appVersion: String, engine: String, executorch: String?) {
    self.app = app
    self.appVersion = appVersion
    self.engine = engine
    self.executorch = executorch
  }
}

/// The file that ran.
public struct ModelRecord: Codable, Equatable, Sendable {
  public let file: String
  public let sizeBytes: Int64
  @Explicit public var sha256: String?
  public let tokenizer: String
  @Explicit public var manifest: ManifestRecord?
}

/// What the result keeps of the manifest beside the file.
public struct ManifestRecord: Codable, Equatable, Sendable {
  @Explicit public var checkpoint: String?
  @Explicit public var recipe: String?
  @Explicit public var contextTokens: Int?
  @Explicit public var prefillChunkTokens: Int?
  @Explicit public var kvCache: String?
  @Explicit public var plannedMemoryBytes: Int64?
}

/// One configuration and what was measured of it.
public struct RunRecord: Codable, Equatable, Sendable {
  public let configuration: Configuration
  public let repeats: [RepeatRecord]
  public let summary: Summary

  public init(configuration: Configuration, repeats: [RepeatRecord]) {
    self.configuration = configuration
    self.repeats = repeats
    summary = Summary(of: repeats)
  }
}

/// One repeat. Milliseconds, tokens a second; nil where there is no such number.
public struct RepeatRecord: Equatable, Sendable {
  public struct MemoryRecord: Codable, Equatable, Sendable {
    public var samples: [Sample]
    public var peak: Memory
  }

  public struct ThermalRecord: Codable, Equatable, Sendable {
    public let before: Thermal
    public let after: Thermal
  }

  /// By the names of the contract's metrics; those that are not known lack.
  public let measures: [String: Double]
  /// Of the load that this repeat began with; nil without one.
  public var packing: Packing?
  public var packingNote: String?
  public let promptTokens: Int
  /// Of the prompt, in a run with a picture or sound.
  public var mediaTokens: Int?
  public let generatedTokens: Int
  public let tokenMs: [Double]
  public let memory: MemoryRecord
  public let thermal: ThermalRecord
  public let throttled: Bool
  public let lowMemoryEvents: Int
  public let stopReason: StopReason
  public let notes: [String]

  public var loadMs: Double? { measures["load_ms"] }
  public var timeToFirstTokenMs: Double? { measures["time_to_first_token_ms"] }
  public var prefillTokensPerS: Double? { measures["prefill_tokens_per_s"] }
  public var decodeTokensPerS: Double? { measures["decode_tokens_per_s"] }
}

extension RepeatRecord: Codable {
  private enum Keys: String, CodingKey {
    case packing, packingNote, promptTokens, mediaTokens, generatedTokens, tokenMs, memory, thermal, throttled,
      lowMemoryEvents, stopReason, notes
  }

  private struct Name: CodingKey {
    let stringValue: String
    var intValue: Int? { nil }

    init(stringValue: String) { self.stringValue = stringValue }
    init?(intValue: Int) { nil }
  }

  /// Whatever stands under a key, as far as it is a number.
  private struct Loose: Decodable {
    let number: Double?
    let other: Bool

    init(from decoder: any Decoder) throws {
      let container = try decoder.singleValueContainer()
      number = try? container.decode(Double.self)
      other = number == nil && !container.decodeNil()
    }
  }

  private static var measured: [String] { Contract.current.metrics.filter(\.measured).map(\.name) }

  public init(from decoder: any Decoder) throws {
    let all = try decoder.singleValueContainer().decode([String: Loose].self)
    var measures: [String: Double] = [:]
    for name in Self.measured {
      if all[name]?.other == true {
        let path = decoder.codingPath + [Name(stringValue: name)]
        throw DecodingError.typeMismatch(Double.self, .init(codingPath: path, debugDescription: "no number"))
      }
      measures[name] = all[name]?.number
    }
    self.measures = measures
    let values = try decoder.container(keyedBy: Keys.self)
    packing = try values.decodeIfPresent(Packing.self, forKey: .packing)
    packingNote = try values.decodeIfPresent(String.self, forKey: .packingNote)
    promptTokens = try values.decode(Int.self, forKey: .promptTokens)
    mediaTokens = try values.decodeIfPresent(Int.self, forKey: .mediaTokens)
    generatedTokens = try values.decode(Int.self, forKey: .generatedTokens)
    tokenMs = try values.decode([Double].self, forKey: .tokenMs)
    memory = try values.decode(MemoryRecord.self, forKey: .memory)
    thermal = try values.decode(ThermalRecord.self, forKey: .thermal)
    throttled = try values.decode(Bool.self, forKey: .throttled)
    lowMemoryEvents = try values.decode(Int.self, forKey: .lowMemoryEvents)
    stopReason = try values.decode(StopReason.self, forKey: .stopReason)
    notes = try values.decode([String].self, forKey: .notes)
  }

  public func encode(to encoder: any Encoder) throws {
    var named = encoder.container(keyedBy: Name.self)
    for name in Self.measured { try named.encode(measures[name], forKey: Name(stringValue: name)) }
    var values = encoder.container(keyedBy: Keys.self)
    if let packing {
      try values.encode(packing, forKey: .packing)
      try values.encode(packingNote, forKey: .packingNote)
    }
    try values.encode(promptTokens, forKey: .promptTokens)
    try values.encodeIfPresent(mediaTokens, forKey: .mediaTokens)
    try values.encode(generatedTokens, forKey: .generatedTokens)
    try values.encode(tokenMs, forKey: .tokenMs)
    try values.encode(memory, forKey: .memory)
    try values.encode(thermal, forKey: .thermal)
    try values.encode(throttled, forKey: .throttled)
    try values.encode(lowMemoryEvents, forKey: .lowMemoryEvents)
    try values.encode(stopReason, forKey: .stopReason)
    try values.encode(notes, forKey: .notes)
  }

  /// As the result's JSON has it; empty where a number is none.
  fileprivate var json: [String: Any] {
    let encoder = JSONEncoder()
    encoder.keyEncodingStrategy = .convertToSnakeCase
    let object = (try? encoder.encode(self)).flatMap { try? JSONSerialization.jsonObject(with: $0) }
    return object as? [String: Any] ?? [:]
  }
}

/// The statistics of the contract's metrics, by their names, over the repeats that did not end in an error.
public struct Summary: Codable, Equatable, Sendable {
  private let statistics: [String: Statistics?]

  public init(of repeats: [RepeatRecord]) {
    let good = repeats.filter { $0.stopReason != .error }.map(\.json)
    let found = Contract.current.metrics.map { metric in
      (metric.name, Statistics(of: good.flatMap(metric.values)))
    }
    statistics = Dictionary(uniqueKeysWithValues: found)
  }

  public init(from decoder: any Decoder) throws {
    statistics = try decoder.singleValueContainer().decode([String: Statistics?].self)
  }

  public func encode(to encoder: any Encoder) throws {
    var container = encoder.singleValueContainer()
    try container.encode(statistics)
  }

  /// Nil where no repeat has the number.
  public subscript(name: String) -> Statistics? { statistics[name] ?? nil }
}

extension RunRecord {
  /// How often its loads packed weights, found them packed or did without, as "1 cold, 4 warm"; nil without a load.
  public var packings: String? {
    let kinds = repeats.compactMap(\.packing)
    let counts = [Packing.cold, .warm, .nowhere].map { kind in (kind.rawValue, kinds.count { $0 == kind }) }
    return kinds.isEmpty
      ? nil : counts.filter { $0.1 > 0 }.map { "\($0.1) \($0.0)" }.joined(separator: ", ")
  }

  /// What a reader of the numbers must know, in sentences.
  public var remarks: [String] {
    let hot = repeats.indices.filter { repeats[$0].throttled }.map { "\($0 + 1)" }
    let unpacked = Set(repeats.compactMap(\.packingNote)).sorted()
    let warnings = repeats.reduce(0) { $0 + $1.lowMemoryEvents }
    let problems = [
      hot.isEmpty ? nil : Contract.current.remark("hot", ["repeats": hot.joined(separator: ", ")]),
      warnings == 0 ? nil : Contract.current.remark("low_memory", ["count": warnings]),
    ].compactMap { $0 }
    return unpacked.map { Contract.current.remark("not_packed", ["note": $0]) } + problems
  }
}

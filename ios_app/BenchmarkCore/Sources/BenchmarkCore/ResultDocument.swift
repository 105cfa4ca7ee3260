import Foundation

/// The result of a run, key for key as export/bench/contract/result.schema.json says.
public struct ResultDocument: Codable, Equatable, Sendable {
  public static let schema = "pocketphi-result/1"

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
    schema = Self.schema
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
    guard schema == Self.schema else {
      throw BadInput("This result has the format \"\(schema)\", this app reads \"\(Self.schema)\".")
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
public struct RepeatRecord: Codable, Equatable, Sendable {
  public struct MemoryRecord: Codable, Equatable, Sendable {
    public var samples: [Sample]
    public var peak: Memory
  }

  public struct ThermalRecord: Codable, Equatable, Sendable {
    public let before: Thermal
    public let after: Thermal
  }

  @Explicit public var loadMs: Double?
  public let promptTokens: Int
  public let generatedTokens: Int
  @Explicit public var timeToFirstTokenMs: Double?
  @Explicit public var prefillTokensPerS: Double?
  @Explicit public var decodeTokensPerS: Double?
  public let tokenMs: [Double]
  public let memory: MemoryRecord
  public let thermal: ThermalRecord
  public let throttled: Bool
  public let lowMemoryEvents: Int
  public let stopReason: StopReason
  public let notes: [String]
}

/// Over the repeats that did not end in an error; nil where none has the number.
public struct Summary: Codable, Equatable, Sendable {
  @Explicit public var loadMs: Statistics?
  @Explicit public var timeToFirstTokenMs: Statistics?
  @Explicit public var prefillTokensPerS: Statistics?
  @Explicit public var decodeTokensPerS: Statistics?
  @Explicit public var tokenMs: Statistics?
  @Explicit public var peakPssBytes: Statistics?
  @Explicit public var peakRssBytes: Statistics?
  @Explicit public var peakPrivateDirtyBytes: Statistics?
  @Explicit public var peakFootprintBytes: Statistics?

  public init(of repeats: [RepeatRecord]) {
    let good = repeats.filter { $0.stopReason != .error }
    func over(_ value: (RepeatRecord) -> Double?) -> Statistics? { Statistics(of: good.compactMap(value)) }
    func peak(_ value: (Memory) -> Int64?) -> Statistics? { over { value($0.memory.peak).map(Double.init) } }
    loadMs = over(\.loadMs)
    timeToFirstTokenMs = over(\.timeToFirstTokenMs)
    prefillTokensPerS = over(\.prefillTokensPerS)
    decodeTokensPerS = over(\.decodeTokensPerS)
    tokenMs = Statistics(of: good.flatMap(\.tokenMs))
    peakPssBytes = peak(\.pssBytes)
    peakRssBytes = peak(\.rssBytes)
    peakPrivateDirtyBytes = peak(\.privateDirtyBytes)
    peakFootprintBytes = peak(\.footprintBytes)
  }
}

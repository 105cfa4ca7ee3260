import Foundation

/// What happens in a run, in order.
public enum RunEvent: Sendable {
  case started(appVersion: String, pid: Int32)
  case loading
  case loaded(Loaded, loadMs: Double)
  case counting(configuration: Int)
  case warmup(configuration: Int, warmup: Int)
  case resting(configuration: Int, repeat: Int, seconds: Double)
  case repeating(configuration: Int, repeat: Int)
  /// A few times a second.
  case token(index: Int, sinceFirstMs: Double)
  case repeated(configuration: Int, repeat: Int, record: RepeatRecord, soFar: ResultDocument)
  case sampled(phase: Phase, memory: Memory)
  case lowMemory
  case failed(message: String)
  case done(file: URL, result: ResultDocument)
}

/// The lines of docs/ios_protocol.md for a run's events; events that it does not name give none.
public struct ProgressLines: Sendable {
  private let run: String
  private let path: @Sendable (URL) -> String

  /// `path` turns a result's place into the path that the line names.
  public init(run: String, path: @escaping @Sendable (URL) -> String = { $0.path(percentEncoded: false) }) {
    self.run = run
    self.path = path
  }

  public func line(for event: RunEvent) -> String? {
    switch event {
    case .started(let appVersion, let pid):
      return line("started", ["app_version": .text(appVersion), "pid": .whole(Int64(pid))])
    case .loading: return line("loading", [:])
    case .loaded(let loaded, let loadMs):
      return line(
        "loaded",
        [
          "load_ms": .number(loadMs), "packing": .text(loaded.packing.rawValue),
          "packing_note": .text(loaded.packingNote),
        ])
    case .warmup(let configuration, let warmup):
      return line("warmup", ["configuration": .whole(Int64(configuration)), "warmup": .whole(Int64(warmup))])
    case .repeated(let configuration, let index, let record, _):
      return line(
        "repeat",
        [
          "configuration": .whole(Int64(configuration)), "repeat": .whole(Int64(index)),
          "prefill_tokens_per_s": .number(record.prefillTokensPerS),
          "decode_tokens_per_s": .number(record.decodeTokensPerS),
          "time_to_first_token_ms": .number(record.timeToFirstTokenMs),
          "peak_footprint_bytes": .whole(record.memory.peak.footprintBytes),
          "available_bytes": .whole(record.memory.peak.availableBytes),
          "thermal": .text(record.thermal.after.status.rawValue),
        ])
    case .sampled(let phase, let memory):
      return line(
        "memory",
        [
          "footprint_bytes": .whole(memory.footprintBytes), "available_bytes": .whole(memory.availableBytes),
          "phase": .text(phase.rawValue),
        ])
    case .lowMemory: return line("low_memory", ["level": .text("memory warning")])
    case .failed(let message): return line("error", ["message": .text(message)])
    case .done(let file, _): return line("done", ["file": .text(path(file))])
    case .counting, .resting, .repeating, .token: return nil
    }
  }

  private func line(_ event: String, _ values: [String: Value]) -> String {
    let all = values.merging(["run": .text(run), "event": .text(event)]) { $1 }
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    // Only strings and numbers are written, and numbers that are none were turned to null.
    guard let json = try? encoder.encode(all) else { return "{}" }
    return String(decoding: json, as: UTF8.self)
  }

  private enum Value: Encodable {
    case text(String?)
    case whole(Int64?)
    case number(Double?)

    func encode(to encoder: any Encoder) throws {
      var container = encoder.singleValueContainer()
      switch self {
      case .text(let text): try container.encode(text)
      case .whole(let count): try container.encode(count)
      case .number(let number): try container.encode(number.flatMap { $0.isFinite ? $0 : nil })
      }
    }
  }
}

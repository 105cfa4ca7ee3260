/// What is compared of two results: medians of summaries.
public enum Metric: String, CaseIterable, Identifiable, Sendable {
  case decode = "Decode"
  case prefill = "Prefill"
  case firstToken = "First token"
  case token = "Token"
  case load = "Load"
  case footprint = "Peak footprint"

  public var id: String { rawValue }
  public var moreIsBetter: Bool { self == .decode || self == .prefill }

  public func statistics(of summary: Summary) -> Statistics? {
    switch self {
    case .decode: summary.decodeTokensPerS
    case .prefill: summary.prefillTokensPerS
    case .firstToken: summary.timeToFirstTokenMs
    case .token: summary.tokenMs
    case .load: summary.loadMs
    case .footprint: summary.peakFootprintBytes
    }
  }

  /// With its unit.
  public func text(_ value: Double) -> String {
    switch self {
    case .decode, .prefill: Format.rate(value)
    case .firstToken, .token, .load: Format.milliseconds(value)
    case .footprint: Format.bytes(Int64(value))
    }
  }
}

/// One metric of two results, medians in the metric's unit; nil where one lacks.
public struct ComparedMetric: Equatable, Sendable {
  public enum Verdict: Equatable, Sendable {
    case better, worse, same, unknown
  }

  public let metric: Metric
  public let before: Double?
  public let after: Double?
  public let tolerance: Double

  /// How much more `after` is, as a fraction of `before`.
  public var change: Double? {
    guard let before, let after, before != 0 else { return nil }
    return after / before - 1
  }

  /// The same where the change is within the tolerance.
  public var verdict: Verdict {
    guard let change else { return .unknown }
    if abs(change) <= tolerance { return .same }
    return (change > 0) == metric.moreIsBetter ? .better : .worse
  }
}

/// Two results beside each other.
public struct Comparison: Equatable, Sendable {
  public struct Pair: Equatable, Sendable {
    public let configuration: Configuration
    public let metrics: [ComparedMetric]
  }

  public static let usualTolerance = 0.03

  /// One for each configuration that both results have, by their lengths.
  public let pairs: [Pair]
  /// Sentences on what makes the two less comparable.
  public let differences: [String]

  /// `tolerance` is a fraction: 0.03 lets medians differ by 3 %.
  public init(before: ResultDocument, after: ResultDocument, tolerance: Double = usualTolerance) {
    pairs = after.runs.compactMap { run in
      guard let other = before.runs.first(where: { $0.configuration.sameLengths(as: run.configuration) }) else {
        return nil
      }
      let metrics = Metric.allCases.map {
        ComparedMetric(
          metric: $0, before: $0.statistics(of: other.summary)?.median, after: $0.statistics(of: run.summary)?.median,
          tolerance: tolerance)
      }
      return Pair(configuration: run.configuration, metrics: metrics)
    }
    differences = Self.differences(before, after)
  }

  public var regressed: Bool { pairs.contains { $0.metrics.contains { $0.verdict == .worse } } }

  private static func differences(_ before: ResultDocument, _ after: ResultDocument) -> [String] {
    func other(_ what: String, _ one: String, _ two: String) -> String? {
      one == two ? nil : "Other \(what): \(one) and \(two)."
    }
    let both = [before, after]
    return [
      other("devices", before.device.model, after.device.model),
      other("models", before.model.file, after.model.file),
      other("ExecuTorch versions", before.build.executorch ?? "unknown", after.build.executorch ?? "unknown"),
      both.contains { $0.runs.contains { $0.repeats.contains(where: \.throttled) } }
        ? "Some repeats ran on a hot, throttled device." : nil,
      both.contains { $0.status == .incomplete } ? "A run is incomplete." : nil,
    ].compactMap { $0 }
  }
}

/// One metric of two results, medians in the metric's unit; nil where one lacks.
public struct ComparedMetric: Equatable, Sendable {
  public enum Verdict: Equatable, Sendable {
    case better, worse, same, unknown
  }

  public let metric: Metric
  public let before: Double?
  public let after: Double?
  /// Nil where the metric is not judged.
  public let tolerance: Double?

  /// How much more `after` is, as a fraction of `before`.
  public var change: Double? {
    guard let before, let after, before != 0 else { return nil }
    return after / before - 1
  }

  /// The same where the change is within the tolerance.
  public var verdict: Verdict {
    guard let change, let tolerance else { return .unknown }
    if abs(change) <= tolerance { return .same }
    return (change > 0) == (metric.better == .higher) ? .better : .worse
  }
}

/// Two results beside each other.
public struct Comparison: Equatable, Sendable {
  public struct Pair: Equatable, Sendable {
    public let configuration: Configuration
    public let metrics: [ComparedMetric]
  }

  /// One for each configuration that both results have, by their lengths.
  public let pairs: [Pair]
  /// Sentences on what makes the two less comparable.
  public let differences: [String]

  /// `tolerance` is a fraction and stands in for the metrics' own, but for those that have none.
  public init(before: ResultDocument, after: ResultDocument, tolerance: Double? = nil) {
    pairs = after.runs.compactMap { run in
      guard let other = before.runs.first(where: { $0.configuration.sameLengths(as: run.configuration) }) else {
        return nil
      }
      let metrics = Contract.current.metrics.map {
        ComparedMetric(
          metric: $0, before: other.summary[$0.name]?.median, after: run.summary[$0.name]?.median,
          tolerance: $0.tolerance == nil ? nil : tolerance ?? $0.tolerance)
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

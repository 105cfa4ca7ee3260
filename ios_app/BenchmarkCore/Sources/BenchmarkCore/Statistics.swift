/// Minimum, quartiles and maximum. Percentiles interpolate linearly between closest ranks.
public struct Statistics: Codable, Equatable, Sendable {
  public let min: Double
  public let p25: Double
  public let median: Double
  public let p75: Double
  public let max: Double

  /// Nil without values.
  public init?(of values: [Double]) {
    let sorted = values.sorted()
    guard let first = sorted.first, let last = sorted.last else { return nil }
    min = first
    p25 = Self.percentile(25, of: sorted)
    median = Self.percentile(50, of: sorted)
    p75 = Self.percentile(75, of: sorted)
    max = last
  }

  /// The `percent`-th percentile of ascending values, of which there is at least one.
  static func percentile(_ percent: Double, of sorted: [Double]) -> Double {
    let rank = Double(sorted.count - 1) * percent / 100
    let below = Int(rank)
    let above = Swift.min(below + 1, sorted.count - 1)
    return sorted[below] + (sorted[above] - sorted[below]) * (rank - Double(below))
  }
}

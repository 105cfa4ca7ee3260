/// Finds texts that end an answer in its pieces, also where one is spread over several, and lets through what a
/// person should see.
public struct StopScanner: Sendable {
  private let stops: [String]
  private var held = ""
  public private(set) var stopped = false

  public init(stops: [String] = ChatTemplate.stops) {
    self.stops = stops.filter { !$0.isEmpty }
  }

  /// What may be shown now; nothing more once a stop was found.
  public mutating func show(_ piece: String) -> String {
    guard !stopped else { return "" }
    held += piece
    if let first = stops.compactMap({ held.firstRange(of: $0)?.lowerBound }).min() {
      stopped = true
      defer { held = "" }
      return String(held[..<first])
    }
    // The end could be the beginning of a stop.
    let beginning = held.indices.first { start in stops.contains { $0.hasPrefix(held[start...]) } } ?? held.endIndex
    defer { held = String(held[beginning...]) }
    return String(held[..<beginning])
  }

  /// What was held back when no more pieces come.
  public mutating func rest() -> String {
    defer { held = "" }
    return held
  }
}

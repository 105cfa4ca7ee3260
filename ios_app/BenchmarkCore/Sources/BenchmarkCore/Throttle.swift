/// Lets through at most so many a second: a screen that is drawn for every token takes time from the model.
public struct Throttle: Sendable {
  /// How often a screen is told of what goes on while a model answers.
  public static let screen = 4.0

  private let nanoseconds: UInt64
  private var last: UInt64?

  public init(perSecond: Double = screen) {
    nanoseconds = UInt64(1e9 / perSecond)
  }

  /// Whether one may pass at this time of a clock that only grows; the first always may.
  public mutating func passes(at now: UInt64) -> Bool {
    if let last, now < last + nanoseconds { return false }
    last = now
    return true
  }
}

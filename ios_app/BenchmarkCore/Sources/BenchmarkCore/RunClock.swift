import Dispatch
import Foundation

/// Time, which tests make their own.
public protocol RunClock: Sendable {
  /// Nanoseconds that only grow.
  func nanoseconds() -> UInt64

  func date() -> Date

  /// Waits so many seconds, or until `until` is true.
  func rest(seconds: Double, until: () -> Bool)
}

public struct SystemClock: RunClock {
  private static let step = 0.05

  public init() {}

  public func nanoseconds() -> UInt64 { DispatchTime.now().uptimeNanoseconds }

  public func date() -> Date { Date() }

  public func rest(seconds: Double, until: () -> Bool) {
    let end = nanoseconds() + UInt64(seconds * 1e9)
    while !until(), nanoseconds() < end { Thread.sleep(forTimeInterval: Self.step) }
  }
}

extension RunClock {
  func milliseconds(since start: UInt64) -> Double {
    let now = nanoseconds()
    return now > start ? Double(now - start) / 1e6 : 0
  }
}

import Foundation

/// Numbers for people; decimal units, as in the reports.
public enum Format {
  /// Minutes and seconds: 0:07.
  public static func time(_ seconds: Double) -> String {
    let whole = Int(seconds)
    return "\(whole / 60):" + (whole % 60 < 10 ? "0" : "") + "\(whole % 60)"
  }

  public static func bytes(_ count: Int64) -> String {
    switch count {
    case 1_000_000_000...: fixed(Double(count) / 1e9, 2) + " GB"
    case 1_000_000...: fixed(Double(count) / 1e6, 1) + " MB"
    case 1000...: fixed(Double(count) / 1e3, 1) + " kB"
    default: "\(count) bytes"
    }
  }

  public static func rate(_ tokensPerSecond: Double) -> String { fixed(tokensPerSecond, 1) + " tokens/s" }

  public static func milliseconds(_ ms: Double) -> String {
    ms >= 1000 ? fixed(ms / 1000, 2) + " s" : fixed(ms, ms < 10 ? 2 : 1) + " ms"
  }

  /// 0.0312 as "+3.1 %".
  public static func change(_ fraction: Double) -> String {
    (fraction < 0 ? "−" : "+") + fixed(abs(fraction) * 100, 1) + " %"
  }

  public static func fixed(_ value: Double, _ digits: Int) -> String {
    String(format: "%.\(digits)f", value)
  }
}

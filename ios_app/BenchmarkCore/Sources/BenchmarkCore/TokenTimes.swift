/// When one generation began and when each of its tokens came, in nanoseconds of one clock.
struct TokenTimes {
  let begin: UInt64
  var tokens: [UInt64] = []

  /// By the names of the contract's metrics; those that are not known lack.
  func measures(promptTokens: Int) -> [String: Double] {
    [
      "time_to_first_token_ms": firstMs, "prefill_tokens_per_s": prefillRate(promptTokens: promptTokens),
      "decode_tokens_per_s": decodeRate,
    ].compactMapValues { $0 }
  }

  private var firstMs: Double? { tokens.first.map { Self.ms(begin, $0) } }

  /// Between consecutive tokens.
  var tokenMs: [Double] { zip(tokens, tokens.dropFirst()).map { Self.ms($0, $1) } }

  // Tokens a second.
  private func prefillRate(promptTokens: Int) -> Double? {
    firstMs.flatMap { $0 > 0 ? Double(promptTokens) / $0 * 1000 : nil }
  }

  // Tokens a second, over all but the first.
  private var decodeRate: Double? {
    guard let first = tokens.first, let last = tokens.last, last > first else { return nil }
    return Double(tokens.count - 1) / Self.ms(first, last) * 1000
  }

  private static func ms(_ from: UInt64, _ to: UInt64) -> Double { to > from ? Double(to - from) / 1e6 : 0 }
}

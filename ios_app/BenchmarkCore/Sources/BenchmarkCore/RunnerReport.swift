import Foundation

/// The statistics line that ExecuTorch's runner prints after a generation (extension/llm/runner/stats.h).
public struct RunnerReport: Decodable, Equatable, Sendable {
  private static let mark = "PyTorchObserver "

  public let promptTokens: Int
  /// Without the first new token, which comes from the prefill.
  public let generatedTokens: Int

  /// The last such line of `output`; nil without one.
  public init?(in output: String) {
    guard let mark = output.range(of: Self.mark, options: .backwards) else { return nil }
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    let line = output[mark.upperBound...].prefix { !$0.isNewline }
    guard let report = try? decoder.decode(RunnerReport.self, from: Data(line.utf8)) else { return nil }
    self = report
  }
}

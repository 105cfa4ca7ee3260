/// Sound while it is recorded: one channel, no longer than a question should be.
public struct Clip: Sendable {
  /// Samples a second.
  public static let rate = 16_000
  public static let mostSeconds = 60

  public private(set) var samples: [Float] = []
  /// Of the newest samples, 0 to 1.
  public private(set) var loudness: Float = 0

  public init() {}

  public var seconds: Double { Double(samples.count) / Double(Self.rate) }
  public var isFull: Bool { samples.count >= Self.rate * Self.mostSeconds }

  /// What is over the limit is left out.
  public mutating func append(_ new: [Float]) {
    guard !new.isEmpty else { return }
    samples += new.prefix(Self.rate * Self.mostSeconds - samples.count)
    loudness = min(1, (new.reduce(0) { $0 + $1 * $1 } / Float(new.count)).squareRoot())
  }

  /// Nil where nothing was heard.
  public var sound: Sound? { samples.isEmpty ? nil : Sound(samples: samples, rate: Self.rate) }
}

/// What hears: it calls `onSamples` from a thread of its own with one channel at `Clip.rate`.
public protocol SoundSource: Sendable {
  /// Asks for the permission where that was not given yet. Throws `BadInput` with a sentence for a person.
  func start(onSamples: @escaping @Sendable ([Float]) -> Void) async throws

  func stop()
}

import Foundation

/// Looks at the memory on a thread of its own: often, for the peak, and now and then for a sample that is kept.
/// The kernel's own count of the highest footprint finds peaks between two looks.
final class MemoryWatch: Sendable {
  struct Seen: Equatable {
    var samples: [Sample]
    var peak: Memory
    /// The highest footprint while something was encoded, and the last then; nil where nothing was.
    var encodePeakBytes: Int64?
    var encodedBytes: Int64?

    /// By the names of the contract's metrics.
    var encoding: [String: Double] {
      ["encode_peak_bytes": encodePeakBytes, "encoded_bytes": encodedBytes].compactMapValues { $0.map(Double.init) }
    }
  }

  private struct Taken {
    let nanoseconds: UInt64
    let phase: Phase
    let memory: Memory
  }

  private struct State {
    var phase = Phase.idle
    var running = false
    var taken: [Taken] = []
    var peak = Memory.unknown
    var highestBefore: Int64?
    var encodePeakBytes: Int64?
    var encodedBytes: Int64?
  }

  private let state = Locked(State())
  private let probes: any Probes
  private let clock: any RunClock
  private let interval: TimeInterval
  private let keepEvery: TimeInterval
  private let onSample: @Sendable (Phase, Memory) -> Void
  private let ended = DispatchSemaphore(value: 0)

  /// Looks every `interval` seconds, keeps a sample and reports it every `keepEvery` seconds.
  init(
    probes: any Probes, clock: any RunClock, interval: TimeInterval, keepEvery: TimeInterval,
    onSample: @escaping @Sendable (Phase, Memory) -> Void
  ) {
    self.probes = probes
    self.clock = clock
    self.interval = interval
    self.keepEvery = keepEvery
    self.onSample = onSample
  }

  func start() {
    state.with { $0.running = true }
    let thread = Thread { [self] in watch() }
    thread.name = "memory"
    thread.start()
  }

  /// Returns when the thread has ended.
  func stop() {
    let wasRunning = state.with { state in
      defer { state.running = false }
      return state.running
    }
    if wasRunning { ended.wait() }
  }

  /// A new phase is looked at as it begins.
  func enter(_ phase: Phase) {
    let changed = state.with { state in
      defer { state.phase = phase }
      return state.phase != phase
    }
    if changed { look(keep: true) }
  }

  /// A look where a phase ends.
  func lookNow() {
    look(keep: true)
  }

  /// Forgets what was seen so far.
  func begin() {
    let highest = probes.highestFootprint()
    state.with {
      $0.taken = []
      $0.peak = .unknown
      $0.highestBefore = highest
      ($0.encodePeakBytes, $0.encodedBytes) = (nil, nil)
    }
    look(keep: true)
  }

  /// What was seen since `begin`. Times count from `origin`.
  func end(origin: UInt64) -> Seen {
    look(keep: true)
    let highest = probes.highestFootprint()
    return state.with { state in
      // A count that did not grow tells of an earlier peak.
      if let highest, highest > state.highestBefore ?? .max { state.peak.footprintBytes = highest }
      let samples = state.taken.map { taken in
        let ms = taken.nanoseconds > origin ? Double(taken.nanoseconds - origin) / 1e6 : 0
        return Sample(atMs: ms, phase: taken.phase, memory: taken.memory)
      }
      return Seen(
        samples: samples, peak: state.peak, encodePeakBytes: state.encodePeakBytes, encodedBytes: state.encodedBytes)
    }
  }

  private func watch() {
    var sinceKept: TimeInterval = 0
    while state.with({ $0.running }) {
      Thread.sleep(forTimeInterval: interval)
      sinceKept += interval
      let keep = sinceKept >= keepEvery
      let memory = look(keep: keep)
      if keep {
        sinceKept = 0
        if state.with({ $0.running }) { onSample(state.with { $0.phase }, memory) }
      }
    }
    ended.signal()
  }

  @discardableResult
  private func look(keep: Bool) -> Memory {
    let memory = probes.memory()
    state.with { state in
      state.peak = state.peak.worse(memory)
      if state.phase == .encode, let bytes = memory.footprintBytes {
        state.encodePeakBytes = max(bytes, state.encodePeakBytes ?? 0)
        state.encodedBytes = bytes
      }
      // The time is read in here, so that samples of two threads stay in order.
      if keep { state.taken.append(Taken(nanoseconds: clock.nanoseconds(), phase: state.phase, memory: memory)) }
    }
    return memory
  }
}

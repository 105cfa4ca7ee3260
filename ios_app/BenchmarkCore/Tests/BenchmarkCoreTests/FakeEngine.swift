import Foundation

@testable import BenchmarkCore

/// Time that only passes when something takes it: 5 ms for a token of the prompt, 50 ms for a new one.
final class FakeClock: RunClock {
  let now = Locked<UInt64>(1_000_000_000)
  let rested = Locked<[Double]>([])

  func nanoseconds() -> UInt64 { now.current }
  func date() -> Date { Date(timeIntervalSince1970: 1_795_000_000) }
  func rest(seconds: Double, until: () -> Bool) { rested.with { $0.append(seconds) } }
  func pass(ms: UInt64) { now.with { $0 += ms * 1_000_000 } }
}

/// Counts words as tokens; told to fail, end early or call back.
final class FakeEngine: TextEngine {
  struct Script: Sendable {
    var loadFailure: EngineFailure?
    /// The generation, from 0 and with warm-ups, that fails after a token.
    var failAt: Int?
    var endAfter: Int?
    var onLoad: (@Sendable () -> Void)?
    var onToken: (@Sendable (_ generation: Int, _ token: Int) -> Void)?
    var packing = Packing.cold
    var takes = Takes.text
    var onEncode: (@Sendable () throws -> Void)?
  }

  let clock: FakeClock
  let script: Script
  let loads = Locked(0)
  let unloads = Locked(0)
  let generations = Locked(0)
  let prompts = Locked<[String]>([])
  let encoded = Locked<[Media]>([])
  private let stopped = Locked(false)

  init(clock: FakeClock, script: Script = Script()) {
    self.clock = clock
    self.script = script
  }

  func load(onProgress: @escaping (Double) -> Void) throws -> Loaded {
    stopped.with { $0 = false }
    loads.with { $0 += 1 }
    script.onLoad?()
    for part in 1...10 {
      clock.pass(ms: 200)
      onProgress(Double(part) / 10)
      if stopped.current { throw EngineStopped() }
    }
    if let failure = script.loadFailure { throw failure }
    return Loaded(
      packing: script.packing, packingNote: script.packing == .nowhere ? "there is no room" : nil, threads: 2,
      takes: script.takes)
  }

  /// A picture or sound is 50 tokens and takes 400 ms.
  func encode(_ prompt: [PromptPart], onPart: @escaping (EncodingStep) -> Void) throws -> [Encoded] {
    stopped.with { $0 = false }
    return try prompt.compactMap { part in
      guard case .media(let media) = part else { return nil }
      for done in 0..<2 { onPart(EncodingStep(media: media, done: done, of: 2)) }
      if stopped.current { throw EngineStopped() }
      try script.onEncode?()
      clock.pass(ms: 400)
      encoded.with { $0.append(media) }
      return Encoded(tokens: 50, parts: 2, reused: false, prepareMs: 30, encodeMs: 370)
    }
  }

  func count(_ text: String) -> Int { text.split(separator: " ").count }

  func generate(
    _ prompt: [PromptPart], newTokens: Int, onToken: @escaping () -> Void, onText: @escaping (String) -> Void
  ) throws -> Generated {
    stopped.with { $0 = false }
    let text = prompt.map { if case .text(let text) = $0 { text } else { "[media]" } }.joined()
    let tokens = count(text.replacing("[media]", with: "")) + 50 * (text.components(separatedBy: "[media]").count - 1)
    prompts.with { $0.append(text) }
    let generation = generations.with { count in
      defer { count += 1 }
      return count
    }
    clock.pass(ms: UInt64(tokens) * 5)
    let end = min(newTokens, script.endAfter ?? newTokens)
    let promptTokens = tokens
    func generated(_ tokens: Int, _ reason: StopReason) -> Generated {
      Generated(promptTokens: promptTokens, generatedTokens: tokens, stopReason: reason)
    }
    for token in 0..<end {
      if token > 0 { clock.pass(ms: 50) }
      onToken()
      onText(" w\(token)")
      script.onToken?(generation, token)
      if generation == script.failAt { throw EngineFailure("It broke.") }
      if stopped.current { return generated(token + 1, .stopped) }
    }
    return generated(end, end < newTokens ? .endOfTurn : .newTokens)
  }

  func stop() { stopped.with { $0 = true } }
  func reset() {}
  func unload() { unloads.with { $0 += 1 } }
}

/// A footprint that grows by a megabyte with every look.
final class FakeProbes: Probes {
  let footprint = Locked<Int64>(100_000_000)
  let status = Locked(ThermalStatus.none)
  let lowPower = Locked(false)
  let highest = Locked<Int64?>(nil)
  let available = Locked<Int64?>(3_000_000_000)

  func memory() -> Memory {
    let bytes = footprint.with { bytes in
      bytes += 1_000_000
      return bytes
    }
    return Memory(footprintBytes: bytes, rssBytes: bytes, availableBytes: available.current)
  }

  func thermal() -> Thermal { Thermal(status: status.current, batteryPercent: 80, lowPowerMode: lowPower.current) }
  func highestFootprint() -> Int64? { highest.current }
}

import Foundation

/// Runs a conversation's engine on a queue of its own.
///
/// Unchecked because the session is used on that queue only.
public final class ChatWorker: @unchecked Sendable {
  public enum Event: Equatable, Sendable {
    /// The part of a load that is done, 0 to 1.
    case loading(Double)
    /// A line on how the model was loaded.
    case loaded(String, takes: Takes)
    case text(String)
    /// "Looking at the picture, part 2 of 5", and nil when everything is encoded.
    case encoding(String?)
    /// The question was not asked, for this reason unless encoding was stopped: the conversation is as before it.
    case refused(String?)
    /// A line on how fast the answer was and what memory the app takes.
    case answered(String)
    case failed(String)
    /// A load that was stopped: there is no model.
    case stopped
  }

  private let engine: any TextEngine
  private let probes: any Probes
  private let clock: any RunClock
  private let queue = DispatchQueue(label: "org.pocketphi.chat", qos: .userInitiated)
  private var session: ChatSession
  // A stop may come before the queue has got to the engine, which forgets it then.
  private let stopAsked = Locked(false)

  public init(engine: any TextEngine, system: String?, probes: any Probes, clock: any RunClock = SystemClock()) {
    self.engine = engine
    self.probes = probes
    self.clock = clock
    session = ChatSession(engine: engine, system: system)
  }

  public func load() -> AsyncStream<Event> {
    perform { worker, events in
      let start = worker.clock.nanoseconds()
      let throttle = Locked(Throttle())
      let (clock, engine, stopAsked) = (worker.clock, worker.engine, worker.stopAsked)
      let loaded = try engine.load {
        if stopAsked.current { engine.stop() }
        if throttle.with({ $0.passes(at: clock.nanoseconds()) }) { events.yield(.loading($0)) }
      }
      if stopAsked.current { throw EngineStopped() }
      let ms = clock.milliseconds(since: start)
      let line = Self.line(loaded, ms: ms, footprint: worker.probes.memory().footprintBytes)
      events.yield(.loaded(line, takes: loaded.takes))
    }
  }

  /// Answers `text` with `media` before it, with at most `newTokens` tokens.
  public func ask(_ text: String, media: [Media] = [], newTokens: Int) -> AsyncStream<Event> {
    perform { worker, events in
      let (clock, engine, stopAsked) = (worker.clock, worker.engine, worker.stopAsked)
      // When everything was encoded.
      let begun = Locked(clock.nanoseconds())
      let times = Locked<(first: UInt64, last: UInt64)?>(nil)
      let waiting = Locked((text: "", throttle: Throttle()))
      let generated = try worker.session.ask(text, media: media, newTokens: newTokens) { step in
        if stopAsked.current { engine.stop() }
        events.yield(.encoding(step.map(Self.line)))
        if step == nil { begun.with { $0 = clock.nanoseconds() } }
      } onToken: {
        let now = clock.nanoseconds()
        times.with { $0 = ($0?.first ?? now, now) }
        if stopAsked.current { engine.stop() }
      } onText: { piece in
        waiting.with {
          $0.text += piece
          guard $0.throttle.passes(at: clock.nanoseconds()) else { return }
          events.yield(.text($0.text))
          $0.text = ""
        }
      }
      let rest = waiting.current.text
      if !rest.isEmpty { events.yield(.text(rest)) }
      let footprint = worker.probes.memory().footprintBytes
      let line = Self.line(
        generated, encoded: worker.session.encoded, start: begun.current, times: times.current, footprint: footprint)
      events.yield(.answered(line))
    }
  }

  public func stop() {
    stopAsked.with { $0 = true }
    engine.stop()
  }

  /// Forgets the conversation, keeps the model.
  public func begin(system: String?) {
    queue.async { [self] in
      engine.reset()
      session = ChatSession(engine: engine, system: system)
    }
  }

  /// Returns when the model's memory is given back.
  public func end() async {
    stop()
    await withCheckedContinuation { continuation in
      queue.async { [self] in
        engine.unload()
        continuation.resume()
      }
    }
  }

  private func perform(
    _ work: @escaping @Sendable (ChatWorker, AsyncStream<Event>.Continuation) throws -> Void
  ) -> AsyncStream<Event> {
    let (stream, continuation) = AsyncStream.makeStream(of: Event.self)
    stopAsked.with { $0 = false }
    queue.async { [self] in
      do {
        try work(self, continuation)
      } catch let refusal as MediaRefused {
        continuation.yield(.refused(refusal.message))
      } catch is EngineStopped {
        continuation.yield(.stopped)
      } catch {
        continuation.yield(.failed(error.localizedDescription))
      }
      continuation.finish()
    }
    return stream
  }

  /// How a model was loaded.
  public static func line(_ loaded: Loaded, ms: Double, footprint: Int64?) -> String {
    let weights =
      switch loaded.packing {
      case .cold: "weights packed now"
      case .warm: "packed weights reused"
      case .nowhere: "packed weights not kept (\(loaded.packingNote ?? "unknown why"))"
      }
    let parts = ["loaded in \(Format.milliseconds(ms))", weights, "\(loaded.threads) threads"]
    return (parts + [footprint.map { "footprint \(Format.bytes($0))" }].compactMap { $0 }).joined(separator: ", ")
  }

  private static func line(_ step: EncodingStep) -> String {
    let doing =
      switch step.media {
      case .picture: "Looking at the picture"
      case .sound: "Listening to the sound"
      }
    return step.of > 1 ? "\(doing), part \(step.done + 1) of \(step.of)" : doing
  }

  private static func line(
    _ generated: Generated, encoded: [Encoded], start: UInt64, times: (first: UInt64, last: UInt64)?,
    footprint: Int64?
  ) -> String {
    var parts = ["\(generated.generatedTokens) tokens"]
    if !encoded.isEmpty {
      let tokens = encoded.reduce(0) { $0 + $1.tokens }
      let ms = encoded.reduce(0) { $0 + $1.ms }
      parts.insert("\(tokens) tokens encoded in \(Format.milliseconds(ms))", at: 0)
    }
    if let times {
      let firstMs = Double(times.first - start) / 1e6
      let restS = Double(times.last - times.first) / 1e9
      parts.append("first after \(Format.milliseconds(firstMs))")
      if generated.generatedTokens > 1, restS > 0 {
        parts.append(Format.rate(Double(generated.generatedTokens - 1) / restS))
      }
      let fed = generated.promptTokens - generated.reusedTokens
      if firstMs > 0 { parts.append("prompt of \(fed) at \(Format.rate(Double(fed) / firstMs * 1000))") }
    }
    if generated.acceptedTokens > 0 { parts.append("\(generated.acceptedTokens) guessed ahead") }
    switch generated.stopReason {
    case .newTokens: parts.append("cut off")
    case .stopped: parts.append("stopped")
    case .endOfTurn, .error: break
    }
    if let footprint { parts.append("footprint \(Format.bytes(footprint))") }
    return parts.joined(separator: ", ")
  }
}

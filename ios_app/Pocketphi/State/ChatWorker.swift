import BenchmarkCore
import Foundation

/// Runs a conversation's engine on a queue of its own.
///
/// Unchecked because the session is used on that queue only.
final class ChatWorker: @unchecked Sendable {
  enum Event: Sendable {
    case text(String)
    /// A line on how fast the answer was.
    case answered(String)
    case failed(String)
  }

  private let engine: any TextEngine
  private let queue = DispatchQueue(label: "org.pocketphi.chat", qos: .userInitiated)
  private var session: ChatSession

  init(engine: any TextEngine) {
    self.engine = engine
    session = ChatSession(engine: engine, system: nil)
  }

  func load() -> AsyncStream<Event> {
    perform { worker, _ in try worker.engine.load() }
  }

  /// Answers `text` with at most `newTokens` tokens.
  func ask(_ text: String, newTokens: Int) -> AsyncStream<Event> {
    perform { worker, events in
      let clock = SystemClock()
      let start = clock.nanoseconds()
      let first = Locked<UInt64?>(nil)
      let generated = try worker.session.ask(text, newTokens: newTokens) { piece in
        first.with { if $0 == nil { $0 = clock.nanoseconds() } }
        events.yield(.text(piece))
      }
      let end = clock.nanoseconds()
      events.yield(.answered(Self.note(generated, start: start, first: first.current ?? end, end: end)))
    }
  }

  func stop() {
    engine.stop()
  }

  /// Forgets the conversation, keeps the model.
  func begin() {
    queue.async { [self] in
      engine.reset()
      session = ChatSession(engine: engine, system: nil)
    }
  }

  /// Returns when the model's memory is given back.
  func end() async {
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
    queue.async { [self] in
      do {
        try work(self, continuation)
      } catch {
        continuation.yield(.failed(error.localizedDescription))
      }
      continuation.finish()
    }
    return stream
  }

  private static func note(_ generated: Generated, start: UInt64, first: UInt64, end: UInt64) -> String {
    let firstMs = Double(first - start) / 1e6
    let restS = Double(end - first) / 1e9
    var parts = ["\(generated.generatedTokens) tokens", "first after \(Format.milliseconds(firstMs))"]
    if generated.generatedTokens > 1, restS > 0 {
      parts.append(Format.rate(Double(generated.generatedTokens - 1) / restS))
    }
    if let prompt = generated.promptTokens, firstMs > 0 {
      parts.append("prompt of \(prompt) at \(Format.rate(Double(prompt) / firstMs * 1000))")
    }
    if generated.stopReason == .newTokens { parts.append("cut off") }
    return parts.joined(separator: ", ")
  }
}

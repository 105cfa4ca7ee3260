import BenchmarkCore
import Foundation
import Observation

/// What the benchmark screen asks for and sees.
@MainActor
@Observable
final class BenchmarkState {
  /// What is going on in a run.
  struct Live {
    var step = "Starting"
    /// How the model was loaded last.
    var load = ""
    var repeatsDone = 0
    var repeats = 0
    var decodeRate: Double?
    var tokens = 0
    var memory = Memory.unknown
    /// Decode rates of the repeats so far, in order.
    var rates: [Double] = []
  }

  var model: LibraryModel?
  var tokenizer: URL?
  var promptTokens = Contract.current.option("prompt_tokens").text
  var newTokens = Contract.current.option("new_tokens").number
  var repeats = Contract.current.option("repeats").number
  var warmups = Contract.current.option("warmups").number
  var cooldownS = Double(Contract.current.option("cooldown_s").number)
  /// Whether a file that takes pictures or sound is measured with them too.
  var withMedia = true
  var loadMode = LoadMode(rawValue: Contract.current.option("load_mode").text) ?? .once

  private(set) var live: Live?
  private(set) var latest: SavedResult?
  private(set) var history: [SavedResult] = []
  var problem: String?

  private let store: ResultStore
  private let surroundings: @MainActor () -> RunSurroundings
  private let watchSystem: @MainActor (BenchmarkRun) -> (@MainActor () -> Void)
  private var run: BenchmarkRun?

  /// `watchSystem` begins to tell a run of the system's events and returns what ends that.
  init(
    store: ResultStore = .documents, surroundings: @escaping @MainActor () -> RunSurroundings = { .thisDevice },
    watchSystem: @escaping @MainActor (BenchmarkRun) -> (@MainActor () -> Void)
  ) {
    self.store = store
    self.surroundings = surroundings
    self.watchSystem = watchSystem
  }

  var running: Bool { run != nil }

  func refresh() {
    history = store.list()
  }

  func choose(_ model: LibraryModel?) {
    self.model = model
    tokenizer = model?.tokenizer
  }

  func start() {
    guard run == nil else { return }
    problem = nil
    do {
      let request = try request()
      let (events, continuation) = AsyncStream.makeStream(of: RunEvent.self)
      let started = BenchmarkRun(request, in: surroundings()) { continuation.yield($0) }
      run = started
      live = Live(repeats: request.repeats)
      let endWatching = watchSystem(started)
      Thread.measuring {
        started.run()
        continuation.finish()
      }
      Task {
        for await event in events { handle(event) }
        endWatching()
        run = nil
        live = nil
        refresh()
        latest = history.first { $0.name == request.name } ?? latest
      }
    } catch {
      problem = error.localizedDescription
    }
  }

  func stop() {
    run?.stop()
  }

  func delete(_ saved: SavedResult) {
    do {
      try store.delete(saved)
    } catch {
      problem = error.localizedDescription
    }
    if latest == saved { latest = nil }
    refresh()
  }

  /// What the chosen model takes, by its manifest.
  var modes: [Mode] { model?.manifest?.modes ?? [.text] }

  private func request() throws -> RunRequest {
    guard let model else { throw BadInput("Choose a model first.") }
    guard let tokenizer else { throw BadInput("Choose the tokenizer of \(model.name) first.") }
    let stamp = Date().formatted(.iso8601.dateSeparator(.omitted).timeSeparator(.omitted)).lowercased()
    return try RunRequest(
      name: "run-\(stamp)", model: model.file, tokenizer: tokenizer,
      configurations: Configuration.all(
        lengths: LaunchArguments.lengths(promptTokens), modes: withMedia ? modes : [.text], newTokens: newTokens,
        repeats: repeats, warmups: warmups, cooldownS: cooldownS, loadMode: loadMode))
  }

  private func handle(_ event: RunEvent) {
    guard var now = live else { return }
    switch event {
    case .started: break
    case .loading: now.step = "Loading the model"
    case .loaded(let loaded, let ms):
      now.step = "Loaded"
      now.load = ChatWorker.line(loaded, ms: ms, footprint: nil)
    case .counting: now.step = "Making a prompt"
    case .warmup(_, let warmup): now.step = "Warm-up \(warmup + 1)"
    case .resting(_, _, let seconds): now.step = "Cooling down for \(Format.fixed(seconds, 0)) s"
    case .repeating(let configuration, let number):
      now.step = "Prompt \(configuration + 1), repeat \(number + 1)"
      now.tokens = 0
      now.decodeRate = nil
    case .token(let index, let sinceFirstMs):
      now.tokens = index + 1
      if index > 0, sinceFirstMs > 0 { now.decodeRate = Double(index) / sinceFirstMs * 1000 }
    case .repeated(_, _, let record, _):
      now.repeatsDone += 1
      now.tokens = record.generatedTokens
      if let rate = record.decodeTokensPerS { now.rates.append(rate) }
    case .sampled(_, let memory): now.memory = memory
    case .lowMemory: now.step = "Low memory"
    case .failed(let message): problem = message
    case .done: now.step = "Done"
    }
    live = now
  }
}

import BenchmarkCore
import Foundation
import Observation
import PocketphiEngine

/// A conversation as the chat screen sees it.
@MainActor
@Observable
final class ChatState {
  struct Bubble: Identifiable {
    let id: Int
    let role: Role
    var text: String
    /// Rates and counts of an answer.
    var note = ""
    var media: [Media] = []
  }

  enum Stage {
    case empty, loading, ready, answering
  }

  private(set) var bubbles: [Bubble] = []
  private(set) var stage = Stage.empty
  private(set) var modelName = ""
  /// The part of a load that is done, 0 to 1.
  private(set) var loaded = 0.0
  /// How the model was loaded, and what memory that takes.
  private(set) var loadNote = ""
  /// What the loaded model takes.
  private(set) var takes = Takes.text
  /// What is being looked at or listened to.
  private(set) var encoding: String?
  var problem: String?

  private var worker: ChatWorker?
  private var refused: (@MainActor () -> Void)?
  private var system = ""
  private var closing: Task<Void, Never>?

  /// Loads the model, once the memory of the one before is given back.
  func open(_ model: LibraryModel, tokenizer: URL, settings: EngineSettings, system: String) async {
    await closed()
    guard stage == .empty else { return }
    stage = .loading
    (modelName, loaded, loadNote) = (model.name, 0, "")
    do {
      let files = try ModelFiles(
        model: model.file, tokenizer: tokenizer, availableBytes: TaskMemory.available(),
        executorch: NativeEngine.executorch, packed: .kept)
      let made = ChatWorker(
        engine: NativeEngine(files: files, settings: settings, packed: .kept), system: system, probes: DeviceProbes())
      worker = made
      self.system = system
      follow(made.load(), of: made) { [self] in stage = .ready }
    } catch {
      stage = .empty
      problem = error.localizedDescription
    }
  }

  /// `onRefused` where the question could not be asked, or its encoding was stopped.
  func send(_ text: String, media: [Media] = [], onRefused: @escaping @MainActor () -> Void = {}) {
    guard stage == .ready, let worker else { return }
    refused = onRefused
    bubbles.append(Bubble(id: bubbles.count, role: .user, text: text, media: media))
    bubbles.append(Bubble(id: bubbles.count, role: .assistant, text: ""))
    stage = .answering
    let newTokens = Contract.current.chat.newTokens
    follow(worker.ask(text, media: media, newTokens: newTokens), of: worker) { [self] in stage = .ready }
  }

  func stop() {
    worker?.stop()
  }

  /// Begins anew with the same model.
  func clear(system: String) {
    guard stage == .ready, let worker else { return }
    bubbles = []
    self.system = system
    worker.begin(system: system)
  }

  /// Closes the chat and returns when its model's memory is given back.
  func closed() async {
    close()
    await closing?.value
  }

  private func close() {
    if let worker {
      closing = Task { await worker.end() }
    }
    worker = nil
    bubbles = []
    takes = .text
    encoding = nil
    stage = .empty
  }

  private func follow(
    _ events: AsyncStream<ChatWorker.Event>, of source: ChatWorker, then done: @escaping @MainActor () -> Void
  ) {
    Task {
      for await event in events where worker === source { handle(event) }
      if worker === source { done() }
    }
  }

  private func handle(_ event: ChatWorker.Event) {
    switch event {
    case .loading(let part): loaded = part
    case .loaded(let note, let takes): (loadNote, self.takes) = (note, takes)
    case .encoding(let line): encoding = line
    case .refused(let message):
      problem = message
      encoding = nil
      bubbles.removeLast(min(2, bubbles.count))
      refused?()
    case .stopped: close()
    case .text(let text):
      if let last = bubbles.indices.last { bubbles[last].text += text }
    case .answered(let note):
      if let last = bubbles.indices.last { bubbles[last].note = note }
    case .failed(let message):
      problem = message
      encoding = nil
      guard stage == .answering, let worker, let last = bubbles.indices.last else { return close() }
      bubbles[last].note = "The conversation begins anew: the model has forgotten what stands above."
      worker.begin(system: system)
    }
  }
}

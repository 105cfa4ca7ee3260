import BenchmarkCore
import Foundation
import Observation

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
  }

  enum Stage {
    case empty, loading, ready, answering
  }

  private(set) var bubbles: [Bubble] = []
  private(set) var stage = Stage.empty
  private(set) var modelName = ""
  var problem: String?

  private var worker: ChatWorker?
  private var closing: Task<Void, Never>?

  /// Loads the model, once the memory of the one before is given back.
  func open(_ model: LibraryModel, tokenizer: URL) async {
    await closed()
    guard stage == .empty else { return }
    stage = .loading
    modelName = model.name
    do {
      let files = try ModelFiles(
        model: model.file, tokenizer: tokenizer, availableBytes: TaskMemory.available(),
        executorch: ExecuTorchEngine.release)
      let made = ChatWorker(engine: ExecuTorchEngine(files: files))
      worker = made
      follow(made.load(), of: made) { [self] in stage = .ready }
    } catch {
      stage = .empty
      problem = error.localizedDescription
    }
  }

  func send(_ text: String) {
    guard stage == .ready, let worker else { return }
    bubbles.append(Bubble(id: bubbles.count, role: .user, text: text))
    bubbles.append(Bubble(id: bubbles.count, role: .assistant, text: ""))
    stage = .answering
    follow(worker.ask(text, newTokens: Contract.current.chat.newTokens), of: worker) { [self] in stage = .ready }
  }

  func stop() {
    worker?.stop()
  }

  /// Begins anew with the same model.
  func clear() {
    guard stage == .ready, let worker else { return }
    bubbles = []
    worker.begin()
  }

  /// Closes the chat and returns when its model's memory is given back.
  func closed() async {
    close()
    await closing?.value
  }

  private func close() {
    if let worker {
      worker.stop()
      closing = Task { await worker.end() }
    }
    worker = nil
    bubbles = []
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
    case .text(let text):
      if let last = bubbles.indices.last { bubbles[last].text += text }
    case .answered(let note):
      if let last = bubbles.indices.last { bubbles[last].note = note }
    case .failed(let message):
      problem = message
      guard stage == .answering, let worker, let last = bubbles.indices.last else { return close() }
      bubbles[last].note = "The conversation begins anew: the model has forgotten what stands above."
      worker.begin()
    }
  }
}

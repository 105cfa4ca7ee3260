import BenchmarkCore
import SwiftUI

/// A conversation with a model, as it streams.
struct ChatView: View {
  @Environment(ChatState.self) private var chat
  @Environment(LibraryState.self) private var library
  @Environment(BenchmarkState.self) private var benchmark
  @Environment(SettingsState.self) private var settings
  @State private var model: LibraryModel?
  @State private var tokenizer: URL?
  @State private var draft = ""

  var body: some View {
    @Bindable var chat = chat
    NavigationStack {
      Group {
        switch chat.stage {
        case .empty: setup
        case .loading: loading
        case .ready, .answering: conversation
        }
      }
      .navigationTitle("Chat")
      .navigationBarTitleDisplayMode(.inline)
      .toolbar {
        if chat.stage == .ready {
          Button("New", systemImage: "square.and.pencil") { chat.clear(system: settings.system) }
          Button("Close", systemImage: "xmark.circle") { Task { await chat.closed() } }
            .accessibilityHint("Gives the model's memory back")
        }
      }
      .onAppear {
        library.refresh()
        if model == nil {
          model = library.models.first
          tokenizer = model?.tokenizer
        }
      }
    }
    .problemAlert($chat.problem)
  }

  private var loading: some View {
    VStack(spacing: 16) {
      ProgressView(value: chat.loaded) { Text("Loading \(chat.modelName)") }
        .padding(.horizontal)
      Button("Stop", systemImage: "stop.circle", role: .cancel) { chat.stop() }
    }
  }

  private var setup: some View {
    Form {
      ModelPicker(model: $model, tokenizer: $tokenizer)
      Button("Load", systemImage: "arrow.down.circle") {
        guard let model, let tokenizer else { return }
        Task {
          await chat.open(model, tokenizer: tokenizer, settings: settings.engine, system: settings.system)
        }
      }
      .disabled(model == nil || tokenizer == nil || benchmark.running)
      if benchmark.running {
        Text("A benchmark is under way.").font(.footnote).foregroundStyle(.secondary)
      }
      NavigationLink("Settings") { SettingsView() }
    }
  }

  private var conversation: some View {
    ScrollViewReader { proxy in
      ScrollView {
        LazyVStack(alignment: .leading, spacing: 12) {
          Text(chat.loadNote).font(.caption).foregroundStyle(.secondary).monospacedDigit()
          ForEach(chat.bubbles) { BubbleView(bubble: $0).id($0.id) }
        }
        .padding()
      }
      .onChange(of: chat.bubbles.last?.text) {
        if let last = chat.bubbles.last { proxy.scrollTo(last.id, anchor: .bottom) }
      }
      .safeAreaInset(edge: .bottom) { composer }
    }
  }

  private var composer: some View {
    HStack(alignment: .bottom) {
      TextField("Message", text: $draft, axis: .vertical)
        .lineLimit(1...6)
        .textFieldStyle(.roundedBorder)
        .onSubmit { send() }
      if chat.stage == .answering {
        Button("Stop", systemImage: "stop.circle.fill") { chat.stop() }
      } else {
        Button("Send", systemImage: "arrow.up.circle.fill") { send() }
          .disabled(draft.trimmingCharacters(in: .whitespacesAndNewlines).isEmpty)
      }
    }
    .labelStyle(.iconOnly)
    .font(.title2)
    .padding()
    .background(.bar)
  }

  private func send() {
    let text = draft.trimmingCharacters(in: .whitespacesAndNewlines)
    guard !text.isEmpty, chat.stage == .ready else { return }
    draft = ""
    chat.send(text)
  }
}

private struct BubbleView: View {
  let bubble: ChatState.Bubble

  private var fromUser: Bool { bubble.role == .user }

  var body: some View {
    VStack(alignment: fromUser ? .trailing : .leading, spacing: 4) {
      Text(bubble.text.isEmpty ? "…" : bubble.text)
        .textSelection(.enabled)
        .padding(10)
        .background(
          fromUser ? Color.accentColor.opacity(0.2) : Color(.secondarySystemBackground),
          in: RoundedRectangle(cornerRadius: 14))
      if !bubble.note.isEmpty {
        Text(bubble.note).font(.caption).foregroundStyle(.secondary).monospacedDigit()
      }
    }
    .frame(maxWidth: .infinity, alignment: fromUser ? .trailing : .leading)
    .accessibilityElement(children: .combine)
    .accessibilityLabel("\(fromUser ? "You" : "Model"): \(bubble.text). \(bubble.note)")
  }
}

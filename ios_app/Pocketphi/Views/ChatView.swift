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
  @Environment(AttachmentsState.self) private var attachments
  @Environment(\.scenePhase) private var scenePhase
  @State private var draft = ""

  var body: some View {
    @Bindable var chat = chat
    @Bindable var attachments = attachments
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
    .problemAlert($attachments.problem)
    .onChange(of: scenePhase) {
      if scenePhase == .background { attachments.stopRecording() }
    }
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
    VStack(alignment: .leading) {
      if let encoding = chat.encoding {
        Text(encoding).font(.caption).foregroundStyle(.secondary).monospacedDigit()
      } else if attachments.reading > 0 {
        ProgressView("Reading the picture").font(.caption)
      }
      if let clip = attachments.clip { RecordingRow(clip: clip) { attachments.stopRecording() } }
      if !attachments.pending.isEmpty {
        AttachmentRow(media: attachments.pending) { attachments.remove($0) }
      }
      question
    }
    .padding()
    .background(.bar)
  }

  private var question: some View {
    HStack(alignment: .bottom) {
      if chat.takes != .text {
        AttachMenu(takes: chat.takes, side: settings.pictureSide, attachments: attachments)
      }
      TextField("Message", text: $draft, axis: .vertical)
        .lineLimit(1...6)
        .textFieldStyle(.roundedBorder)
        .onSubmit { send() }
      if chat.stage == .answering {
        Button("Stop", systemImage: "stop.circle.fill") { chat.stop() }
      } else {
        Button("Send", systemImage: "arrow.up.circle.fill") { send() }
          .disabled(!canSend)
      }
    }
    .labelStyle(.iconOnly)
    .font(.title2)
  }

  private var text: String { draft.trimmingCharacters(in: .whitespacesAndNewlines) }
  private var canSend: Bool { !attachments.busy && !(text.isEmpty && attachments.pending.isEmpty) }

  private func send() {
    guard canSend, chat.stage == .ready else { return }
    let (asked, media) = (text, attachments.take())
    draft = ""
    chat.send(asked, media: media) {
      // It was not asked: the person has it back.
      if draft.isEmpty { draft = asked }
      attachments.putBack(media)
    }
  }
}

private struct BubbleView: View {
  let bubble: ChatState.Bubble

  private var fromUser: Bool { bubble.role == .user }

  var body: some View {
    VStack(alignment: fromUser ? .trailing : .leading, spacing: 4) {
      if !bubble.media.isEmpty { AttachmentRow(media: bubble.media) }
      if !fromUser || !bubble.text.isEmpty {
        Text(bubble.text.isEmpty ? "…" : bubble.text)
          .textSelection(.enabled)
          .padding(10)
          .background(
            fromUser ? Color.accentColor.opacity(0.2) : Color(.secondarySystemBackground),
            in: RoundedRectangle(cornerRadius: 14))
      }
      if !bubble.note.isEmpty {
        Text(bubble.note).font(.caption).foregroundStyle(.secondary).monospacedDigit()
      }
    }
    .frame(maxWidth: .infinity, alignment: fromUser ? .trailing : .leading)
    .accessibilityElement(children: .combine)
    .accessibilityLabel("\(fromUser ? "You" : "Model"): \(bubble.text). \(bubble.note)")
  }
}

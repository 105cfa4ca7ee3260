import BenchmarkCore
import SwiftUI
import UniformTypeIdentifiers

/// The models on this device: import, facts, delete.
struct ModelsView: View {
  @Environment(LibraryState.self) private var library
  @State private var importing = false

  private static let types: [UTType] = [.item]

  var body: some View {
    @Bindable var library = library
    NavigationStack {
      List {
        ForEach(library.models) { model in
          NavigationLink {
            ModelDetail(model: model)
          } label: {
            ModelRow(model: model)
          }
          .swipeActions {
            Button("Delete", role: .destructive) { library.delete(model) }
          }
        }
        if library.copying {
          HStack {
            ProgressView()
            Text("Copying…").foregroundStyle(.secondary)
          }
        }
      }
      .overlay {
        if library.models.isEmpty, !library.copying {
          ContentUnavailableView(
            "No models yet", systemImage: "shippingbox",
            description: Text(
              "Import a .pte together with its tokenizer and its manifest, or copy them in with Files."))
        }
      }
      .navigationTitle("Models")
      .toolbar {
        Button("Import", systemImage: "plus") { importing = true }
          .disabled(library.copying)
          .accessibilityHint("Choose a model, its tokenizer and its manifest from Files")
      }
      .onAppear { library.refresh() }
    }
    .fileImporter(isPresented: $importing, allowedContentTypes: Self.types, allowsMultipleSelection: true) { chosen in
      switch chosen {
      case .success(let files): library.add(files)
      case .failure(let error): library.problem = error.localizedDescription
      }
    }
    .problemAlert($library.problem)
  }
}

private struct ModelRow: View {
  let model: LibraryModel

  var body: some View {
    VStack(alignment: .leading, spacing: 4) {
      Text(model.name).font(.headline)
      Text(facts).font(.subheadline).foregroundStyle(.secondary)
      if model.tokenizer == nil {
        Label("No tokenizer of its own", systemImage: "exclamationmark.triangle")
          .font(.footnote)
          .foregroundStyle(.orange)
      }
    }
    .accessibilityElement(children: .combine)
  }

  private var facts: String {
    [Format.bytes(model.sizeBytes), model.manifest?.checkpoint, model.manifest?.recipe]
      .compactMap { $0 }
      .joined(separator: " · ")
  }
}

/// What the manifest says, and what a run will need.
private struct ModelDetail: View {
  let model: LibraryModel

  var body: some View {
    List {
      Section("File") {
        LabeledContent("Size", value: Format.bytes(model.sizeBytes))
        LabeledContent("Tokenizer", value: model.tokenizer?.lastPathComponent ?? "none found")
      }
      if let manifest = model.manifest {
        Section("Manifest") {
          fact("Checkpoint", manifest.checkpoint)
          fact("Weights", manifest.recipe)
          fact("Context", manifest.contextTokens.map { "\($0) tokens" })
          fact("Prefill chunk", manifest.prefillChunkTokens.map { "\($0) tokens" })
          fact("KV cache", manifest.kvCacheBytes.map { "\(Format.bytes($0)), \(manifest.kvCache ?? "unknown")" })
          fact("Activations", manifest.activationBytes.map(Format.bytes))
          fact("Exported for ExecuTorch", manifest.executorch)
        }
      } else {
        Section("Manifest") { Text("None beside the file.").foregroundStyle(.secondary) }
      }
      Section("Memory") {
        LabeledContent("A full context needs about", value: needed(keepsPacked: true))
        LabeledContent("Without room for packed weights", value: needed(keepsPacked: false))
        LabeledContent("This app may use", value: TaskMemory.available().map(Format.bytes) ?? "unknown")
      }
    }
    .navigationTitle(model.name)
    .navigationBarTitleDisplayMode(.inline)
  }

  private func needed(keepsPacked: Bool) -> String {
    Format.bytes(
      ModelFiles.neededBytes(sizeBytes: model.sizeBytes, manifest: model.manifest, keepsPacked: keepsPacked))
  }

  @ViewBuilder
  private func fact(_ name: String, _ value: String?) -> some View {
    if let value { LabeledContent(name, value: value) }
  }
}

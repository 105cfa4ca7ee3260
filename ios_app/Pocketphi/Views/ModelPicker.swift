import BenchmarkCore
import SwiftUI

/// Chooses a model and, where it has none of its own, a tokenizer.
struct ModelPicker: View {
  @Environment(LibraryState.self) private var library
  @Binding var model: LibraryModel?
  @Binding var tokenizer: URL?

  var body: some View {
    Picker("Model", selection: modelName) {
      Text("None").tag(String?.none)
      ForEach(library.models) { Text($0.name).tag(Optional($0.id)) }
    }
    if model != nil {
      Picker("Tokenizer", selection: $tokenizer) {
        Text("None").tag(URL?.none)
        ForEach(library.tokenizers, id: \.self) { Text($0.lastPathComponent).tag(Optional($0)) }
      }
    }
  }

  private var modelName: Binding<String?> {
    Binding(
      get: { model?.id },
      set: { id in
        model = library.models.first { $0.id == id }
        tokenizer = model?.tokenizer
      })
  }
}

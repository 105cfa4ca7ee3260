import BenchmarkCore
import SwiftUI

/// Chooses a model and, where it has none of its own, a tokenizer.
struct ModelPicker: View {
  @Environment(LibraryState.self) private var library
  @Binding var model: LibraryModel?
  @Binding var tokenizer: URL?

  var body: some View {
    Picker("Model", selection: $model) {
      Text("None").tag(LibraryModel?.none)
      ForEach(library.models) { Text($0.name).tag(Optional($0)) }
    }
    .onChange(of: model) { tokenizer = model?.tokenizer }
    if model != nil {
      Picker("Tokenizer", selection: $tokenizer) {
        Text("None").tag(URL?.none)
        ForEach(library.tokenizers, id: \.self) { Text($0.lastPathComponent).tag(Optional($0)) }
      }
    }
  }
}

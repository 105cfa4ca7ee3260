import BenchmarkCore
import Foundation
import Observation

/// The models in Documents, and what went wrong with them last.
@MainActor
@Observable
final class LibraryState {
  private(set) var models: [LibraryModel] = []
  private(set) var tokenizers: [URL] = []
  private(set) var copying = false
  var problem: String?

  private let library: ModelLibrary

  init(library: ModelLibrary = .documents) {
    self.library = library
  }

  func refresh() {
    models = library.models()
    tokenizers = library.tokenizers()
  }

  /// Copies files of the user's choice, which may be gigabytes, away from the main thread.
  func add(_ files: [URL]) {
    copying = true
    let library = library
    Task {
      let message = await Task.detached(priority: .userInitiated) { () -> String? in
        let opened = files.filter { $0.startAccessing() }
        defer { for file in opened { file.stopAccessing() } }
        do {
          try library.add(files)
          return nil
        } catch {
          return error.localizedDescription
        }
      }.value
      problem = message
      copying = false
      refresh()
    }
  }

  func delete(_ model: LibraryModel) {
    do {
      try library.delete(model)
    } catch {
      problem = error.localizedDescription
    }
    refresh()
  }
}

extension URL {
  // Files outside the app's own folders are lent to it.
  fileprivate func startAccessing() -> Bool {
    #if canImport(Darwin)
      return startAccessingSecurityScopedResource()
    #else
      return true
    #endif
  }

  fileprivate func stopAccessing() {
    #if canImport(Darwin)
      stopAccessingSecurityScopedResource()
    #endif
  }
}

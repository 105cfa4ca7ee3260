import Foundation

/// A model that lies in the library, and the tokenizer that goes with it.
public struct LibraryModel: Hashable, Identifiable, Sendable {
  public let file: URL
  public let sizeBytes: Int64
  public let manifest: Manifest?
  public let tokenizer: URL?

  public var id: String { file.path(percentEncoded: false) }
  public var name: String { file.lastPathComponent }
}

/// Models, tokenizers and manifests as files of one folder, the app's Documents, and of its folder "models", where
/// programs put them.
public struct ModelLibrary: Sendable {
  public let folder: URL

  public static let sent = "models"

  private static let tokenizerEndings = ["tokenizer.json", "tokenizer.model", "tokenizer.bin", ".tiktoken"]

  public init(folder: URL) {
    self.folder = folder
  }

  /// Sorted by name.
  public func models() -> [LibraryModel] {
    files().filter { $0.pathExtension == "pte" }.map { file in
      LibraryModel(
        file: file, sizeBytes: FileFacts.size(of: file) ?? 0, manifest: Manifest.beside(file),
        tokenizer: tokenizer(for: file))
    }
  }

  public func tokenizers() -> [URL] {
    files().filter { Self.isTokenizer($0.lastPathComponent) }
  }

  /// The exporter keeps the tokenizer's name; upstream's tools use the others.
  static func isTokenizer(_ name: String) -> Bool {
    tokenizerEndings.contains { name.hasSuffix($0) }
  }

  /// The one beside the model that is named after it, else the only one beside it, else the only one at all; nil
  /// where a person must choose.
  func tokenizer(for model: URL) -> URL? {
    let all = tokenizers()
    let beside = all.filter { $0.deletingLastPathComponent().path == model.deletingLastPathComponent().path }
    let stem = model.deletingPathExtension().lastPathComponent
    if let named = beside.first(where: { $0.lastPathComponent.hasPrefix(stem) }) { return named }
    return [beside, all].first { $0.count == 1 }?.first
  }

  /// Copies files of the user's choice in, whole or not at all, over older ones of the same name. Manifests and
  /// tokenizers may come along; throws `BadInput` for anything else and where the copy fails.
  public func add(_ sources: [URL]) throws {
    for source in sources {
      let name = source.lastPathComponent
      guard ["pte", "json", "model", "bin", "tiktoken"].contains(source.pathExtension) else {
        throw BadInput(
          "\(name) is neither a model (.pte), a tokenizer (.json, .model, .bin, .tiktoken) nor a manifest.")
      }
      if source.pathExtension == "pte" { _ = try PteHeader(file: source) }
      let target = folder.appending(path: name)
      let aside = folder.appending(path: ".\(name).partial")
      do {
        try? FileManager.default.removeItem(at: aside)
        try FileManager.default.copyItem(at: source, to: aside)
        guard rename(aside.path(percentEncoded: false), target.path(percentEncoded: false)) == 0 else {
          throw BadInput(String(cString: strerror(errno)))
        }
      } catch {
        try? FileManager.default.removeItem(at: aside)
        throw BadInput("\(name) could not be copied: \(error.localizedDescription)")
      }
    }
  }

  /// Deletes the model and its manifest; the tokenizer stays, other models may use it.
  public func delete(_ model: LibraryModel) throws {
    do {
      try FileManager.default.removeItem(at: model.file)
    } catch {
      throw BadInput("\(model.name) could not be deleted: \(error.localizedDescription)")
    }
    let manifest = model.file.deletingPathExtension().appendingPathExtension("json")
    if model.manifest != nil { try? FileManager.default.removeItem(at: manifest) }
  }

  private func files() -> [URL] {
    [folder, folder.appending(path: Self.sent)].flatMap { place in
      let names = (try? FileManager.default.contentsOfDirectory(atPath: place.path(percentEncoded: false))) ?? []
      return names.sorted().map { place.appending(path: $0) }.filter { FileFacts.size(of: $0) != nil }
    }
  }
}

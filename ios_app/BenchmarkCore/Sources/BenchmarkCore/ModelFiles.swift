import Foundation

/// A model, its tokenizer and its manifest, checked as far as that goes without loading them.
public struct ModelFiles: Equatable, Sendable {
  public let model: URL
  public let tokenizer: URL
  public let sizeBytes: Int64
  public let manifest: Manifest?
  /// Sentences on what is unusual but no reason to refuse.
  public let notes: [String]

  /// What a run with a full context needs of the app's own memory, in bytes: the planned KV cache and activations, and
  /// XNNPACK's copy of the weights where that is not kept in a file: about all of the `.pte` but the embedding.
  public static func neededBytes(sizeBytes: Int64, manifest: Manifest?, keepsPacked: Bool) -> Int64 {
    (keepsPacked ? 0 : packedBytes(sizeBytes, manifest)) + (manifest?.plannedBytes ?? 0)
  }

  private static func packedBytes(_ sizeBytes: Int64, _ manifest: Manifest?) -> Int64 {
    max(0, sizeBytes - (manifest?.embeddingBytes ?? 0))
  }

  /// Throws `BadInput` where the model is no whole `.pte` of a format that `executorch`, the runtime's release, reads,
  /// where the tokenizer is missing or foreign, or where a run needs more than `availableBytes`, with weights that are packed
  /// into `packed` where they have room there.
  public init(
    model: URL, tokenizer: URL, availableBytes: Int64?, executorch: String, packed: PackedWeights? = nil
  ) throws {
    let name = model.lastPathComponent
    _ = try PteHeader(file: model)
    self.model = model
    self.tokenizer = tokenizer
    sizeBytes = FileFacts.size(of: model) ?? 0
    manifest = Manifest.beside(model)
    if let expected = manifest?.fileBytes, expected != sizeBytes {
      throw BadInput(
        "\(name) has \(sizeBytes) bytes, its manifest says \(expected): one of them is of another export.")
    }
    notes = try Self.compare(fileVersion: manifest?.executorch, runtime: executorch, name: name)
    let recognised = try TokenizerFile(file: tokenizer)
    if let size = manifest?.vocabularySize {
      try recognised.check(modelSize: size, tokenizer: tokenizer.lastPathComponent, model: name)
    }
    let keepsPacked = packed?.holds(sizeBytes) ?? false
    let needed = Self.neededBytes(sizeBytes: sizeBytes, manifest: manifest, keepsPacked: keepsPacked)
    if let availableBytes, needed > availableBytes {
      let weights = keepsPacked ? 0 : Self.packedBytes(sizeBytes, manifest)
      throw BadInput(
        "\(name) needs \(Format.bytes(needed)) of memory (weights \(Format.bytes(weights)), planned "
          + "\(Format.bytes(manifest?.plannedBytes ?? 0))), this app may use \(Format.bytes(availableBytes)) more.")
    }
  }

  /// A runtime reads files of its own and of older releases, not of newer ones.
  private static func compare(fileVersion: String?, runtime: String, name: String) throws -> [String] {
    guard let fileVersion, let file = release(fileVersion), let app = release(runtime), file != app else { return [] }
    guard file.lexicographicallyPrecedes(app) else {
      throw BadInput("\(name) was exported for ExecuTorch \(fileVersion), this app holds the older \(runtime).")
    }
    return ["\(name) was exported for ExecuTorch \(fileVersion), this app holds \(runtime)."]
  }

  // Major and minor; patches do not change the format.
  private static func release(_ version: String) -> [Int]? {
    let numbers = version.split(separator: ".").prefix(2).compactMap { Int($0) }
    return numbers.count == 2 ? numbers : nil
  }

  func record(sha256: String?) -> ModelRecord {
    ModelRecord(
      file: model.lastPathComponent, sizeBytes: sizeBytes, sha256: sha256, tokenizer: tokenizer.lastPathComponent,
      manifest: manifest?.record)
  }
}

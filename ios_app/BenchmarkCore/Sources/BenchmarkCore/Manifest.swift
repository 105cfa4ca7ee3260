import Foundation

/// What the exporter wrote beside a `.pte`, as far as a phone needs it. Bytes and tokens; nil where it lacks.
public struct Manifest: Hashable, Sendable {
  public let fileBytes: Int64?
  public let checkpoint: String?
  /// For people.
  public let recipe: String?
  /// Of an int8 or int4 embedding; nil where it is not quantized or nothing is known of it.
  let embeddingBits: Int64?
  public let contextTokens: Int?
  public let prefillChunkTokens: Int?
  public let kvCache: String?
  public let kvCacheBytes: Int64?
  public let activationBytes: Int64?
  public let vocabularySize: Int?
  public let hiddenSize: Int?
  public let executorch: String?
  /// What the file takes.
  public let modes: [Mode]

  /// KV cache and activations.
  public var plannedBytes: Int64? {
    guard let kvCacheBytes, let activationBytes else { return nil }
    return kvCacheBytes + activationBytes
  }

  /// Of the embedding's table, which stays in the file: its pages are not the process's own. Nil where not known.
  var embeddingBytes: Int64? {
    guard let vocabularySize, let hiddenSize, let embeddingBits else { return nil }
    return Int64(vocabularySize) * Int64(hiddenSize) * embeddingBits / 8
  }

  public var record: ManifestRecord {
    ManifestRecord(
      checkpoint: checkpoint, recipe: recipe, contextTokens: contextTokens, prefillChunkTokens: prefillChunkTokens,
      kvCache: kvCache, plannedMemoryBytes: plannedBytes)
  }

  private struct Document: Decodable {
    struct File: Decodable { let bytes: Int64? }
    struct Checkpoint: Decodable { let name: String? }
    struct Options: Decodable {
      let context: Int?
      let prefillChunk: Int?
      let kvCache: String?
      let recipe: Recipe?
    }
    struct Recipe: Decodable {
      struct Numbers: Decodable {
        let quantized: Bool
        let embeddingBits: Int64?
      }

      /// In older manifests, which have no numbers.
      let text: String?
      let numbers: Numbers?

      init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        text = try? container.decode(String.self)
        numbers = text == nil ? try container.decode(Numbers.self) : nil
      }
    }
    struct Planned: Decodable {
      let kvCacheBytes: Int64?
      let activationBytes: Int64?
    }
    struct Config: Decodable {
      let vocabSize: Int?
      let hiddenSize: Int?
    }
    struct Packages: Decodable { let executorch: String? }
    /// Settings of what the file takes beside text.
    struct Media: Decodable {
      struct Settings: Decodable {}
      let image: Settings?
      let audio: Settings?
    }

    let file: File?
    let checkpoint: Checkpoint?
    let recipe: String?
    let options: Options
    let planned: Planned?
    let config: Config?
    let packages: Packages?
    let media: Media?
  }

  /// Throws `BadInput` where `json` is not a manifest.
  public init(json: Data, name: String) throws {
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    guard let document = try? decoder.decode(Document.self, from: json) else {
      throw BadInput("\(name) is not the manifest of a .pte.")
    }
    fileBytes = document.file?.bytes
    checkpoint = document.checkpoint?.name
    recipe = document.recipe ?? document.options.recipe?.text
    embeddingBits = document.options.recipe?.numbers.flatMap { $0.quantized ? $0.embeddingBits : nil }
    contextTokens = document.options.context.flatMap { $0 > 0 ? $0 : nil }
    prefillChunkTokens = document.options.prefillChunk.flatMap { $0 > 0 ? $0 : nil }
    kvCache = document.options.kvCache
    kvCacheBytes = document.planned?.kvCacheBytes
    activationBytes = document.planned?.activationBytes
    vocabularySize = document.config?.vocabSize
    hiddenSize = document.config?.hiddenSize
    executorch = document.packages?.executorch
    let others = [document.media?.image.map { _ in Mode.vision }, document.media?.audio.map { _ in Mode.speech }]
    modes = [.text] + others.compactMap { $0 }
  }

  /// The manifest beside `model`, under its name with .json for .pte; nil without one or where it is something else.
  public static func beside(_ model: URL) -> Manifest? {
    let file = model.deletingPathExtension().appendingPathExtension("json")
    guard let json = try? Data(contentsOf: file) else { return nil }
    return try? Manifest(json: json, name: file.lastPathComponent)
  }
}

import Foundation

/// A tokenizer file that the runner can read, told by its content as the runner tells it.
public struct TokenizerFile: Equatable, Sendable {
  public enum Kind: String, Sendable {
    case huggingFace = "Hugging Face"
    case tiktoken
    case sentencePiece = "SentencePiece"
  }

  public let kind: Kind
  /// Highest id + 1.
  public let vocabularySize: Int

  /// Throws `BadInput` where `file` is missing or of no kind that the runner reads.
  public init(file: URL) throws {
    let name = file.lastPathComponent
    guard let size = FileFacts.size(of: file) else { throw BadInput("The tokenizer \(name) is not on this device.") }
    guard size > 0 else { throw BadInput("The tokenizer \(name) is empty.") }
    guard let data = try? Data(contentsOf: file, options: .mappedIfSafe) else {
      throw BadInput("The tokenizer \(name) cannot be read.")
    }
    try self.init(data: data, name: name)
  }

  init(data: Data, name: String) throws {
    let foreign = BadInput(
      "\(name) is no tokenizer that the runner reads: it is not a Hugging Face tokenizer.json, a tiktoken file or a "
        + "SentencePiece model.")
    let first = data.first { !Set(" \t\r\n".utf8).contains($0) }
    let found: (Kind, Int?) =
      switch first {
      case UInt8(ascii: "{"): (.huggingFace, try Self.huggingFace(data, name: name))
      case 0x0a: (.sentencePiece, Self.sentencePiece(data))
      default: Self.tiktoken(data).map { (.tiktoken, $0) } ?? (.sentencePiece, Self.sentencePiece(data))
      }
    guard let size = found.1, size > 0 else { throw foreign }
    kind = found.0
    vocabularySize = size
  }

  /// Throws `BadInput` where the model, whose manifest says `modelSize` tokens, cannot be this tokenizer's.
  func check(modelSize: Int, tokenizer: String, model: String) throws {
    guard modelSize / 2 <= vocabularySize, vocabularySize <= modelSize else {
      throw BadInput(
        "\(tokenizer) belongs to another model: it has \(vocabularySize) tokens, \(model) has \(modelSize).")
    }
  }

  private static func huggingFace(_ data: Data, name: String) throws -> Int? {
    guard let json = try? JSONSerialization.jsonObject(with: data) as? [String: Any] else {
      throw BadInput("\(name) begins like JSON but is damaged or cut short. Copy it again.")
    }
    guard let model = json["model"] as? [String: Any] else { return nil }
    var highest = -1
    if let vocabulary = model["vocab"] as? [String: Any] {
      highest = vocabulary.values.compactMap { ($0 as? NSNumber)?.intValue }.max() ?? -1
    } else if let pieces = model["vocab"] as? [Any] {
      highest = pieces.count - 1
    }
    let added = (json["added_tokens"] as? [[String: Any]] ?? []).compactMap { ($0["id"] as? NSNumber)?.intValue }
    return max(highest, added.max() ?? -1) + 1
  }

  // Lines of base64, a space and a rank.
  private static func tiktoken(_ data: Data) -> Int? {
    var highest = -1
    for line in data.split(separator: UInt8(ascii: "\n")) {
      let parts = line.split(separator: UInt8(ascii: " "))
      guard parts.count == 2, Data(base64Encoded: Data(parts[0])) != nil else { return nil }
      guard let rank = Int(String(decoding: parts[1].filter { $0 != UInt8(ascii: "\r") }, as: UTF8.self)), rank >= 0
      else { return nil }
      highest = max(highest, rank)
    }
    return highest < 0 ? nil : highest + 1
  }

  // sentencepiece_model.proto: a ModelProto, whose field 1 repeats once for each piece.
  private static func sentencePiece(_ data: Data) -> Int? {
    var fields = ProtobufFields(data)
    var pieces = 0
    while let field = fields.next() {
      if field.number == 1, field.isBytes { pieces += 1 }
    }
    return fields.atEnd ? pieces : nil
  }
}

/// The top-level fields of a protobuf message, without their values.
struct ProtobufFields {
  private let data: Data
  private var offset: Data.Index
  private var broken = false

  init(_ data: Data) {
    self.data = data
    offset = data.startIndex
  }

  /// Whether the whole message was read and well formed.
  var atEnd: Bool { !broken && offset == data.endIndex }

  /// Nil at the end or where the bytes are no message.
  mutating func next() -> (number: UInt64, isBytes: Bool)? {
    guard !broken, offset < data.endIndex else { return nil }
    guard let tag = varint(), tag >> 3 > 0, skip(wire: tag & 7) else {
      broken = true
      return nil
    }
    return (tag >> 3, tag & 7 == 2)
  }

  private mutating func skip(wire: UInt64) -> Bool {
    switch wire {
    case 0: return varint() != nil
    case 1: return advance(8)
    case 2: return varint().map { advance($0) } ?? false
    case 5: return advance(4)
    default: return false
    }
  }

  private mutating func advance(_ count: UInt64) -> Bool {
    guard count <= UInt64(data.endIndex - offset) else { return false }
    offset += Int(count)
    return true
  }

  private mutating func varint() -> UInt64? {
    var value: UInt64 = 0
    for shift in stride(from: UInt64(0), to: 64, by: 7) {
      guard offset < data.endIndex else { return nil }
      let byte = data[offset]
      offset += 1
      value |= UInt64(byte & 0x7f) << shift
      if byte & 0x80 == 0 { return value }
    }
    return nil
  }
}

import Foundation
import Testing

@testable import BenchmarkCore

/// A folder of its own, gone when the test ends.
final class Folder {
  let url: URL

  init() throws {
    url = FileManager.default.temporaryDirectory.appending(path: UUID().uuidString)
    try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
  }

  deinit { try? FileManager.default.removeItem(at: url) }

  @discardableResult
  func put(_ name: String, _ data: Data) throws -> URL {
    let file = url.appending(path: name)
    try data.write(to: file)
    return file
  }

  var names: [String] { ((try? FileManager.default.contentsOfDirectory(atPath: url.path)) ?? []).sorted() }
}

enum Repository {
  /// A file of export/bench/contract.
  static func contract(_ name: String) throws -> Data {
    var folder = URL(filePath: #filePath)
    for _ in 0..<5 { folder.deleteLastPathComponent() }
    return try Data(contentsOf: folder.appending(path: "export/bench/contract/\(name)"))
  }
}

/// The message of the `BadInput` that `body` must throw.
func badInput(_ body: () throws -> Void) -> String {
  do {
    try body()
    return "nothing was thrown"
  } catch let wrong as BadInput {
    return wrong.message
  } catch {
    return "another error: \(error)"
  }
}

/// Files of the shape that the exporter and upstream's tools write.
enum Made {
  /// A `.pte`'s head and so many bytes after it.
  static func pte(identifier: String = "ET12", saysBytes: UInt64? = nil, bytes: Int = 1000) -> Data {
    func little(_ value: UInt64, _ count: Int) -> Data { Data((0..<count).map { UInt8(value >> (8 * $0) & 0xff) }) }
    let head =
      Data([4, 0, 0, 0]) + Data(identifier.utf8) + Data("eh00".utf8) + little(32, 4) + little(64, 8) + little(64, 8)
      + little((saysBytes ?? UInt64(bytes)) - 64, 8)
    return head + Data(count: bytes - head.count)
  }

  static func tokenizer(tokens: Int) -> Data {
    let vocabulary = (0..<tokens - 1).map { "\"t\($0)\":\($0)" }.joined(separator: ",")
    return Data(
      "{\"added_tokens\":[{\"id\":\(tokens - 1),\"content\":\"<|end|>\"}],\"model\":{\"vocab\":{\(vocabulary)}}}".utf8
    )
  }

  static func tiktoken(tokens: Int) -> Data {
    Data((0..<tokens).map { "\(Data("t\($0)".utf8).base64EncodedString()) \($0)\n" }.joined().utf8)
  }

  static func sentencePiece(tokens: Int) -> Data {
    var data = Data()
    for index in 0..<tokens {
      let piece = Data("t\(index % 10)".utf8)
      let inner = Data([0x0a, UInt8(piece.count)]) + piece + Data([0x15, 0, 0, 0, 0])
      data += Data([0x0a, UInt8(inner.count)]) + inner
    }
    // trainer_spec, a message of more than 127 bytes
    return data + Data([0x12, 0x90, 0x01]) + Data(count: 144)
  }

  static func manifest(
    bytes: Int = 1000, vocabulary: Int = 100, planned: Int = 500, executorch: String = "1.5.1",
    embeddingBits: Int? = nil
  ) -> Data {
    let numbers = embeddingBits.map { "{\"quantized\": true, \"embedding_bits\": \($0)}" } ?? "{\"quantized\": false}"
    return Data(
      """
      {"file": {"name": "m.pte", "bytes": \(bytes), "sha256": "00"}, "checkpoint": {"name": "phi4-tiny", "revision": null},
       "config": {"vocab_size": \(vocabulary), "hidden_size": 4}, "packages": {"executorch": "\(executorch)"},
       "recipe": "8da4w g32",
       "options": {"context": 4096, "prefill_chunk": 256, "kv_cache": "bf16", "recipe": \(numbers), "bos_id": 1},
       "planned": {"kv_cache_bytes": \(planned - 100), "activation_bytes": 100}}
      """.utf8)
  }
}

import BenchmarkCore
import CPocketphi
import Foundation

/// pocketphi_tokenizer.h: texts to ids and back. For one thread at a time.
final class Tokenizer {
  private let handle: OpaquePointer

  /// Throws `EngineFailure` for a file that is no tokenizer.
  init(file: URL) throws {
    var error = pocketphi_error()
    let path = file.path(percentEncoded: false)
    guard let handle = pocketphi_tokenizer_load(path, &error) else {
      throw EngineFailure(error.sentence.replacing(path, with: file.lastPathComponent) + ".")
    }
    self.handle = handle
  }

  deinit { pocketphi_tokenizer_free(handle) }

  /// Ids of `text`, in which special tokens are recognised.
  func encode(_ text: String) throws -> [Int64] {
    var text = text
    return try text.withUTF8 { bytes in
      // A token is a byte at least, but for what a tokenizer puts in front.
      var ids = [Int64](repeating: 0, count: bytes.count + 8)
      var count = 0
      var error = pocketphi_error()
      let status = bytes.withMemoryRebound(to: CChar.self) {
        pocketphi_tokenizer_encode(handle, $0.baseAddress, $0.count, 0, &ids, ids.count, &count, &error)
      }
      guard status == POCKETPHI_OK, count <= ids.count else { throw EngineFailure(error.sentence + ".") }
      return Array(ids.prefix(count))
    }
  }

  /// As pocketphi_generation's `decode` wants it.
  func decode(
    _ ids: UnsafePointer<Int64>?, _ count: Int, _ out: UnsafeMutablePointer<CChar>?, _ capacity: Int
  ) -> Int {
    pocketphi_tokenizer_decode(handle, ids, count, out, capacity)
  }
}

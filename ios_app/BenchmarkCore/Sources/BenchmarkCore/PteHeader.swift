import Foundation

/// The first bytes of a `.pte`: a flatbuffer with the identifier ET12 and, after it, ExecuTorch's extended header.
struct PteHeader: Equatable {
  /// The format that this app's runtime reads (schema/program.fbs).
  static let identifier = "ET12"
  private static let extendedMagic = Data("eh00".utf8)
  private static let extendedLength = 32
  private static let bytes = 64

  /// How long the file must be to be whole; nil without an extended header.
  let wholeBytes: UInt64?

  /// Throws `BadInput` for a file that is not a `.pte`, of another format, or cut short.
  init(file: URL) throws {
    let name = file.lastPathComponent
    guard let size = FileFacts.size(of: file) else { throw BadInput("The model \(name) is not on this device.") }
    guard size > 0 else { throw BadInput("The model \(name) is empty.") }
    let head: Data
    do {
      let handle = try FileHandle(forReadingFrom: file)
      defer { try? handle.close() }
      head = try handle.read(upToCount: Self.bytes) ?? Data()
    } catch {
      throw BadInput("The model \(name) cannot be read: \(error.localizedDescription)")
    }
    try self.init(head: head, name: name)
    if let wholeBytes, wholeBytes > UInt64(size) {
      throw BadInput(
        "\(name) is cut short: its header says \(wholeBytes) bytes, the file has \(size). Copy it again.")
    }
  }

  init(head: Data, name: String) throws {
    let head = Data(head)
    guard head.count >= 8 else {
      throw BadInput("\(name) is not an ExecuTorch program: it has only \(head.count) bytes.")
    }
    let found = String(decoding: head[4..<8], as: UTF8.self)
    guard head[4..<8] == Data(Self.identifier.utf8) else {
      if found.hasPrefix("ET"), found.dropFirst(2).allSatisfy(\.isNumber) {
        throw BadInput(
          "\(name) is an ExecuTorch program of another runtime version: its format is \(found), this app reads "
            + "\(Self.identifier).")
      }
      let shown = head[4..<8].map { $0 >= 0x20 && $0 < 0x7f ? String(UnicodeScalar($0)) : "?" }.joined()
      throw BadInput("\(name) is not an ExecuTorch program: bytes 4 to 8 are \"\(shown)\", not \(Self.identifier).")
    }
    guard head.count >= 8 + Self.extendedLength, head[8..<12] == Self.extendedMagic else {
      wholeBytes = nil
      return
    }
    func number(at offset: Int, bytes: Int) -> UInt64 {
      (0..<bytes).reduce(0) { $0 | UInt64(head[offset + $1]) << (8 * UInt64($1)) }
    }
    let length = number(at: 12, bytes: 4)
    let program = number(at: 16, bytes: 8)
    let segments = number(at: 24, bytes: 8)
    // Headers before 1.0 end here and do not say how long the segments are.
    let segmentBytes = length >= Self.extendedLength ? number(at: 32, bytes: 8) : 0
    let (end, overflow) = segments.addingReportingOverflow(segmentBytes)
    guard !overflow else { throw BadInput("\(name) is damaged: its header names sizes that no file has.") }
    wholeBytes = max(program, end)
  }
}

enum FileFacts {
  /// In bytes; nil where there is no such file.
  static func size(of file: URL) -> Int64? {
    let attributes = try? FileManager.default.attributesOfItem(atPath: file.path(percentEncoded: false))
    guard attributes?[.type] as? FileAttributeType == .typeRegular else { return nil }
    return (attributes?[.size] as? NSNumber)?.int64Value
  }
}

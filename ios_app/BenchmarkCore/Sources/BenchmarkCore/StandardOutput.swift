import Foundation

/// Takes the process's standard output over: ExecuTorch's runner prints there, its text and, in one line, the number
/// of tokens that its Swift API does not tell. Lines of our own go where standard output went before.
public final class StandardOutput: Sendable {
  /// There is one standard output.
  public static let shared = StandardOutput()

  private struct Taken {
    let original: Int32
    let reading: Int32
  }

  private let taken = Locked<Taken?>(nil)

  private init() {}

  /// From here on what is printed waits for `printed`. A second call changes nothing.
  public func take() throws {
    try taken.with { taken in
      guard taken == nil else { return }
      var ends: [Int32] = [0, 0]
      let original = dup(STDOUT_FILENO)
      guard original >= 0, pipe(&ends) == 0 else {
        throw BadInput("Standard output cannot be taken: errno \(errno).")
      }
      // Where nobody reads, what does not fit is lost; a runner that waits would be worse.
      for end in ends { _ = fcntl(end, F_SETFL, O_NONBLOCK) }
      fflush(nil)
      dup2(ends[1], STDOUT_FILENO)
      close(ends[1])
      taken = Taken(original: original, reading: ends[0])
    }
  }

  /// What was printed since the last call; nothing before `take`.
  public func printed() -> String {
    fflush(nil)
    var bytes: [UInt8] = []
    taken.with { taken in
      guard let taken else { return }
      var buffer = [UInt8](repeating: 0, count: 1 << 14)
      while case let count = read(taken.reading, &buffer, buffer.count), count > 0 {
        bytes += buffer[..<count]
      }
    }
    return String(decoding: bytes, as: UTF8.self)
  }

  /// Writes a line to where standard output went before, at once.
  public func line(_ text: String) {
    let bytes = Array((text + "\n").utf8)
    taken.with { taken in
      let target = taken?.original ?? STDOUT_FILENO
      var written = 0
      while written < bytes.count {
        let count = bytes[written...].withUnsafeBytes { write(target, $0.baseAddress, $0.count) }
        guard count > 0 else { return }
        written += count
      }
    }
  }
}

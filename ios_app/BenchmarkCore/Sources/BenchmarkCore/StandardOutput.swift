import Foundation

/// Takes the process's standard output over: what libraries print there is dropped, lines of our own go where it went
/// before.
public final class StandardOutput: Sendable {
  /// There is one standard output.
  public static let shared = StandardOutput()

  private let original = Locked<Int32?>(nil)

  private init() {}

  /// From here on what is printed goes nowhere. A second call changes nothing.
  public func take() throws {
    try original.with { original in
      guard original == nil else { return }
      let kept = dup(STDOUT_FILENO)
      let nowhere = open("/dev/null", O_WRONLY)
      guard kept >= 0, nowhere >= 0 else { throw BadInput("Standard output cannot be taken: errno \(errno).") }
      fflush(nil)
      dup2(nowhere, STDOUT_FILENO)
      close(nowhere)
      original = kept
    }
  }

  /// Writes a line to where standard output went before, at once.
  public func line(_ text: String) {
    let bytes = Array((text + "\n").utf8)
    original.with { original in
      var written = 0
      while written < bytes.count {
        let count = bytes[written...].withUnsafeBytes { write(original ?? STDOUT_FILENO, $0.baseAddress, $0.count) }
        guard count > 0 else { return }
        written += count
      }
    }
  }
}

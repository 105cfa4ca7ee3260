import Foundation

/// A run that a program asked for by launch arguments (docs/ios_protocol.md): its lines go to standard output and,
/// for programs that are not attached to it, into a file beside the result.
public struct ScriptedRun: Sendable {
  public static let resultsFolder = "results"

  public let benchmark: BenchmarkRun

  /// Exit codes of the process.
  public enum Exit {
    public static let done: Int32 = 0
    public static let failed: Int32 = 1
    public static let badArguments: Int32 = 2
  }

  /// Throws `BadInput` for arguments that cannot be used, after an error line that says so.
  public init(
    arguments: [String], documents: URL, around: RunSurroundings, output: @escaping @Sendable (String) -> Void,
    onEvent: @escaping @Sendable (RunEvent) -> Void = { _ in }
  ) throws {
    var name = ""
    do {
      let parsed = try LaunchArguments(arguments)
      name = try parsed.runName()
      let request = try parsed.request(documents: documents)
      // An older run's result under this name would pass for this one's.
      try? FileManager.default.removeItem(at: around.store.file(run: name))
      let file = try ProgressFile(run: name, folder: around.store.folder)
      let lines = ProgressLines(run: name) { "\(Self.resultsFolder)/\($0.lastPathComponent)" }
      benchmark = BenchmarkRun(request, in: around) { event in
        if let line = lines.line(for: event) {
          file.append(line)
          output(line)
        }
        onEvent(event)
      }
    } catch {
      if let line = ProgressLines(run: name).line(for: .failed(message: error.localizedDescription)) { output(line) }
      throw error
    }
  }

  /// Blocks to the end; returns the process's exit code.
  public func run() -> Int32 {
    benchmark.run()?.status == .complete ? Exit.done : Exit.failed
  }
}

/// Progress lines in RUN.progress.jsonl, each there as soon as it was said.
private struct ProgressFile: Sendable {
  private let handle: Locked<FileHandle>

  init(run: String, folder: URL) throws {
    let file = folder.appending(path: "\(run).progress.jsonl")
    do {
      try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
      try Data().write(to: file)
      handle = Locked(try FileHandle(forWritingTo: file))
    } catch {
      throw BadInput("\(file.lastPathComponent) cannot be written: \(error.localizedDescription)")
    }
  }

  /// A full disk loses lines here; the result's own file says so.
  func append(_ line: String) {
    handle.with { try? $0.write(contentsOf: Data((line + "\n").utf8)) }
  }
}

import Foundation

/// A result that lies in a file; `name` is the run's.
public struct SavedResult: Equatable, Identifiable, Sendable {
  public let file: URL
  public let document: ResultDocument

  public var id: String { name }
  public var name: String { file.deletingPathExtension().lastPathComponent }
}

/// Results as files RUN.json of one folder.
public struct ResultStore: Sendable {
  public let folder: URL

  public init(folder: URL) {
    self.folder = folder
  }

  public func file(run: String) -> URL { folder.appending(path: "\(run).json") }

  /// Whole or not at all: written aside, forced to the disk, renamed. Throws `BadInput` where that fails.
  @discardableResult
  public func write(_ document: ResultDocument, run: String) throws -> URL {
    let file = file(run: run)
    let aside = folder.appending(path: "\(run).json.partial")
    do {
      let json = try document.json()
      try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
      try Data().write(to: aside)
      let handle = try FileHandle(forWritingTo: aside)
      defer { try? handle.close() }
      try handle.write(contentsOf: json)
      try handle.synchronize()
      guard rename(aside.path(percentEncoded: false), file.path(percentEncoded: false)) == 0 else {
        throw BadInput(String(cString: strerror(errno)))
      }
    } catch {
      try? FileManager.default.removeItem(at: aside)
      throw BadInput("The result could not be written to \(file.lastPathComponent): \(error.localizedDescription)")
    }
    return file
  }

  /// Newest first. Files that are no results are left out.
  public func list() -> [SavedResult] {
    let files = (try? FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)) ?? []
    return files.filter { $0.pathExtension == "json" }
      .compactMap { try? read($0) }
      .sorted { ($1.document.created, $0.name) < ($0.document.created, $1.name) }
  }

  /// Throws `BadInput` where `file` is no result.
  public func read(_ file: URL) throws -> SavedResult {
    do {
      // list() gives URLs whose spelling of the folder may differ from ours.
      let own = folder.appending(path: file.lastPathComponent)
      return SavedResult(file: own, document: try ResultDocument(json: Data(contentsOf: own)))
    } catch {
      throw BadInput("\(file.lastPathComponent): \(error.localizedDescription)")
    }
  }

  public func delete(_ saved: SavedResult) throws {
    try FileManager.default.removeItem(at: saved.file)
  }
}

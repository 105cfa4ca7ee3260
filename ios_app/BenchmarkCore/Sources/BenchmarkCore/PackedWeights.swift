import Foundation

/// The folder where the engine keeps packed weights between starts; only the engine writes there.
public struct PackedWeights: Equatable, Sendable {
  public let folder: URL

  public init(folder: URL) {
    self.folder = folder
  }

  /// Of all that is kept.
  public var bytes: Int64 { files.compactMap { FileFacts.size(of: $0) }.reduce(0, +) }

  /// Whether the packed weights of a `.pte` of so many bytes have room here, or are likely here already. The engine
  /// looks for itself; this is for deciding beforehand whether a model fits.
  public func holds(_ modelBytes: Int64) -> Bool {
    // Packed weights are a little smaller than their file.
    if files.contains(where: { (FileFacts.size(of: $0) ?? 0) > modelBytes / 2 }) { return true }
    let above = folder.deletingLastPathComponent().path(percentEncoded: false)
    let facts = try? FileManager.default.attributesOfFileSystem(forPath: above)
    return (facts?[.systemFreeSize] as? NSNumber).map { $0.int64Value > modelBytes } ?? false
  }

  /// Makes the folder and keeps it out of backups: what is in it can be made again.
  public func prepare() throws {
    do {
      try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
      #if canImport(Darwin)
        var values = URLResourceValues()
        values.isExcludedFromBackup = true
        var marked = folder
        try marked.setResourceValues(values)
      #endif
    } catch {
      throw BadInput("The folder for packed weights cannot be made: \(error.localizedDescription)")
    }
  }

  /// Deletes all that is kept; the next load of a model packs again. A model that is loaded keeps working.
  public func delete() throws {
    for file in files {
      do {
        try FileManager.default.removeItem(at: file)
      } catch {
        throw BadInput("The packed weights could not be deleted: \(error.localizedDescription)")
      }
    }
  }

  private var files: [URL] {
    let names = (try? FileManager.default.contentsOfDirectory(atPath: folder.path(percentEncoded: false))) ?? []
    return names.map { folder.appending(path: $0) }.filter { FileFacts.size(of: $0) != nil }
  }
}

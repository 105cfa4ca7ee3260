import BenchmarkCore
import Foundation
import PocketphiEngine

extension URL {
  /// The folder that Files, Finder and devicectl see.
  static var documents: URL { FileManager.default.urls(for: .documentDirectory, in: .userDomainMask)[0] }
}

enum Folders {
  /// Programs that copy files in find the folders they copy to.
  static func make() {
    for name in [ModelLibrary.sent, "prompts", ScriptedRun.resultsFolder] {
      // Where that fails, writing there fails too, and says why.
      try? FileManager.default.createDirectory(
        at: .documents.appending(path: name), withIntermediateDirectories: true)
    }
  }
}

extension ResultStore {
  static var documents: ResultStore {
    ResultStore(folder: .documents.appending(path: ScriptedRun.resultsFolder))
  }
}

extension PackedWeights {
  /// Where the system deletes nothing by itself, and nobody sees it: a cold load takes many times as long.
  static var kept: PackedWeights {
    let support = FileManager.default.urls(for: .applicationSupportDirectory, in: .userDomainMask)[0]
    return PackedWeights(folder: support.appending(path: "packed"))
  }
}

extension ModelLibrary {
  static var documents: ModelLibrary { ModelLibrary(folder: .documents) }
}

extension RunSurroundings {
  static var thisDevice: RunSurroundings {
    let info = Bundle.main.infoDictionary
    return RunSurroundings(
      device: .current,
      build: BuildFacts(
        app: Bundle.main.bundleIdentifier ?? "org.pocketphi.bench",
        appVersion: info?["CFBundleShortVersionString"] as? String ?? "unknown", engine: NativeEngine.name,
        executorch: NativeEngine.executorch),
      engines: { NativeEngine(files: $0, packed: .kept) }, probes: DeviceProbes(), store: .documents, packed: .kept)
  }
}

extension Thread {
  /// Starts `body` on a thread of its own with the stack of a main thread, at the priority of what the user waits for.
  static func measuring(_ body: @escaping @Sendable () -> Void) {
    let thread = Thread(block: body)
    thread.name = "benchmark"
    thread.stackSize = 8 << 20
    thread.qualityOfService = .userInteractive
    thread.start()
  }
}

// The app's scripted run without an app: the core does everything, with the real engine or, in place of a model, one
// that splits texts at spaces and takes the time a small model would. Arguments as in docs/ios_protocol.md. The folder
// that stands for Documents is POCKETPHI_DOCUMENTS; POCKETPHI_PACKED, if there is one, is where the real engine keeps
// packed weights; without it POCKETPHI_FAULT may be "load" or "generate".
import BenchmarkCore
import Foundation
import PocketphiEngine

final class RehearsalEngine: TextEngine {
  private let fault: String?
  private let stopAsked = Locked(false)

  init(fault: String?) {
    self.fault = fault
  }

  func load(onProgress: @escaping (Double) -> Void) throws -> Loaded {
    Thread.sleep(forTimeInterval: 0.02)
    onProgress(1)
    if fault == "load" { throw EngineFailure("There is not enough memory.") }
    return Loaded(packing: .nowhere, packingNote: "this engine packs nothing", threads: 1)
  }

  func count(_ text: String) -> Int { text.split(separator: " ").count }

  func generate(
    _ prompt: [PromptPart], newTokens: Int, onToken: @escaping () -> Void, onText: @escaping (String) -> Void
  ) throws -> Generated {
    stopAsked.with { $0 = false }
    let tokens = prompt.reduce(0) { if case .text(let text) = $1 { $0 + count(text) } else { $0 } }
    Thread.sleep(forTimeInterval: Double(tokens) * 0.0001)
    var made = 0
    while made < newTokens, !stopAsked.current {
      Thread.sleep(forTimeInterval: 0.001)
      if fault == "generate", made == 3 { throw EngineFailure("The model stopped with an error.") }
      // What a library prints must not be taken for a line of ours.
      print(" tide", terminator: "")
      onToken()
      onText(" tide")
      made += 1
    }
    return Generated(
      promptTokens: tokens, generatedTokens: made, stopReason: made < newTokens ? .stopped : .newTokens)
  }

  func stop() { stopAsked.with { $0 = true } }

  func reset() {}

  func unload() {}
}

/// Resident memory stands for the footprint.
struct ProcProbes: Probes {
  func memory() -> Memory {
    let pages = (try? String(contentsOfFile: "/proc/self/statm", encoding: .utf8))?.split(separator: " ")
    let resident = pages.flatMap { Int64($0[1]) }.map { $0 * Int64(sysconf(Int32(_SC_PAGESIZE))) }
    return Memory(footprintBytes: resident, rssBytes: resident, availableBytes: 4_000_000_000)
  }

  func thermal() -> Thermal { Thermal(status: .none, batteryPercent: nil, lowPowerMode: nil) }

  func highestFootprint() -> Int64? { nil }
}

let environment = ProcessInfo.processInfo.environment
let documents = URL(filePath: environment["POCKETPHI_DOCUMENTS"] ?? ".")
let packed = environment["POCKETPHI_PACKED"].map { PackedWeights(folder: URL(filePath: $0)) }
let around = RunSurroundings(
  device: DeviceFacts(
    model: "iPhone16,1", ramBytes: Int64(ProcessInfo.processInfo.physicalMemory), os: "iOS",
    osVersion: "rehearsal", abi: "arm64", cores: ProcessInfo.processInfo.processorCount),
  build: BuildFacts(
    app: "rehearse", appVersion: "0", engine: NativeEngine.name, executorch: NativeEngine.executorch),
  engines: { files in
    guard let packed else { return RehearsalEngine(fault: environment["POCKETPHI_FAULT"]) }
    return NativeEngine(files: files, packed: packed)
  }, probes: ProcProbes(),
  store: ResultStore(folder: documents.appending(path: ScriptedRun.resultsFolder)), packed: packed, lookEvery: 0.005,
  sampleEvery: 0.02)
do {
  try StandardOutput.shared.take()
  let run = try ScriptedRun(
    arguments: Array(CommandLine.arguments.dropFirst()), documents: documents, around: around,
    output: { StandardOutput.shared.line($0) })
  exit(run.run())
} catch {
  exit(ScriptedRun.Exit.badArguments)
}

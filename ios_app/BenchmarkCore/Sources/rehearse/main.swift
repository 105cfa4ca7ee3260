// The app's scripted run without an app: the core does everything, and in place of a model an engine that splits
// texts at spaces and takes the time a small model would. Arguments as in docs/ios_protocol.md. The folder that
// stands for Documents is POCKETPHI_DOCUMENTS; POCKETPHI_FAULT may be "load" or "generate"; POCKETPHI_RUNNER_OUTPUT is
// a file with what the real runner printed, to be printed in place of our own line.
import BenchmarkCore
import Foundation

final class RehearsalEngine: TextEngine {
  private let fault: String?
  private let recorded: String?
  private let stopAsked = Locked(false)

  init(fault: String?, recorded: String?) {
    self.fault = fault
    self.recorded = recorded
  }

  func load() throws {
    Thread.sleep(forTimeInterval: 0.02)
    if fault == "load" { throw RunnerErrors.loading(code: 0x21, model: "model.pte", tokenizer: "tokenizer.json") }
  }

  func generate(
    _ prompt: String, promptTokens: Int?, newTokens: Int, onToken: @escaping (String) -> Void
  ) throws -> Generated {
    stopAsked.with { $0 = false }
    let counted = prompt.split(separator: " ").count
    Thread.sleep(forTimeInterval: Double(counted) * 0.0001)
    var made = 0
    while made < newTokens, !stopAsked.current {
      Thread.sleep(forTimeInterval: 0.001)
      if fault == "generate", made == 3 {
        throw RunnerErrors.generating(code: 0x01, promptTokens: promptTokens, newTokens: newTokens)
      }
      // As the runner does; only its line with the counts may be understood.
      print(" tide", terminator: "")
      onToken(" tide")
      made += 1
    }
    print(recorded ?? "\nPyTorchObserver {\"prompt_tokens\":\(counted),\"generated_tokens\":\(made - 1)}")
    let report = RunnerReport(in: StandardOutput.shared.printed())
    return Generated(
      promptTokens: report?.promptTokens, generatedTokens: made, stopReason: made < newTokens ? .stopped : .newTokens)
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
let around = RunSurroundings(
  device: DeviceFacts(
    model: "iPhone16,1", ramBytes: Int64(ProcessInfo.processInfo.physicalMemory), os: "iOS",
    osVersion: "rehearsal", abi: "arm64", cores: ProcessInfo.processInfo.processorCount),
  build: BuildFacts(app: "rehearse", appVersion: "0", engine: "TextRunner", executorch: "1.5.1"),
  engines: { _ in
    RehearsalEngine(
      fault: environment["POCKETPHI_FAULT"],
      recorded: environment["POCKETPHI_RUNNER_OUTPUT"].flatMap { try? String(contentsOfFile: $0, encoding: .utf8) })
  }, probes: ProcProbes(),
  store: ResultStore(folder: documents.appending(path: ScriptedRun.resultsFolder)), lookEvery: 0.005,
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

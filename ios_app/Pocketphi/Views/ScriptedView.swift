import BenchmarkCore
import Foundation
import SwiftUI

/// What the screen shows while a program drives the app: the last lines it was told.
struct ScriptedView: View {
  @State private var lines: [String] = []

  private static let shownLines = 12

  var body: some View {
    VStack(alignment: .leading, spacing: 8) {
      Label("A benchmark is under way", systemImage: "gauge.with.needle").font(.headline)
      Text("Leave the app open. It ends by itself.").foregroundStyle(.secondary)
      ForEach(Array(lines.enumerated()), id: \.offset) { _, line in
        Text(line).font(.caption.monospaced()).lineLimit(2)
      }
      Spacer()
    }
    .padding()
    .frame(maxWidth: .infinity, maxHeight: .infinity, alignment: .topLeading)
    .task { await run() }
  }

  private func run() async {
    let (output, continuation) = AsyncStream.makeStream(of: String.self)
    let scripted: ScriptedRun
    do {
      try StandardOutput.shared.take()
      scripted = try ScriptedRun(
        arguments: Array(CommandLine.arguments.dropFirst()), documents: .documents, around: .thisDevice
      ) { line in
        StandardOutput.shared.line(line)
        continuation.yield(line)
      }
    } catch {
      exit(ScriptedRun.Exit.badArguments)
    }
    let events = SystemEvents(run: scripted.benchmark)
    // Not exit(): it would take ExecuTorch's statics away under threads that still use them.
    Thread.measuring { _exit(scripted.run()) }
    for await line in output { lines = Array((lines + [line]).suffix(Self.shownLines)) }
    events.end()
  }
}

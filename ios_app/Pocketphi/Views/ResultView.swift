import BenchmarkCore
import SwiftUI

/// One result: a table of medians, charts, the notes of its repeats, the file to share.
struct ResultView: View {
  let saved: SavedResult

  private var document: ResultDocument { saved.document }

  var body: some View {
    List {
      if let problem = document.problem {
        Label(problem, systemImage: "exclamationmark.triangle").foregroundStyle(.orange)
      }
      ForEach(Array(document.runs.enumerated()), id: \.offset) { _, run in
        Section(run.configuration.lengths) {
          ForEach(Contract.current.metrics) { metric in
            if let statistics = run.summary[metric.name] {
              MetricRow(metric: metric, statistics: statistics)
            }
          }
          if let packings = run.packings { LabeledContent("Loads, by packed weights", value: packings) }
          RateChart(repeats: run.repeats)
          MemoryChart(repeats: run.repeats)
          ForEach(run.remarks, id: \.self) { Text($0).font(.footnote).foregroundStyle(.orange) }
          NotesRows(repeats: run.repeats)
        }
      }
      Section("Device and build") {
        LabeledContent(
          "Device", value: "\(document.device.model), \(document.device.os) \(document.device.osVersion)")
        LabeledContent("Model", value: document.model.file)
        LabeledContent("Weights", value: document.model.manifest?.recipe ?? "unknown")
        LabeledContent("ExecuTorch", value: document.build.executorch ?? "unknown")
        LabeledContent("Measured", value: document.createdDate?.formatted() ?? document.created)
      }
    }
    .navigationTitle(saved.name)
    .navigationBarTitleDisplayMode(.inline)
    .toolbar { ShareLink(item: saved.file).accessibilityLabel("Share the result as JSON") }
  }
}

/// A median, and how far the repeats are from each other.
private struct MetricRow: View {
  let metric: Metric
  let statistics: Statistics

  var body: some View {
    LabeledContent {
      VStack(alignment: .trailing) {
        Text(metric.text(statistics.median)).monospacedDigit()
        Text("\(metric.text(statistics.min)) to \(metric.text(statistics.max))")
          .font(.caption)
          .foregroundStyle(.secondary)
          .monospacedDigit()
      }
    } label: {
      Text(metric.title)
    }
    .accessibilityElement(children: .ignore)
    .accessibilityLabel(metric.title)
    .accessibilityValue(
      "median \(metric.text(statistics.median)), from \(metric.text(statistics.min)) to \(metric.text(statistics.max))"
    )
  }
}

private struct NotesRows: View {
  let repeats: [RepeatRecord]

  var body: some View {
    ForEach(Array(repeats.enumerated()), id: \.offset) { index, one in
      ForEach(one.notes, id: \.self) { note in
        Text("Repeat \(index + 1): \(note)").font(.footnote).foregroundStyle(.secondary)
      }
    }
  }
}

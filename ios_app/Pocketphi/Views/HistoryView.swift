import BenchmarkCore
import SwiftUI

/// Saved results, and two of them beside each other.
struct HistoryView: View {
  @Environment(BenchmarkState.self) private var benchmark

  var body: some View {
    @Bindable var benchmark = benchmark
    NavigationStack {
      List {
        ForEach(benchmark.history) { saved in
          NavigationLink {
            ResultView(saved: saved)
          } label: {
            HistoryRow(saved: saved)
          }
          .swipeActions {
            Button("Delete", role: .destructive) { benchmark.delete(saved) }
          }
        }
      }
      .overlay {
        if benchmark.history.isEmpty {
          ContentUnavailableView("No results yet", systemImage: "clock.arrow.circlepath")
        }
      }
      .navigationTitle("History")
      .toolbar {
        NavigationLink("Compare") { CompareView(results: benchmark.history) }
          .disabled(benchmark.history.count < 2)
      }
      .onAppear { benchmark.refresh() }
    }
    .problemAlert($benchmark.problem)
  }
}

private struct HistoryRow: View {
  let saved: SavedResult

  var body: some View {
    VStack(alignment: .leading, spacing: 4) {
      Text(saved.document.model.file).font(.headline)
      Text(saved.document.createdDate?.formatted() ?? saved.document.created).font(.subheadline)
      Text(rates).font(.subheadline).foregroundStyle(.secondary).monospacedDigit()
      if saved.document.status == .incomplete {
        Label("Incomplete", systemImage: "exclamationmark.triangle").font(.footnote).foregroundStyle(.orange)
      }
    }
    .accessibilityElement(children: .combine)
  }

  private var rates: String {
    saved.document.runs.compactMap { run in
      run.summary["decode_tokens_per_s"].map { "\(run.configuration.lengths): \(Format.rate($0.median))" }
    }
    .joined(separator: "  ")
  }
}

import BenchmarkCore
import SwiftUI

/// Medians of two results, and what changed by more than the tolerance.
struct CompareView: View {
  let results: [SavedResult]

  @State private var before: SavedResult.ID?
  @State private var after: SavedResult.ID?
  /// In place of the metrics' own.
  @State private var tolerance: Double?

  var body: some View {
    List {
      Section {
        picker("Before", $before)
        picker("After", $after)
        Stepper("Tolerance: \(toleranceText)") {
          widen(0.01)
        } onDecrement: {
          widen(-0.01)
        }
      }
      if let comparison {
        ForEach(comparison.differences, id: \.self) { sentence in
          Label(sentence, systemImage: "info.circle").font(.footnote)
        }
        if comparison.pairs.isEmpty {
          Text("The two results have no lengths in common.").foregroundStyle(.secondary)
        }
        ForEach(Array(comparison.pairs.enumerated()), id: \.offset) { _, pair in
          Section(pair.configuration.lengths) {
            ForEach(pair.metrics, id: \.metric) { ComparedRow(compared: $0) }
          }
        }
      }
    }
    .navigationTitle("Compare")
    .navigationBarTitleDisplayMode(.inline)
    .onAppear {
      after = after ?? results.first?.id
      before = before ?? results.dropFirst().first?.id
    }
  }

  private var comparison: Comparison? {
    guard let one = results.first(where: { $0.id == before }), let two = results.first(where: { $0.id == after })
    else { return nil }
    return Comparison(before: one.document, after: two.document, tolerance: tolerance)
  }

  private var toleranceText: String { tolerance.map { "\(Format.fixed($0 * 100, 0)) %" } ?? "each metric's own" }

  private func widen(_ step: Double) {
    let usual = Contract.current.metrics.compactMap(\.tolerance).max() ?? 0
    tolerance = min(max((tolerance ?? usual) + step, 0), 0.5)
  }

  private func picker(_ title: String, _ selection: Binding<SavedResult.ID?>) -> some View {
    Picker(title, selection: selection) {
      ForEach(results) { Text($0.name).tag(Optional($0.id)) }
    }
  }
}

private struct ComparedRow: View {
  let compared: ComparedMetric

  var body: some View {
    if compared.before != nil || compared.after != nil {
      LabeledContent {
        VStack(alignment: .trailing) {
          Text("\(text(compared.before)) → \(text(compared.after))").monospacedDigit()
          if let change = compared.change {
            Label(Format.change(change), systemImage: symbol)
              .font(.caption)
              .foregroundStyle(color)
              .monospacedDigit()
          }
        }
      } label: {
        Text(compared.metric.title)
      }
      .accessibilityElement(children: .ignore)
      .accessibilityLabel(compared.metric.title)
      .accessibilityValue("\(text(compared.before)), then \(text(compared.after)), \(word)")
    }
  }

  private func text(_ value: Double?) -> String { value.map(compared.metric.text) ?? "none" }

  private var symbol: String {
    switch compared.verdict {
    case .better: "checkmark.circle"
    case .worse: "exclamationmark.triangle"
    case .same, .unknown: "equal.circle"
    }
  }

  private var color: Color {
    switch compared.verdict {
    case .better: .green
    case .worse: .red
    case .same, .unknown: .secondary
    }
  }

  private var word: String {
    switch compared.verdict {
    case .better: "better"
    case .worse: "worse"
    case .same: "within the tolerance"
    case .unknown: "not comparable"
    }
  }
}

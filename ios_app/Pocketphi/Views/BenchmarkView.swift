import BenchmarkCore
import SwiftUI

/// Sets a run up, shows it live and, when it is done, its result.
struct BenchmarkView: View {
  @Environment(BenchmarkState.self) private var benchmark
  @Environment(LibraryState.self) private var library
  @Environment(ChatState.self) private var chat

  var body: some View {
    @Bindable var benchmark = benchmark
    NavigationStack {
      Form {
        if let live = benchmark.live {
          LiveSection(live: live)
          Section {
            Button("Stop", systemImage: "stop.fill", role: .destructive) { benchmark.stop() }
              .accessibilityHint("Finished repeats are kept")
          }
        } else {
          SetupSections(benchmark: benchmark)
          Section {
            Button("Run", systemImage: "play.fill") { start() }
              .disabled(benchmark.model == nil || benchmark.tokenizer == nil)
          }
        }
        if let latest = benchmark.latest, !benchmark.running {
          Section {
            NavigationLink("Latest result: \(latest.name)") { ResultView(saved: latest) }
          }
        }
      }
      .navigationTitle("Benchmark")
      .onAppear {
        library.refresh()
        if benchmark.model == nil { benchmark.choose(library.models.first) }
      }
    }
    .problemAlert($benchmark.problem)
  }

  /// A chat's model would share the memory with the one that is measured.
  private func start() {
    Task {
      await chat.closed()
      benchmark.start()
    }
  }
}

private struct SetupSections: View {
  @Bindable var benchmark: BenchmarkState

  var body: some View {
    Section {
      ModelPicker(model: $benchmark.model, tokenizer: $benchmark.tokenizer)
    }
    Section {
      LabeledContent("Prompt tokens") {
        TextField("64,512", text: $benchmark.promptTokens)
          .multilineTextAlignment(.trailing)
          .keyboardType(.numbersAndPunctuation)
          .accessibilityLabel("Prompt tokens, lengths with commas between")
      }
      Stepper("New tokens: \(benchmark.newTokens)", value: $benchmark.newTokens, in: range("new_tokens"), step: 8)
      Stepper("Repeats: \(benchmark.repeats)", value: $benchmark.repeats, in: range("repeats"))
      Stepper("Warm-ups: \(benchmark.warmups)", value: $benchmark.warmups, in: range("warmups"))
      Stepper(
        "Cool-down: \(Format.fixed(benchmark.cooldownS, 0)) s", value: $benchmark.cooldownS, in: rests, step: 5)
      if benchmark.modes.count > 1 {
        Toggle("Also with a picture and with sound", isOn: $benchmark.withMedia)
      }
      Picker("Load", selection: $benchmark.loadMode) {
        Text("Once").tag(LoadMode.once)
        Text("For every repeat").tag(LoadMode.each)
      }
    } header: {
      Text("What is measured")
    } footer: {
      Text(
        "Each length of prompt is measured by itself, greedily and with as many threads as there are performance cores. "
          + "Charge the device, let it cool, close other apps.")
    }
  }
}

private func range(_ option: String) -> ClosedRange<Int> { Contract.current.option(option).range }

private var rests: ClosedRange<Double> {
  Double(range("cooldown_s").lowerBound)...Double(range("cooldown_s").upperBound)
}

/// The rate and the memory of the run under way.
private struct LiveSection: View {
  let live: BenchmarkState.Live

  var body: some View {
    Section(live.step) {
      ProgressView(value: Double(live.repeatsDone), total: Double(max(live.repeats, 1))) {
        Text("\(live.repeatsDone) of \(live.repeats) repeats")
      }
      if !live.load.isEmpty { Text(live.load).font(.footnote).foregroundStyle(.secondary) }
      row("Decode", live.decodeRate.map(Format.rate))
      row("New tokens", live.tokens > 0 ? "\(live.tokens)" : nil)
      row("Footprint", live.memory.footprintBytes.map(Format.bytes))
      row("Still available", live.memory.availableBytes.map(Format.bytes))
      if !live.rates.isEmpty {
        LabeledContent("Repeats", value: live.rates.map { Format.fixed($0, 1) }.joined(separator: "  "))
      }
    }
  }

  private func row(_ name: String, _ value: String?) -> some View {
    LabeledContent(name) { Text(value ?? "–").monospacedDigit() }
      .accessibilityElement(children: .ignore)
      .accessibilityLabel(name)
      .accessibilityValue(value ?? "not known yet")
  }
}

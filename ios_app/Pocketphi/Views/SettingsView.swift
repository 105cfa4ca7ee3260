import BenchmarkCore
import SwiftUI

/// How the chat's next model runs and answers, and the packed weights that are kept.
struct SettingsView: View {
  @Environment(SettingsState.self) private var settings

  var body: some View {
    @Bindable var settings = settings
    Form {
      Section {
        TextField("None", text: $settings.system, axis: .vertical)
          .lineLimit(1...6)
          .accessibilityLabel("System prompt")
      } header: {
        Text("System prompt")
      } footer: {
        Text("What the model is told before a conversation. It holds from the next one on.")
      }
      Section {
        Stepper(
          settings.engine.threads == 0 ? "Threads: one a performance core" : "Threads: \(settings.engine.threads)",
          value: $settings.engine.threads, in: 0...ProcessInfo.processInfo.activeProcessorCount)
        Stepper("Guessed ahead: \(settings.engine.draftTokens)", value: $settings.engine.draftTokens, in: 0...15)
      } header: {
        Text("Speed")
      } footer: {
        Text("Tokens are guessed ahead from what stands in the conversation, with files that were exported for it.")
      }
      Section {
        Stepper(
          settings.engine.temperature == 0
            ? "Always the likeliest token" : "Temperature: \(Format.fixed(settings.engine.temperature, 1))",
          value: $settings.engine.temperature, in: 0...2, step: 0.1)
        if settings.engine.temperature > 0 {
          Stepper(
            settings.engine.topK == 0 ? "Top-k: all" : "Top-k: \(settings.engine.topK)",
            value: $settings.engine.topK, in: 0...200, step: 10)
          Stepper(
            "Top-p: \(Format.fixed(settings.engine.topP, 2))", value: $settings.engine.topP, in: 0.05...1, step: 0.05)
          LabeledContent("Seed") {
            TextField("0", value: $settings.engine.seed, format: .number.grouping(.never))
              .multilineTextAlignment(.trailing)
              .keyboardType(.numberPad)
              .accessibilityLabel("Seed")
          }
        }
      } header: {
        Text("Choice of tokens")
      } footer: {
        Text("Equal seeds give equal answers. Speed and choice hold for the next model that is loaded.")
      }
      Section {
        Stepper(
          "Longer side: \(settings.pictureSide) pixels", value: $settings.pictureSide, in: 224...4032, step: 224)
      } header: {
        Text("Pictures")
      } footer: {
        Text("At most. Larger pictures show more, take longer and fill more of the model's context.")
      }
      Section {
        LabeledContent("Packed weights", value: Format.bytes(settings.packedBytes))
        Button("Delete packed weights", systemImage: "trash", role: .destructive) { settings.deletePacked() }
          .disabled(settings.packedBytes == 0)
      } header: {
        Text("Storage")
      } footer: {
        Text(
          "A model's weights as this device computes with them, kept so that the next load need not pack them. "
            + "They can be made again, and are left out of backups.")
      }
    }
    .navigationTitle("Settings")
    .navigationBarTitleDisplayMode(.inline)
    .onAppear { settings.refresh() }
    .problemAlert($settings.problem)
  }
}

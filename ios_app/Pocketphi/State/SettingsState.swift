import BenchmarkCore
import Foundation
import Observation

/// What the chat is asked for beside its questions, kept between starts. The benchmark measures with the defaults.
@MainActor
@Observable
final class SettingsState {
  private struct Kept: Codable {
    var engine = EngineSettings()
    var system = ""
    /// Nil in what older versions kept.
    var pictureSide: Int?
  }

  private static let key = "settings"

  private let defaults: UserDefaults
  private var kept: Kept

  /// The bytes of the packed weights, as of the last `refresh`.
  private(set) var packedBytes: Int64 = 0
  var problem: String?

  init(defaults: UserDefaults = .standard) {
    self.defaults = defaults
    let json = defaults.data(forKey: Self.key)
    kept = json.flatMap { try? JSONDecoder().decode(Kept.self, from: $0) } ?? Kept()
  }

  var engine: EngineSettings {
    get { kept.engine }
    set {
      kept.engine = newValue
      // Sums of a stepper's tenths are not quite what they look like, and 0 has a meaning of its own.
      kept.engine.temperature = (newValue.temperature * 100).rounded() / 100
      kept.engine.topP = (newValue.topP * 100).rounded() / 100
      keep()
    }
  }

  /// What the model is told before the conversation.
  var system: String {
    get { kept.system }
    set {
      kept.system = newValue
      keep()
    }
  }

  /// How many pixels the longer side of a picture has at most: larger ones show more, and take longer and more of the
  /// context.
  var pictureSide: Int {
    get { kept.pictureSide ?? 896 }
    set {
      kept.pictureSide = newValue
      keep()
    }
  }

  func refresh() {
    packedBytes = PackedWeights.kept.bytes
  }

  func deletePacked() {
    do {
      try PackedWeights.kept.delete()
    } catch {
      problem = error.localizedDescription
    }
    refresh()
  }

  private func keep() {
    defaults.set(try? JSONEncoder().encode(kept), forKey: Self.key)
  }
}

import BenchmarkCore
import Foundation
import Observation

/// Pictures and sounds that the next question will carry.
@MainActor
@Observable
final class AttachmentsState {
  private(set) var pending: [Media] = []
  /// Pictures that are being read.
  private(set) var reading = 0
  /// What is being recorded.
  private(set) var clip: Clip?
  var problem: String?

  private let readPicture: @Sendable (Data, Int) throws -> Picture
  private let microphone: any SoundSource
  private var hearing: AsyncStream<[Float]>.Continuation?

  /// `readPicture` makes pixels of a file, the longer side no longer than so many.
  init(readPicture: @escaping @Sendable (Data, Int) throws -> Picture, microphone: any SoundSource) {
    self.readPicture = readPicture
    self.microphone = microphone
  }

  /// Nothing can be sent meanwhile.
  var busy: Bool { reading > 0 || clip != nil }

  /// Reads the file that `load` gives and attaches its picture.
  func attach(side: Int, load: @escaping @Sendable () async throws -> Data?) {
    reading += 1
    Task {
      do {
        let picture = try await Self.read(side, load, readPicture)
        pending.append(.picture(picture))
      } catch {
        problem = error.localizedDescription
      }
      reading -= 1
    }
  }

  func record() {
    guard clip == nil else { return }
    clip = Clip()
    let (heard, continuation) = AsyncStream.makeStream(of: [Float].self)
    hearing = continuation
    Task {
      do {
        try await microphone.start { continuation.yield($0) }
        if clip == nil { microphone.stop() }  // ended while the permission was asked for
      } catch {
        clip = nil
        problem = error.localizedDescription
        continuation.finish()
      }
    }
    Task {
      for await samples in heard where clip != nil {
        clip?.append(samples)
        if clip?.isFull == true { stopRecording() }
      }
    }
  }

  /// Attaches what was heard by now.
  func stopRecording() {
    guard let clip else { return }
    self.clip = nil
    microphone.stop()
    hearing?.finish()
    if let sound = clip.sound { pending.append(.sound(sound)) } else { problem = "Nothing was recorded." }
  }

  func remove(_ media: Media) {
    pending.removeAll { $0.id == media.id }
  }

  /// What is attached, which is then taken.
  func take() -> [Media] {
    defer { pending = [] }
    return pending
  }

  /// What could not be used stays attached, for the person to remove.
  func putBack(_ media: [Media]) {
    pending = media + pending
  }

  nonisolated private static func read(
    _ side: Int, _ load: @Sendable () async throws -> Data?, _ readPicture: @Sendable (Data, Int) throws -> Picture
  ) async throws -> Picture {
    guard let data = try await load() else { throw BadInput("The picture could not be read.") }
    return try readPicture(data, side)
  }
}

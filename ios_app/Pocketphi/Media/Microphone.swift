import AVFoundation
import BenchmarkCore

/// The device's microphone, converted to one channel at `Clip.rate`.
///
/// Unchecked: started and stopped from the main thread alone; the tap's thread has only the converter it was given.
final class Microphone: SoundSource, @unchecked Sendable {
  private let engine = AVAudioEngine()

  func start(onSamples: @escaping @Sendable ([Float]) -> Void) async throws {
    guard await AVAudioApplication.requestRecordPermission() else {
      throw BadInput("Recording was not allowed; the Settings app can allow it.")
    }
    do {
      try await MainActor.run { try listen(onSamples) }
    } catch let wrong as BadInput {
      throw wrong
    } catch {
      throw BadInput("The microphone could not be opened: \(error.localizedDescription)")
    }
  }

  func stop() {
    engine.inputNode.removeTap(onBus: 0)
    engine.stop()
    try? AVAudioSession.sharedInstance().setActive(false, options: .notifyOthersOnDeactivation)
  }

  private func listen(_ onSamples: @escaping @Sendable ([Float]) -> Void) throws {
    let session = AVAudioSession.sharedInstance()
    try session.setCategory(.record, mode: .measurement)
    try session.setActive(true)
    let given = engine.inputNode.outputFormat(forBus: 0)
    guard given.sampleRate > 0,
      let wanted = AVAudioFormat(
        commonFormat: .pcmFormatFloat32, sampleRate: Double(Clip.rate), channels: 1, interleaved: false),
      let converter = AVAudioConverter(from: given, to: wanted)
    else { throw BadInput("This device has no microphone that can be used.") }
    engine.inputNode.installTap(onBus: 0, bufferSize: 4096, format: given) { buffer, _ in
      onSamples(Self.converted(buffer, converter, wanted))
    }
    engine.prepare()
    try engine.start()
  }

  private static func converted(
    _ buffer: AVAudioPCMBuffer, _ converter: AVAudioConverter, _ wanted: AVAudioFormat
  ) -> [Float] {
    let room = Double(buffer.frameLength) * wanted.sampleRate / buffer.format.sampleRate
    guard let made = AVAudioPCMBuffer(pcmFormat: wanted, frameCapacity: AVAudioFrameCount(room) + 64) else {
      return []
    }
    nonisolated(unsafe) var rest: AVAudioPCMBuffer? = buffer
    // The converter keeps what it needs of this buffer for the next one.
    converter.convert(to: made, error: nil) { _, status in
      defer { rest = nil }
      status.pointee = rest == nil ? .noDataNow : .haveData
      return rest
    }
    guard let samples = made.floatChannelData?[0] else { return [] }
    return Array(UnsafeBufferPointer(start: samples, count: Int(made.frameLength)))
  }
}

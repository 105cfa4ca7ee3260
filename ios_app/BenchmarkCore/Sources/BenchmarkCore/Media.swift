import Foundation

/// Upright, three bytes (red, green, blue) a pixel, row by row. One object is one picture, whatever it shows.
public final class Picture: Sendable {
  public let rgb: [UInt8]
  public let width: Int
  public let height: Int

  public init(rgb: [UInt8], width: Int, height: Int) {
    self.rgb = rgb
    self.width = width
    self.height = height
  }

  /// Of four bytes a pixel, the last of which says nothing.
  public convenience init(rgbx: [UInt8], width: Int, height: Int) {
    var rgb: [UInt8] = []
    rgb.reserveCapacity(3 * width * height)
    for pixel in stride(from: 0, to: 4 * width * height, by: 4) { rgb += rgbx[pixel..<pixel + 3] }
    self.init(rgb: rgb, width: width, height: height)
  }
}

/// One channel, -1 to 1, `rate` samples a second. One object is one sound, whatever is heard.
public final class Sound: Sendable {
  public let samples: [Float]
  public let rate: Int

  public init(samples: [Float], rate: Int) {
    self.samples = samples
    self.rate = rate
  }

  public var seconds: Double { Double(samples.count) / Double(rate) }
}

/// A picture or a sound.
public enum Media: Sendable, Identifiable {
  case picture(Picture)
  case sound(Sound)

  public var id: ObjectIdentifier {
    switch self {
    case .picture(let picture): ObjectIdentifier(picture)
    case .sound(let sound): ObjectIdentifier(sound)
    }
  }
}

/// What a prompt is made of.
public enum PromptPart: Sendable {
  case text(String)
  case media(Media)
}

/// How a prompt is answered: a picture decides, with or without sound.
public enum Mode: String, Codable, CaseIterable, Sendable {
  case text, vision, speech

  public init(of media: [Media]) {
    let pictures = media.contains { if case .picture = $0 { true } else { false } }
    self = pictures ? .vision : media.isEmpty ? .text : .speech
  }
}

/// What a file takes beside text; `soundRate` samples a second, 0 where it takes no sound.
public struct Takes: Equatable, Sendable {
  public let pictures: Bool
  public let sound: Bool
  public let soundRate: Int

  public static let text = Takes(pictures: false, sound: false, soundRate: 0)

  public init(pictures: Bool, sound: Bool, soundRate: Int) {
    self.pictures = pictures
    self.sound = sound
    self.soundRate = soundRate
  }

  public func contains(_ mode: Mode) -> Bool {
    switch mode {
    case .text: true
    case .vision: pictures
    case .speech: sound
    }
  }
}

/// A picture or sound that an engine has made `tokens` of, of so many `parts` (crops or pieces); `reused` where it was
/// encoded before. Milliseconds of scaling and cutting (or the spectrogram), and of encoding.
public struct Encoded: Equatable, Sendable {
  public let tokens: Int
  public let parts: Int
  public let reused: Bool
  public let prepareMs: Double
  public let encodeMs: Double

  public init(tokens: Int, parts: Int, reused: Bool, prepareMs: Double, encodeMs: Double) {
    self.tokens = tokens
    self.parts = parts
    self.reused = reused
    self.prepareMs = prepareMs
    self.encodeMs = encodeMs
  }

  public var ms: Double { prepareMs + encodeMs }
}

/// What is being encoded: `done` of its `of` parts.
public struct EncodingStep: Sendable {
  public let media: Media
  public let done: Int
  public let of: Int

  public init(media: Media, done: Int, of: Int) {
    self.media = media
    self.done = done
    self.of = of
  }
}

/// The picture and the sound that a measurement encodes: formulas of contract.json, the same on every device.
public struct StandardMedia: Decodable, Sendable {
  let width: Int
  let height: Int
  let seconds: Double
  let hertz: Double
  let loudness: Double

  public var picture: Picture {
    var rgb: [UInt8] = []
    rgb.reserveCapacity(3 * width * height)
    for y in 0..<height {
      for x in 0..<width {
        for channel in 0..<3 { rgb.append(UInt8(abs((3 * x + 2 * y + 85 * channel) % 510 - 255))) }
      }
    }
    return Picture(rgb: rgb, width: width, height: height)
  }

  public func sound(rate: Int) -> Sound {
    let count = Int((Double(rate) * seconds).rounded())
    let samples = (0..<count).map { Float(loudness * sin(2 * Double.pi * hertz * Double($0) / Double(rate))) }
    return Sound(samples: samples, rate: rate)
  }

  /// What is encoded in a run of `mode`, with sound of `rate` samples a second.
  func media(_ mode: Mode, rate: Int) -> [Media] {
    switch mode {
    case .text: []
    case .vision: [.picture(picture)]
    case .speech: [.sound(sound(rate: rate))]
    }
  }
}

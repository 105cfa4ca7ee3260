import Foundation
import Testing

@testable import BenchmarkCore

/// export/bench/contract/vectors.json, which the tests of Python and Kotlin read too.
struct SharedVectors: Decodable {
  struct StatisticsCase: Decodable {
    let values: [Double]
    let statistics: Statistics?
  }

  struct ChatCase: Decodable {
    struct Said: Decodable {
      let role: Role
      let content: String
    }

    let messages: [Said]
    let text: String
  }

  struct Pixel: Decodable {
    let x: Int
    let y: Int
    let rgb: [UInt8]
  }

  struct Heard: Decodable {
    let rate: Int
    let count: Int
    let at: Int
    let sample: Float
  }

  let statistics: [StatisticsCase]
  let chat: [ChatCase]
  let picture: [Pixel]
  let sound: [Heard]

  static func load() throws -> SharedVectors {
    try JSONDecoder().decode(SharedVectors.self, from: Repository.contract("vectors.json"))
  }
}

@Test func statisticsAreNumPys() throws {
  let cases = try SharedVectors.load().statistics
  #expect(cases.count > 5)
  for one in cases {
    let found = Statistics(of: one.values)
    guard let expected = one.statistics else {
      #expect(found == nil)
      continue
    }
    for path in [\Statistics.min, \.p25, \.median, \.p75, \.max] {
      let difference = abs(try #require(found)[keyPath: path] - expected[keyPath: path])
      #expect(difference < 1e-12, "\(one.values)")
    }
  }
}

@Test func chatTextsAreTheModels() throws {
  let cases = try SharedVectors.load().chat
  #expect(cases.count > 2)
  for one in cases {
    let messages = one.messages.map { Message(role: $0.role, content: $0.content) }
    #expect(ChatTemplate.render(messages) == one.text)
  }
}

@Test func theStandardPictureAndSoundAreThoseOfTheContract() throws {
  let vectors = try SharedVectors.load()
  let picture = Contract.current.media.picture
  #expect(picture.rgb.count == 3 * picture.width * picture.height)
  for one in vectors.picture {
    let at = 3 * (one.y * picture.width + one.x)
    #expect(Array(picture.rgb[at..<at + 3]) == one.rgb)
  }
  for one in vectors.sound {
    let sound = Contract.current.media.sound(rate: one.rate)
    #expect(sound.samples.count == one.count && abs(sound.samples[one.at] - one.sample) < 1e-7)
  }
  #expect(vectors.picture.count > 2 && vectors.sound.count > 2)
  #expect(Mode(of: []) == .text && Mode(of: [.sound(Sound(samples: [], rate: 1))]) == .speech)
}

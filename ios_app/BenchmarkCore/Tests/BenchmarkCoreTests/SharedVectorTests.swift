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
    let messages: [Message]
    let text: String
  }

  let statistics: [StatisticsCase]
  let chat: [ChatCase]

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
  for one in cases { #expect(ChatTemplate.render(one.messages) == one.text) }
}

import Foundation
import Testing

@testable import BenchmarkCore

/// The bundled contract is the repository's, and nothing of it stands in the code: with another, all else follows.
@Suite struct ContractTests {
  let least = ["--run", "r", "--model", "m", "--tokenizer", "t"]

  func with(_ changes: [(String, String)], _ body: () throws -> Void) throws {
    var text = String(decoding: Contract.bundled(), as: UTF8.self)
    for (old, new) in changes {
      #expect(text.contains(old), "\(old)")
      text = text.replacing(old, with: new)
    }
    try Contract.$current.withValue(Contract(json: Data(text.utf8))) { try body() }
  }

  @Test func theBuildBundlesTheRepositorys() throws {
    #expect(try Contract.bundled() == Repository.contract("bundled/contract.json"))
  }

  @Test func wordsAreTheSchemas() throws {
    let schema = try JSONSerialization.jsonObject(with: Repository.contract("result.schema.json")) as? [String: Any]
    let definitions = try #require(schema?["$defs"] as? [String: [String: Any]])
    func words(_ definition: String, _ key: String) -> [String]? {
      (definitions[definition]?["properties"] as? [String: [String: Any]])?[key]?["enum"] as? [String]
    }
    #expect(words("thermal", "status") == ThermalStatus.allCases.map(\.rawValue))
    #expect(words("configuration", "load_mode") == LoadMode.allCases.map(\.rawValue))
    #expect(Contract.current.option("load_mode").choices == LoadMode.allCases.map(\.rawValue))
  }

  @Test func defaultsAndRanges() throws {
    let changes = [
      ("[64, 512], \"least\": 1", "[7, 9], \"least\": 6"), ("\"default\": 128", "\"default\": 31"),
      ("\"default\": 5,", "\"default\": 4,"), ("\"warmups\": {\"default\": 1", "\"warmups\": {\"default\": 2"),
      ("\"default\": 30", "\"default\": 77"), ("\"most\": 3600", "\"most\": 99"),
      ("\"default\": \"once\"", "\"default\": \"each\""),
    ]
    try with(changes) {
      let request = try LaunchArguments(least).request(documents: URL(filePath: "/docs"))
      let wanted = try [7, 9].map {
        try Configuration(promptTokens: $0, newTokens: 31, repeats: 4, warmups: 2, cooldownS: 77, loadMode: .each)
      }
      #expect(request.configurations == wanted)
      #expect(badInput { _ = try LaunchArguments.lengths("5") }.contains("from 6 to"))
      let long = least + ["--cooldown", "100"]
      #expect(
        badInput { _ = try LaunchArguments(long).request(documents: URL(filePath: "/docs")) }.contains("0 to 99"))
    }
  }

  @Test func tolerancesAndDirections() throws {
    let before = try document([record(decode: 100)])
    func verdict(_ decode: Double) throws -> ComparedMetric.Verdict {
      let metrics = Comparison(before: before, after: try document([record(decode: decode)])).pairs[0].metrics
      return try #require(metrics.first { $0.metric.name == "decode_tokens_per_s" }).verdict
    }
    #expect(try verdict(95.5) == .same)
    #expect(try verdict(94.5) == .worse)
    let changed = "\"better\": \"lower\", \"tolerance\": 0.5"
    try with([("\"better\": \"higher\", \"tolerance\": 0.05", changed)]) {
      let (close, far) = (try verdict(55), try verdict(45))
      #expect(close == .same)
      #expect(far == .better)
    }
  }

  @Test func aRowIsAMetric() throws {
    let rows = """
      "metrics": [{"name": "trial_percent", "label": "battery", "unit": "%", "better": "higher", "tolerance": null,
      "from": "thermal.after.battery_percent"}, {"name": "trial_p95", "label": "trial", "unit": "ms",
      "better": "lower", "tolerance": 0.1},
      """
    try with([("\"metrics\": [", rows)]) {
      let thermal = Thermal(status: .none, batteryPercent: 81, lowPowerMode: nil)
      let plain = record()
      let made = RepeatRecord(
        measures: ["trial_p95": 3.5], promptTokens: 1, generatedTokens: 1, tokenMs: [], memory: plain.memory,
        thermal: .init(before: .unknown, after: thermal), throttled: false, lowMemoryEvents: 0,
        stopReason: .newTokens, notes: [])
      let written = try document([made])
      let read = try ResultDocument(json: written.json())
      #expect(read == written)
      #expect(read.runs[0].summary["trial_percent"]?.median == 81)
      #expect(read.runs[0].summary["trial_p95"]?.median == 3.5)
      #expect(Comparison(before: read, after: read).pairs[0].metrics[1].metric.title == "Trial")
      #expect(read.runs[0].repeats[0].measures == ["trial_p95": 3.5])
    }
  }

  @Test func heatAndTheChat() throws {
    #expect(ThermalStatus.moderate.throttles)
    let changes = [
      ("\"moderate\", \"severe\"", "\"severe\""), ("<|{role}|>", "[{role}]"), ("\"<|end|>\"", "\"[end]\""),
      ("<|endoftext|>", "[stop]"),
    ]
    try with(changes) {
      #expect(!ThermalStatus.moderate.throttles)
      #expect(ChatTemplate.render([Message(role: .user, content: "Hi")]) == "[user]Hi[end][assistant]")
      #expect(ChatTemplate.stops == ["[end]", "[stop]"])
    }
  }
}

import Foundation
import Testing

@testable import BenchmarkCore

func record(
  decode: Double? = 17, tokens: [Double] = [50, 60], footprint: Int64? = 3_000_000_000,
  stopReason: StopReason = .newTokens, throttled: Bool = false
) -> RepeatRecord {
  let memory = Memory(footprintBytes: footprint, rssBytes: nil, availableBytes: nil)
  return RepeatRecord(
    measures: ["time_to_first_token_ms": 700, "prefill_tokens_per_s": 91.5, "decode_tokens_per_s": decode]
      .compactMapValues { $0 },
    promptTokens: 64, generatedTokens: 3, tokenMs: tokens,
    memory: .init(samples: [Sample(atMs: 0, phase: .decode, memory: memory)], peak: memory),
    thermal: .init(before: .unknown, after: .unknown), throttled: throttled, lowMemoryEvents: 0,
    stopReason: stopReason,
    notes: [])
}

func document(
  _ repeats: [RepeatRecord], problem: String? = nil, device: String = "iPhone16,1", promptTokens: Int = 64
)
  throws -> ResultDocument
{
  let configuration = try Configuration(
    promptTokens: promptTokens, newTokens: 3, repeats: 5, warmups: 1, cooldownS: 10, loadMode: .once)
  return ResultDocument(
    created: Date(timeIntervalSince1970: 1_795_000_000.9), problem: problem,
    device: DeviceFacts(model: device, ramBytes: nil, os: "iOS", osVersion: "18.0", abi: "arm64", cores: 6),
    build: BuildFacts(app: "org.pocketphi.bench", appVersion: "1", engine: "pocketphi", executorch: nil),
    model: ModelRecord(file: "m.pte", sizeBytes: 1, sha256: nil, tokenizer: "t.json", manifest: nil),
    runs: [RunRecord(configuration: configuration, repeats: repeats)])
}

@Suite struct ResultTests {
  /// The keys that the schema requires, read from it: none is left out, null or not.
  @Test func everyKeyOfTheSchemaIsWritten() throws {
    let schema = try #require(
      try JSONSerialization.jsonObject(with: Repository.contract("result.schema.json"))
        as? [String: Any])
    let json = try #require(
      try JSONSerialization.jsonObject(with: document([record(decode: nil)]).json()) as? [String: Any])
    let defs = try #require(schema["$defs"] as? [String: [String: Any]])
    func check(_ value: Any?, _ definition: [String: Any]?, more: [String] = []) throws {
      let object = try #require(value as? [String: Any])
      let required = try #require(definition?["required"] as? [String])
      #expect(Set(object.keys) == Set(required + more))
    }
    try check(json, schema)
    for name in ["device", "build", "model"] { try check(json[name], defs[name]) }
    let run = try #require((json["runs"] as? [[String: Any]])?.first)
    try check(run["configuration"], defs["configuration"])
    let summary = try #require(run["summary"] as? [String: Any])
    #expect(Set(summary.keys) == Set(Contract.current.metrics.map(\.name)))
    let first = try #require((run["repeats"] as? [[String: Any]])?.first)
    try check(first, defs["repeat"], more: Contract.current.metrics.filter(\.measured).map(\.name))
    let memory = try #require(first["memory"] as? [String: Any])
    try check(memory["peak"], defs["memory"])
    try check((memory["samples"] as? [Any])?.first, defs["sample"])
    try check((first["thermal"] as? [String: Any])?["before"], defs["thermal"])
    try check(summary["time_to_first_token_ms"], defs["statistics"])
  }

  @Test func nullsAreWrittenAndKeysSorted() throws {
    let text = String(decoding: try document([]).json(), as: UTF8.self)
    #expect(text.contains("\"problem\" : null"))
    #expect(text.contains("\"decode_tokens_per_s\" : null"))
    #expect(text.contains("\"created\" : \"2026-11-18T11:06:40Z\""))
    #expect(text.hasSuffix("}\n"))
    let keys = text.split(separator: "\n").filter { $0.hasPrefix("  \"") }.map { String($0.prefix { $0 != ":" }) }
    #expect(keys == keys.sorted())
    #expect(keys.count == 8)
  }

  @Test func readingGivesWhatWasWritten() throws {
    let written = try document([record(), record(decode: nil, footprint: nil)], problem: "It stopped.")
    #expect(try ResultDocument(json: written.json()) == written)
  }

  @Test func whatIsNoResultIsRefused() throws {
    #expect(badInput { _ = try ResultDocument(json: Data("[".utf8)) }.hasPrefix("This is no benchmark result"))
    let text = String(decoding: try document([]).json(), as: UTF8.self)
    let lacking = text.replacing("\"serial\" : null,", with: "")
    #expect(badInput { _ = try ResultDocument(json: Data(lacking.utf8)) }.contains("device.serial is missing"))
    let other = text.replacing("pocketphi-result/1", with: "pocketphi-result/2")
    #expect(badInput { _ = try ResultDocument(json: Data(other.utf8)) }.contains("\"pocketphi-result/2\""))
  }

  @Test func failedRepeatsAreNotSummed() throws {
    let summary = Summary(of: [
      record(decode: 10), record(decode: 20, tokens: [40]), record(decode: 1, stopReason: .error),
    ])
    #expect(summary["decode_tokens_per_s"]?.median == 15)
    #expect(summary["token_ms"] == Statistics(of: [50, 60, 40]))
    #expect(summary["peak_footprint_bytes"]?.max == 3_000_000_000)
    #expect(summary["peak_rss_bytes"] == nil)
    #expect(summary["load_ms"] == nil)
  }

  @Test func aResultIsWrittenWholeOrNotAtAll() throws {
    let folder = try Folder()
    let store = ResultStore(folder: folder.url.appending(path: "results"))
    let one = try document([])
    let file = try store.write(one, run: "a")
    #expect(try store.read(file).document == one)
    #expect(try FileManager.default.contentsOfDirectory(atPath: store.folder.path) == ["a.json"])
    // A folder under the file's name cannot be replaced by a file.
    try FileManager.default.createDirectory(
      at: store.folder.appending(path: "b.json/x"), withIntermediateDirectories: true)
    #expect(badInput { try store.write(one, run: "b") }.hasPrefix("The result could not be written to b.json"))
    #expect(try FileManager.default.contentsOfDirectory(atPath: store.folder.path).sorted() == ["a.json", "b.json"])
    // JSON has no infinity.
    #expect(badInput { try store.write(document([record(decode: .infinity)]), run: "a") }.contains("a.json"))
    #expect(try store.read(file).document == one)
    #expect(store.list().map(\.name) == ["a"])
  }
}

@Suite struct ComparisonTests {
  @Test func mediansAndTheirDirection() throws {
    let before = try document([record(decode: 20, tokens: [50])])
    let after = try document([record(decode: 18, tokens: [50], footprint: 2_000_000_000)])
    let metrics = Comparison(before: before, after: after).pairs[0].metrics
    func one(_ name: String) -> ComparedMetric { metrics.first { $0.metric.name == name }! }
    #expect(abs(one("decode_tokens_per_s").change! + 0.1) < 1e-9)
    #expect(one("decode_tokens_per_s").verdict == .worse)
    #expect(one("peak_footprint_bytes").verdict == .better)
    #expect(one("token_ms").verdict == .same)
    #expect(one("load_ms").verdict == .unknown)
    #expect(Comparison(before: before, after: after).regressed)
    #expect(!Comparison(before: before, after: after, tolerance: 0.11).regressed)
  }

  @Test func onlySameLengthsAreCompared() throws {
    let other = try document([record()], promptTokens: 512)
    #expect(Comparison(before: other, after: try document([record()])).pairs.isEmpty)
  }

  @Test func differencesAreNamed() throws {
    let before = try document([record(throttled: true)], device: "iPhone15,2")
    let after = try document([record()], problem: "It stopped.")
    #expect(
      Comparison(before: before, after: after).differences == [
        "Other devices: iPhone15,2 and iPhone16,1.", "Some repeats ran on a hot, throttled device.",
        "A run is incomplete.",
      ])
  }
}

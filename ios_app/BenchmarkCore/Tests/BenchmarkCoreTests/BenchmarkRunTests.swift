import Foundation
import Testing

@testable import BenchmarkCore

/// A run over fake parts, and everything that came of it.
final class Rehearsal {
  let folder = try! Folder()
  let clock = FakeClock()
  let probes = FakeProbes()
  let events = Locked<[RunEvent]>([])
  let engines = Locked<[FakeEngine]>([])
  /// How many engines were still loaded in every rest.
  let loadedInRests = Locked<[Int]>([])
  let store: ResultStore
  var script = FakeEngine.Script()

  init() throws {
    store = ResultStore(folder: folder.url.appending(path: "results"))
    try folder.put("m.pte", Made.pte())
    try folder.put("m.json", Made.manifest())
    try folder.put("tokenizer.json", Made.tokenizer(tokens: 100))
  }

  func request(
    _ lengths: [Int] = [12], newTokens: Int = 5, repeats: Int = 2, warmups: Int = 1, mode: LoadMode = .once,
    modes: [Mode] = [.text]
  )
    throws -> RunRequest
  {
    try RunRequest(
      name: "test", model: folder.url.appending(path: "m.pte"),
      tokenizer: folder.url.appending(path: "tokenizer.json"),
      configurations: Configuration.all(
        lengths: lengths, modes: modes, newTokens: newTokens, repeats: repeats, warmups: warmups, cooldownS: 3,
        loadMode: mode))
  }

  func start(_ request: RunRequest) -> BenchmarkRun {
    let around = RunSurroundings(
      device: DeviceFacts(
        model: "iPhone16,1", ramBytes: 8_000_000_000, os: "iOS", osVersion: "18", abi: "arm64", cores: 6),
      build: BuildFacts(app: "test", appVersion: "1", engine: "pocketphi", executorch: "1.5.1"),
      engines: { [clock, script, engines] _ in
        let made = FakeEngine(clock: clock, script: script)
        engines.with { $0.append(made) }
        return made
      },
      probes: probes, store: store, clock: clock, lookEvery: 0.001, sampleEvery: 0.005)
    return BenchmarkRun(request, in: around) { [events, engines, loadedInRests] event in
      events.with { $0.append(event) }
      if case .resting = event {
        let loaded = engines.current.count { $0.unloads.current == 0 }
        loadedInRests.with { $0.append(loaded) }
      }
    }
  }

  var failure: String? {
    if case .failed(let message)? = events.current.last { message } else { nil }
  }
}

@Test func aWholeRunMeasuresWhatTheClockSays() throws {
  let rehearsal = try Rehearsal()
  let result = try #require(rehearsal.start(rehearsal.request([12, 20])).run())
  #expect(result.status == .complete)
  #expect(result.problem == nil)
  #expect(result.runs.map(\.repeats.count) == [2, 2])
  let first = result.runs[0].repeats[0]
  #expect(first.loadMs == 2000)
  #expect(first.promptTokens == 12)
  #expect(first.timeToFirstTokenMs == 60)
  #expect(first.prefillTokensPerS == 200)
  #expect(first.decodeTokensPerS == 20)
  #expect(first.tokenMs == [50, 50, 50, 50])
  #expect(first.stopReason == .newTokens)
  #expect(first.memory.samples.map(\.phase).contains(.load))
  #expect(first.memory.samples.map(\.phase).contains(.prefill))
  #expect(first.memory.samples.map(\.phase).contains(.decode))
  #expect(first.memory.samples.map(\.atMs) == first.memory.samples.map(\.atMs).sorted())
  let highest = first.memory.samples.compactMap(\.memory.footprintBytes).max()!
  #expect(first.memory.peak.footprintBytes! >= highest)
  let others = [result.runs[0].repeats[1], result.runs[1].repeats[0], result.runs[1].repeats[1]]
  #expect(others.allSatisfy { $0.loadMs == nil && $0.notes.isEmpty })
  #expect(result.runs[1].summary["decode_tokens_per_s"]?.median == 20)
  // After the warm-up of each length too, and between the lengths.
  #expect(rehearsal.clock.rested.current == [3, 3, 3, 3])
  #expect(rehearsal.loadedInRests.current == [1, 1, 1, 1])
  #expect(first.packing == .cold)
  #expect(result.runs[0].repeats[1].packing == nil)
  #expect(result.runs.map(\.packings) == ["1 cold", nil])
  #expect(rehearsal.engines.current.count == 1)
  #expect(rehearsal.engines.current[0].unloads.current == 1)
  #expect(try rehearsal.store.read(rehearsal.store.file(run: "test")).document == result)
  if case .done(let file, _)? = rehearsal.events.current.last {
    #expect(file.lastPathComponent == "test.json")
  } else {
    Issue.record("the last event is not done")
  }
}

@Test func loadingForEveryRepeatIsMeasuredEveryTime() throws {
  let rehearsal = try Rehearsal()
  rehearsal.script.packing = .nowhere
  let result = try #require(rehearsal.start(rehearsal.request(repeats: 3, mode: .each)).run())
  #expect(result.runs[0].repeats.map(\.loadMs) == [2000, 2000, 2000])
  let engines = rehearsal.engines.current
  #expect(engines.count == 5)  // one to count the prompt, one for the warm-up
  #expect(engines.allSatisfy { $0.loads.current == 1 && $0.unloads.current == 1 })
  #expect(rehearsal.loadedInRests.current == [0, 0, 0])
  #expect(result.runs[0].repeats.allSatisfy { $0.packing == .nowhere && $0.packingNote == "there is no room" })
  #expect(result.runs[0].packings == "3 none")
  #expect(result.runs[0].remarks == ["No packed weights were kept in a file: there is no room."])
}

@Test func anEngineThatFailsLeavesTheFinishedRepeats() throws {
  let rehearsal = try Rehearsal()
  rehearsal.script.failAt = 2  // the warm-up, a repeat, this one
  let result = try #require(rehearsal.start(rehearsal.request(repeats: 3)).run())
  #expect(result.status == .incomplete)
  #expect(result.problem == "It broke.")
  #expect(rehearsal.failure == "It broke.")
  #expect(result.runs[0].repeats.map(\.stopReason) == [.newTokens, .error])
  #expect(result.runs[0].repeats[1].notes == ["It broke."])
  #expect(result.runs[0].summary["decode_tokens_per_s"]?.max == 20)
  #expect(try rehearsal.store.read(rehearsal.store.file(run: "test")).document == result)
}

@Test func aModelThatDoesNotLoadIsASentence() throws {
  let rehearsal = try Rehearsal()
  rehearsal.script.loadFailure = EngineFailure("There is not enough memory.")
  #expect(rehearsal.start(try rehearsal.request()).run() == nil)
  #expect(rehearsal.failure == "There is not enough memory.")
  #expect(rehearsal.folder.names.contains("results") == false)
}

@Test func stoppingKeepsWhatIsFinished() throws {
  let rehearsal = try Rehearsal()
  let run = Locked<BenchmarkRun?>(nil)
  rehearsal.script.onToken = { generation, token in
    if generation == 2, token == 1 { run.current?.stop() }
  }
  let started = rehearsal.start(try rehearsal.request(repeats: 4))
  run.with { $0 = started }
  let result = try #require(started.run())
  #expect(result.problem == "The run was stopped after 1 of 4 repeats.")
  #expect(result.runs[0].repeats.count == 1)
}

@Test func eventsOfTheSystemAreNotedOnce() throws {
  let rehearsal = try Rehearsal()
  let run = Locked<BenchmarkRun?>(nil)
  let probes = rehearsal.probes
  rehearsal.script.onToken = { generation, token in
    guard generation == 1, token == 0 else { return }
    run.current?.lowMemory()
    run.current?.lowMemory()
    run.current?.note("The app went to the background.")
    probes.status.with { $0 = .severe }
    probes.lowPower.with { $0 = true }
    probes.highest.with { $0 = 5_000_000_000 }
  }
  probes.highest.with { $0 = 100 }
  let started = rehearsal.start(try rehearsal.request())
  run.with { $0 = started }
  let repeats = try #require(started.run()).runs[0].repeats
  #expect(repeats[0].lowMemoryEvents == 2)
  #expect(repeats[0].throttled)
  #expect(repeats[0].memory.peak.footprintBytes == 5_000_000_000)
  #expect(repeats[0].notes == ["The app went to the background.", "The device was in low-power mode."])
  #expect(
    RunRecord(configuration: try rehearsal.request().configurations[0], repeats: repeats).remarks == [
      "The device was hot in repeat 1, 2: slower than it is when cool.",
      "The system warned of low memory, 2 times.",
    ])
  #expect(repeats[1].lowMemoryEvents == 0)
  #expect(repeats[1].memory.peak.footprintBytes! < 5_000_000_000)
  #expect(!repeats[1].notes.contains("The app went to the background."))
}

@Test func aModelThatEndsEarlyIsNoError() throws {
  let rehearsal = try Rehearsal()
  rehearsal.script.endAfter = 1
  let record = try #require(rehearsal.start(rehearsal.request()).run()).runs[0].repeats[0]
  #expect(record.stopReason == .endOfTurn)
  #expect(record.tokenMs.isEmpty)
  #expect(record.decodeTokensPerS == nil)
}

@Test func promptsFromFilesAreTakenAsTheyAre() throws {
  let rehearsal = try Rehearsal()
  let file = try rehearsal.folder.put("p.txt", Data("one two three".utf8))
  let plain = try rehearsal.request([12])
  let request = try RunRequest(
    name: "test", model: plain.model, tokenizer: plain.tokenizer, configurations: plain.configurations,
    promptFiles: [file])
  let result = try #require(rehearsal.start(request).run())
  #expect(Set(rehearsal.engines.current[0].prompts.current) == ["one two three"])
  #expect(result.runs[0].repeats[0].notes == ["The prompt had 3 tokens, 12 were asked for."])
}

@Test(arguments: [LoadMode.once, .each]) func aStopWhileTheModelLoadsCounts(mode: LoadMode) throws {
  let rehearsal = try Rehearsal()
  let run = Locked<BenchmarkRun?>(nil)
  // Before the engine listens: it is asked again as its load goes on.
  rehearsal.script.onLoad = { run.current?.stop() }
  let started = rehearsal.start(try rehearsal.request(mode: mode))
  run.with { $0 = started }
  #expect(started.run() == nil)
  #expect(rehearsal.failure == "The run was stopped after 0 of 2 repeats.")
  #expect(rehearsal.clock.now.current == 1_200_000_000, "it went on loading")
  #expect(rehearsal.engines.current.map(\.unloads.current) == [1])
}

@Test func aFullContextIsRefusedBeforeTheRun() throws {
  let rehearsal = try Rehearsal()
  #expect(rehearsal.start(try rehearsal.request([12, 4092])).run() == nil)
  #expect(
    rehearsal.failure == "4092 prompt tokens and 5 new ones do not fit the model's context of 4096 tokens.")
  #expect(rehearsal.engines.current.isEmpty)
  #expect(try Rehearsal().start(rehearsal.request([12, 4091])).run() != nil)
}

@Test func noRestWithoutWorkBefore() throws {
  let rehearsal = try Rehearsal()
  let file = try rehearsal.folder.put("p.txt", Data("one two three".utf8))
  let plain = try rehearsal.request([3], warmups: 0)
  let request = try RunRequest(
    name: "test", model: plain.model, tokenizer: plain.tokenizer, configurations: plain.configurations,
    promptFiles: [file])
  rehearsal.start(request).run()
  #expect(rehearsal.clock.rested.current == [3])
}

@Test func screensAreToldOfTokensFourTimesASecond() throws {
  let rehearsal = try Rehearsal()
  rehearsal.start(try rehearsal.request(newTokens: 41, repeats: 1, warmups: 0)).run()
  let told = rehearsal.events.current.compactMap { if case .token(let index, _) = $0 { index } else { nil } }
  #expect(told == [0, 5, 10, 15, 20, 25, 30, 35, 40])
}

@Test func filesAreCheckedBeforeAnEngineIsMade() throws {
  let rehearsal = try Rehearsal()
  rehearsal.probes.available.with { $0 = 1200 }
  #expect(rehearsal.start(try rehearsal.request()).run() == nil)
  #expect(rehearsal.failure?.contains("needs 1.5 kB of memory") == true)
  #expect(rehearsal.engines.current.isEmpty)
}

@Suite struct MediaRunTests {
  @Test func picturesAndSoundAreRunsOfTheirOwn() throws {
    let rehearsal = try Rehearsal()
    rehearsal.script.takes = Takes(pictures: true, sound: true, soundRate: 8000)
    rehearsal.script.onEncode = { [probes = rehearsal.probes] in
      probes.footprint.with { $0 = 900_000_000 }
      Thread.sleep(forTimeInterval: 0.05)
      probes.footprint.with { $0 = 700_000_000 }
    }
    let result = try #require(rehearsal.start(try rehearsal.request([12, 20], modes: Mode.allCases)).run())
    #expect(result.problem == nil)
    #expect(result.runs.map { $0.configuration.mode } == [nil, nil, .vision, .speech])
    #expect(result.runs.map { $0.configuration.promptTokens } == [12, 20, 12, 12])
    let repeated = result.runs[2].repeats[1]
    #expect(repeated.measures["encode_ms"] == 400)
    #expect(repeated.promptTokens == 62 && repeated.mediaTokens == 50)
    #expect(repeated.timeToFirstTokenMs == 310, "without what was encoded before")
    #expect(repeated.notes.isEmpty)
    let peak = try #require(repeated.measures["encode_peak_bytes"])
    let left = try #require(repeated.measures["encoded_bytes"])
    #expect(peak > 900_000_000 && left > 700_000_000 && left < 900_000_000)
    #expect(repeated.memory.samples.contains { $0.phase == .encode })
    #expect(result.runs[0].repeats[0].mediaTokens == nil && result.runs[0].summary["encode_ms"] == nil)
    let encoded = rehearsal.engines.current.flatMap(\.encoded.current)
    let sounds = encoded.compactMap { if case .sound(let sound) = $0 { sound.samples.count } else { nil } }
    #expect(encoded.count == 6 && sounds == [40000, 40000, 40000])
    #expect(result.runs[2].configuration.lengths == "12 + 5 tokens with a picture")
    #expect(Comparison(before: result, after: result).pairs.count == 4)
  }

  @Test func aModeThatTheFileHasNotIsASentence() throws {
    let rehearsal = try Rehearsal()
    rehearsal.script.takes = Takes(pictures: true, sound: false, soundRate: 0)
    rehearsal.start(try rehearsal.request(modes: [.speech])).run()
    #expect(rehearsal.failure == "m.pte takes no sound.")
  }
}

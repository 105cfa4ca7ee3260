import Foundation
import Testing

@testable import BenchmarkCore

@Suite struct ChatWorkerTests {
  let clock = FakeClock()

  func worker(_ script: FakeEngine.Script = .init(), system: String? = nil) -> (ChatWorker, FakeEngine) {
    let engine = FakeEngine(clock: clock, script: script)
    return (ChatWorker(engine: engine, system: system, probes: FakeProbes(), clock: clock), engine)
  }

  func all(_ events: AsyncStream<ChatWorker.Event>) async -> [ChatWorker.Event] {
    await events.reduce(into: []) { $0.append($1) }
  }

  func note(_ events: [ChatWorker.Event]) -> String? {
    if case .answered(let note)? = events.last { note } else { nil }
  }

  @Test func aLoadTellsHowFarItIsAndWhereWeightsAre() async {
    let (worker, _) = worker()
    let events = await all(worker.load())
    // Every 200 ms of the clock, of which four a second pass.
    #expect(events.dropLast() == [0.1, 0.3, 0.5, 0.7, 0.9].map { .loading($0) })
    let line = "loaded in 2.00 s, weights packed now, 2 threads, footprint 101.0 MB"
    #expect(events.last == .loaded(line, takes: .text))
    let warm = Loaded(packing: .warm, threads: 4)
    #expect(ChatWorker.line(warm, ms: 700, footprint: nil) == "loaded in 700.0 ms, packed weights reused, 4 threads")
    let kept = Loaded(packing: .nowhere, packingNote: "the disk is full", threads: 4)
    #expect(ChatWorker.line(kept, ms: 700, footprint: nil).contains("packed weights not kept (the disk is full)"))
  }

  @Test func anAnswerIsShownFourTimesASecondAndWhole() async {
    let (worker, engine) = worker(system: "Be brief.")
    let events = await all(worker.ask("Hi", newTokens: 22))
    let texts = events.compactMap { if case .text(let text) = $0 { text } else { nil } }
    #expect(texts.joined() == (0..<22).map { " w\($0)" }.joined())
    // 22 tokens take 1050 ms.
    #expect(texts.map { $0.split(separator: " ").count } == [1, 5, 5, 5, 5, 1])
    #expect(
      events.last
        == .answered(
          "22 tokens, first after 10.0 ms, 20.0 tokens/s, prompt of 2 at 200.0 tokens/s, cut off, footprint 101.0 MB")
    )
    #expect(engine.prompts.current == ["<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>"])
  }

  @Test func aStopEndsALoadAndAnAnswer() async {
    let box = Locked<ChatWorker?>(nil)
    var script = FakeEngine.Script()
    // Before the engine listens, as when the button is pressed at once.
    script.onLoad = { box.current?.stop() }
    script.onToken = { generation, token in if generation == 0, token == 2 { box.current?.stop() } }
    let (worker, engine) = worker(script)
    box.with { $0 = worker }
    #expect(await all(worker.load()) == [.loading(0.1), .stopped])
    let answer = await all(worker.ask("Hi", newTokens: 9))
    #expect(note(answer)?.hasPrefix("3 tokens") == true && note(answer)?.contains("stopped") == true)
    // It is forgotten with the answer that it ended.
    let next = await all(worker.ask("Go on", newTokens: 9))
    #expect(note(next)?.hasPrefix("9 tokens") == true)
    await worker.end()
    #expect(engine.unloads.current == 1)
    box.with { $0 = nil }
  }

  @Test func aFailureIsItsSentence() async {
    var script = FakeEngine.Script()
    script.failAt = 0
    let (worker, engine) = worker(script)
    #expect(await all(worker.ask("Hi", newTokens: 3)) == [.text(" w0"), .failed("It broke.")])
    worker.begin(system: "New.")
    _ = await all(worker.ask("Hi", newTokens: 1))
    #expect(engine.prompts.current.last == "<|system|>New.<|end|><|user|>Hi<|end|><|assistant|>")
  }

  @Test func picturesAndSoundAreEncodedBeforeTheAnswer() async {
    let (worker, engine) = worker()
    let picture = Picture(rgb: [UInt8](repeating: 0, count: 12), width: 2, height: 2)
    let media = [Media.picture(picture), .sound(Sound(samples: [0, 0], rate: 16000))]
    let events = await all(worker.ask("What is this?", media: media, newTokens: 2))
    let told = events.compactMap { if case .encoding(let line) = $0 { line ?? "done" } else { nil } }
    #expect(
      told == [
        "Looking at the picture, part 1 of 2", "Looking at the picture, part 2 of 2",
        "Listening to the sound, part 1 of 2", "Listening to the sound, part 2 of 2", "done",
      ])
    #expect(note(events)?.hasPrefix("100 tokens encoded in 800.0 ms, 2 tokens, first after 515.0 ms") == true)
    #expect(engine.prompts.current == ["<|user|>[media][media]What is this?<|end|><|assistant|>"])
    let more = await all(worker.ask("Sure?", newTokens: 2))
    #expect(note(more)?.hasPrefix("2 tokens, first") == true, "nothing was new")
  }

  @Test func whatCannotBeEncodedLeavesTheConversation() async {
    let box = Locked<ChatWorker?>(nil)
    let fails = Locked(true)
    var script = FakeEngine.Script()
    script.onEncode = { if fails.current { throw EngineFailure("The picture is too narrow.") } }
    let (worker, engine) = worker(script)
    box.with { $0 = worker }
    let media = [Media.picture(Picture(rgb: [0, 0, 0], width: 1, height: 1))]
    #expect(await all(worker.ask("Hi", newTokens: 2)).contains { if case .answered = $0 { true } else { false } })
    let events = await all(worker.ask("And this?", media: media, newTokens: 2))
    #expect(events.last == .refused("The picture is too narrow."))
    fails.with { $0 = false }
    _ = await all(worker.ask("This then?", media: media, newTokens: 2))
    #expect(engine.prompts.current.last == "<|end|><|user|>[media]This then?<|end|><|assistant|>")
    #expect(engine.unloads.current == 0)
  }
}

import Foundation

/// What a run needs of its surroundings.
public struct RunSurroundings: Sendable {
  public var device: DeviceFacts
  public var build: BuildFacts
  public var engines: EngineFactory
  public var probes: any Probes
  public var store: ResultStore
  /// Where the engines keep packed weights; nil: nowhere.
  public var packed: PackedWeights?
  public var clock: any RunClock
  /// Seconds between two looks at the memory, and between two that are kept.
  public var lookEvery: TimeInterval
  public var sampleEvery: TimeInterval

  public init(
    device: DeviceFacts, build: BuildFacts, engines: @escaping EngineFactory, probes: any Probes, store: ResultStore,
    packed: PackedWeights? = nil, clock: any RunClock = SystemClock(), lookEvery: TimeInterval = 0.02,
    sampleEvery: TimeInterval = 1
  ) {
    self.device = device
    self.build = build
    self.engines = engines
    self.probes = probes
    self.store = store
    self.packed = packed
    self.clock = clock
    self.lookEvery = lookEvery
    self.sampleEvery = sampleEvery
  }
}

/// One run: every configuration's warm-ups and repeats, measured; the result is written after each repeat.
/// `run` blocks; the other functions may be called from any thread. Events come from the running thread and, for
/// memory, from the watch's.
public final class BenchmarkRun: Sendable {
  private let request: RunRequest
  private let around: RunSurroundings
  private let onEvent: @Sendable (RunEvent) -> Void
  private let watch: MemoryWatch
  private let engine = Locked<(any TextEngine)?>(nil)
  private let outside = Locked(Outside())

  /// What happens to the run while it is under way.
  private struct Outside {
    var stopped = false
    var lowMemoryEvents = 0
    var notes: [String] = []
  }

  private struct Stopped: Error {}

  public init(_ request: RunRequest, in around: RunSurroundings, onEvent: @escaping @Sendable (RunEvent) -> Void) {
    self.request = request
    self.around = around
    self.onEvent = onEvent
    watch = MemoryWatch(
      probes: around.probes, clock: around.clock, interval: around.lookEvery, keepEvery: around.sampleEvery
    ) { onEvent(.sampled(phase: $0, memory: $1)) }
  }

  /// Ends the run at the token or, while it loads, at the weight it is at; finished repeats stay.
  public func stop() {
    outside.with { $0.stopped = true }
    engine.current?.stop()
  }

  /// The system asked for memory.
  public func lowMemory() {
    outside.with { $0.lowMemoryEvents += 1 }
    onEvent(.lowMemory)
  }

  /// A sentence that the repeat under way should carry.
  public func note(_ sentence: String) {
    outside.with { if !$0.notes.contains(sentence) { $0.notes.append(sentence) } }
  }

  /// Runs to the end; returns the result, or nil where no repeat finished.
  @discardableResult
  public func run() -> ResultDocument? {
    onEvent(.started(appVersion: around.build.appVersion, pid: ProcessInfo.processInfo.processIdentifier))
    watch.start()
    var progress = Progress(runs: request.configurations.map { _ in [] }, created: around.clock.date())
    var problem: String?
    do {
      let files = try ModelFiles(
        model: request.model, tokenizer: request.tokenizer,
        availableBytes: around.probes.memory().availableBytes, executorch: around.build.executorch ?? "",
        packed: around.packed)
      progress.files = files
      for one in request.configurations { try one.check(contextTokens: files.manifest?.contextTokens) }
      try measure(&progress)
    } catch  where error is Stopped || error is EngineStopped {
      problem = "The run was stopped after \(progress.done) of \(request.repeats) repeats."
    } catch {
      problem = error.localizedDescription
    }
    watch.stop()
    unload()
    return finish(progress, problem)
  }

  private func finish(_ progress: Progress, _ problem: String?) -> ResultDocument? {
    let result = progress.files.map { document(progress, $0, problem) }
    guard var problem else {
      onEvent(.done(file: around.store.file(run: request.name), result: result!))
      return result
    }
    if progress.done > 0, let result {
      do {
        try around.store.write(result, run: request.name)
      } catch {
        problem += " \(error.localizedDescription)"
      }
    }
    onEvent(.failed(message: problem))
    return progress.done > 0 ? result : nil
  }

  /// What was measured so far.
  private struct Progress {
    var runs: [[RepeatRecord]]
    let created: Date
    var files: ModelFiles?
    var load: Load?
    var takes = Takes.text
    /// Something was computed since the last rest.
    var warm = false

    var done: Int { runs.reduce(0) { $0 + $1.count } }
  }

  private struct Load {
    let ms: Double
    let loaded: Loaded
    let seen: MemoryWatch.Seen
  }

  private func measure(_ progress: inout Progress) throws {
    for (index, configuration) in request.configurations.enumerated() {
      let prompt = try prompt(index, configuration, &progress)
      for warmup in 0..<configuration.warmups {
        onEvent(.warmup(configuration: index, warmup: warmup))
        try ensureLoaded(&progress)
        progress.warm = true
        _ = try generate(prompt, configuration, &progress)
        if configuration.loadMode == .each { unload() }
      }
      for number in 0..<configuration.repeats {
        if progress.warm { rest(index, number, configuration.cooldownS) }
        progress.warm = true
        try checkStopped()
        if configuration.loadMode == .once { try ensureLoaded(&progress) }
        onEvent(.repeating(configuration: index, repeat: number))
        let (record, failure) = try measureOne(configuration, prompt, &progress)
        progress.runs[index].append(record)
        let unfinished =
          progress.done < request.repeats
          ? Contract.current.goesOn(done: progress.done, all: request.repeats) : nil
        let soFar = document(progress, progress.files!, failure?.localizedDescription ?? unfinished)
        try around.store.write(soFar, run: request.name)
        onEvent(.repeated(configuration: index, repeat: number, record: record, soFar: soFar))
        if let failure { throw failure }
      }
    }
  }

  private func measureOne(
    _ configuration: Configuration, _ prompt: CountedPrompt, _ progress: inout Progress
  ) throws -> (RepeatRecord, (any Error)?) {
    let before = around.probes.thermal()
    var load = progress.load
    progress.load = nil
    var failure: (any Error)?
    var timed: (times: TokenTimes, generated: Generated, encoded: [Encoded])?
    var origin = around.clock.nanoseconds()
    if configuration.loadMode == .each {
      unload()
      load = nil
    }
    // What happened while the model loaded belongs to the repeat that loaded it.
    if load == nil { forgetOutside() }
    do {
      if configuration.loadMode == .each {
        load = try self.load(progress.files!)
        progress.takes = load!.loaded.takes
      }
      let loaded = load.map { max($0.ms, $0.seen.samples.last?.atMs ?? 0) } ?? 0
      origin = around.clock.nanoseconds() - UInt64(loaded * 1e6)
      watch.begin()
      timed = try generate(prompt, configuration, &progress)
    } catch let problem as EngineFailure {
      failure = problem
    }
    watch.enter(.idle)
    var seen = watch.end(origin: origin)
    if let load {
      seen.samples = load.seen.samples + seen.samples
      seen.peak = load.seen.peak.worse(seen.peak)
    }
    let after = around.probes.thermal()
    if configuration.loadMode == .each { unload() }
    let contract = Contract.current
    let promptTokens = timed?.generated.promptTokens ?? prompt.tokens
    let mediaTokens = timed?.encoded.reduce(0) { $0 + $1.tokens } ?? 0
    if promptTokens - mediaTokens != configuration.promptTokens {
      let found = promptTokens - mediaTokens
      note(contract.note("prompt_length", ["found": found, "wanted": configuration.promptTokens]))
    }
    if let made = timed?.generated, made.stopReason == .newTokens, made.generatedTokens < configuration.newTokens {
      note(contract.note("context_full", ["found": made.generatedTokens, "wanted": configuration.newTokens]))
    }
    if before.lowPowerMode == true || after.lowPowerMode == true { note(contract.note("low_power")) }
    if let failure { note(failure.localizedDescription) }
    let happened = outside.current
    var measures = timed?.times.measures(promptTokens: promptTokens) ?? [:]
    measures["load_ms"] = load?.ms
    if let encoded = timed?.encoded, !encoded.isEmpty { measures["encode_ms"] = encoded.reduce(0) { $0 + $1.ms } }
    measures.merge(seen.encoding) { $1 }
    let record = RepeatRecord(
      measures: measures, packing: load?.loaded.packing, packingNote: load?.loaded.packingNote,
      promptTokens: promptTokens, mediaTokens: configuration.mode == nil ? nil : mediaTokens,
      generatedTokens: timed?.generated.generatedTokens ?? 0,
      tokenMs: timed?.times.tokenMs ?? [],
      memory: .init(samples: seen.samples, peak: seen.peak), thermal: .init(before: before, after: after),
      throttled: before.status.throttles || after.status.throttles, lowMemoryEvents: happened.lowMemoryEvents,
      stopReason: failure == nil ? timed!.generated.stopReason : .error,
      notes: progress.files!.notes + happened.notes)
    return (record, failure)
  }

  private func generate(
    _ prompt: CountedPrompt, _ configuration: Configuration, _ progress: inout Progress
  ) throws -> (times: TokenTimes, generated: Generated, encoded: [Encoded]) {
    guard let engine = engine.current else { throw EngineFailure("The model is not loaded.") }
    engine.reset()
    try checkStopped()
    let newTokens = configuration.newTokens
    let media = try standard(configuration.mode ?? .text, progress)
    let parts = media.map { PromptPart.media($0) } + [.text(prompt.text)]
    let encoded = media.isEmpty ? [] : try encode(parts, engine)
    watch.enter(.prefill)
    let clock = around.clock
    let collected = Locked((times: TokenTimes(begin: clock.nanoseconds()), throttle: Throttle()))
    let generated = try engine.generate(parts, newTokens: newTokens) { [watch, onEvent, outside] in
      let now = clock.nanoseconds()
      let (index, first, shown) = collected.with { seen in
        seen.times.tokens.append(now)
        return (seen.times.tokens.count - 1, seen.times.tokens[0], seen.throttle.passes(at: now))
      }
      if index == 0 { watch.enter(.decode) }
      if outside.current.stopped { engine.stop() }
      if shown { onEvent(.token(index: index, sinceFirstMs: Double(now - first) / 1e6)) }
    } onText: { _ in
    }
    watch.enter(.idle)
    try checkStopped()
    guard generated.generatedTokens > 0 else { throw EngineFailure("The model made no tokens.") }
    return (collected.current.times, generated, encoded)
  }

  private func standard(_ mode: Mode, _ progress: Progress) throws -> [Media] {
    guard progress.takes.contains(mode) else {
      let what = mode == .vision ? "pictures" : "sound"
      throw EngineFailure("\(progress.files!.model.lastPathComponent) takes no \(what).")
    }
    return Contract.current.media.media(mode, rate: progress.takes.soundRate)
  }

  private func encode(_ parts: [PromptPart], _ engine: any TextEngine) throws -> [Encoded] {
    watch.enter(.encode)
    let encoded = try engine.encode(parts) { [outside] _ in
      if outside.current.stopped { engine.stop() }
    }
    watch.lookNow()
    try checkStopped()
    return encoded
  }

  private func prompt(_ index: Int, _ configuration: Configuration, _ progress: inout Progress) throws
    -> CountedPrompt
  {
    if !request.promptFiles.isEmpty {
      let file = request.promptFiles[index]
      guard let text = try? String(contentsOf: file, encoding: .utf8) else {
        throw BadInput("The prompt \(file.lastPathComponent) cannot be read as text in UTF-8.")
      }
      guard !text.isEmpty else { throw BadInput("The prompt \(file.lastPathComponent) is empty.") }
      return CountedPrompt(text: text, tokens: configuration.promptTokens)
    }
    onEvent(.counting(configuration: index))
    try ensureLoaded(&progress)
    guard let engine = engine.current else { throw EngineFailure("The model is not loaded.") }
    let counted = try PromptText.ofLength(configuration.promptTokens, count: engine.count)
    if configuration.loadMode == .each { unload() }
    return counted
  }

  private func ensureLoaded(_ progress: inout Progress) throws {
    try checkStopped()
    guard engine.current == nil else { return }
    progress.warm = true
    forgetOutside()
    progress.load = try load(progress.files!)
    progress.takes = progress.load!.loaded.takes
  }

  private func load(_ files: ModelFiles) throws -> Load {
    onEvent(.loading)
    watch.begin()
    watch.enter(.load)
    let start = around.clock.nanoseconds()
    let made = around.engines(files)
    engine.with { $0 = made }
    let loaded = try made.load { [outside] _ in
      // A stop that came before the load began is forgotten by the engine.
      if outside.current.stopped { made.stop() }
    }
    let ms = around.clock.milliseconds(since: start)
    let seen = watch.end(origin: start)
    watch.enter(.idle)
    onEvent(.loaded(loaded, loadMs: ms))
    try checkStopped()
    return Load(ms: ms, loaded: loaded, seen: seen)
  }

  private func unload() {
    let old = engine.with { engine in
      defer { engine = nil }
      return engine
    }
    old?.unload()
  }

  private func rest(_ index: Int, _ number: Int, _ seconds: Double) {
    guard seconds > 0 else { return }
    onEvent(.resting(configuration: index, repeat: number, seconds: seconds))
    around.clock.rest(seconds: seconds) { outside.current.stopped }
  }

  private func forgetOutside() {
    outside.with { ($0.lowMemoryEvents, $0.notes) = (0, []) }
  }

  private func checkStopped() throws {
    if outside.current.stopped { throw Stopped() }
  }

  private func document(_ progress: Progress, _ files: ModelFiles, _ problem: String?) -> ResultDocument {
    ResultDocument(
      created: progress.created, problem: problem, device: around.device, build: around.build,
      model: files.record(sha256: request.modelSha256),
      runs: zip(request.configurations, progress.runs).map { RunRecord(configuration: $0, repeats: $1) })
  }
}

import BenchmarkCore
import CPocketphi
import Foundation

/// `TextEngine` over the functions of pocketphi.h and pocketphi_tokenizer.h. Pictures and sounds of the conversation are
/// kept as they were given: with the first picture what was said before is fed anew, and sounds are encoded anew, as the
/// engine answers with other weights then.
///
/// Unchecked: `conversation` and `tokenizer` are used by the running call alone, which holds `turn`; the handle is freed
/// by whoever holds `turn` and has taken it out of `state`; everything else that threads share is in `state`, a lock.
public final class NativeEngine: TextEngine, @unchecked Sendable {
  /// In results.
  public static let name = "pocketphi"
  /// The release of ExecuTorch that the app holds.
  public static let executorch = "1.5.1"

  private struct State {
    var handle: OpaquePointer?
    var running = false
    var stopAsked = false
    var closing = false
  }

  private let files: ModelFiles
  private let settings: EngineSettings
  private let packed: PackedWeights?
  private let turn = NSLock()
  private let state = Locked(UncheckedBox(State()))
  private var tokenizer: Tokenizer?
  private var conversation = Transcript()

  public init(files: ModelFiles, settings: EngineSettings = EngineSettings(), packed: PackedWeights?) {
    self.files = files
    self.settings = settings
    self.packed = packed
  }

  deinit { unload() }

  public func load(onProgress: @escaping (Double) -> Void) throws -> Loaded {
    try call { handle in
      (tokenizer, conversation) = (nil, Transcript())
      let tokenizer = try Tokenizer(file: files.tokenizer)
      // Where it cannot be made, the engine says so in its note.
      try? packed?.prepare()
      let progress = Progress(told: onProgress) { [self] in stopAgain(handle) }
      var report = pocketphi_load_report()
      try check { error in
        withOptionalCString(packed?.folder.path(percentEncoded: false)) { folder in
          files.model.path(percentEncoded: false).withCString { model in
            var options = pocketphi_load_options()
            options.model = model
            options.cache_dir = folder
            options.threads = Int32(clamping: settings.threads)
            options.context = Unmanaged.passUnretained(progress).toOpaque()
            options.on_progress = { context, bytes, of in
              let progress = Unmanaged<Progress>.fromOpaque(context!).takeUnretainedValue()
              progress.told(of > 0 ? Double(bytes) / Double(of) : 1)
              progress.after()
            }
            return withExtendedLifetime(progress) { pocketphi_load(handle, &options, &report, error) }
          }
        }
      }
      self.tokenizer = tokenizer
      let note = withUnsafeBytes(of: report.packed_note) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
      let packing: Packing =
        switch UInt32(report.packing) {
        case POCKETPHI_PACKED.rawValue: .cold
        case POCKETPHI_REUSED.rawValue: .warm
        default: .nowhere
        }
      return Loaded(
        packing: packing, packingNote: packing == .nowhere ? named(note) : nil, threads: Int(report.threads),
        takes: Takes(
          pictures: report.takes_pictures, sound: report.takes_sound, soundRate: Int(report.sound_rate)))
    }
  }

  public func count(_ text: String) throws -> Int {
    try call { _ in try loadedTokenizer().encode(text).count }
  }

  public func encode(_ prompt: [PromptPart], onPart: @escaping (EncodingStep) -> Void) throws -> [Encoded] {
    try call { handle in
      var whole = conversation + (try spelled(prompt))
      return try encodeMissing(handle, &whole, onPart)
    }
  }

  public func generate(
    _ prompt: [PromptPart], newTokens: Int, onToken: @escaping () -> Void, onText: @escaping (String) -> Void
  ) throws -> Generated {
    try call { handle in
      let tokenizer = try loadedTokenizer()
      var whole = conversation + (try spelled(prompt))
      _ = try encodeMissing(handle, &whole) { _ in }
      let ids = whole.ids
      let answer = Answer(tokenizer: tokenizer, onToken: onToken, onText: onText) { [self] in stopAgain(handle) }
      let stops = ChatTemplate.stops.map { strdup($0) }
      defer { for stop in stops { free(stop) } }
      var result = pocketphi_result()
      try check { error in
        stops.map { UnsafePointer($0) }.withUnsafeBufferPointer { texts in
          var how = answer.how
          how.max_new_tokens = Int64(newTokens)
          how.temperature = Float(settings.temperature)
          how.top_k = Int32(clamping: settings.topK)
          how.top_p = Float(settings.topP)
          how.seed = settings.seed
          how.draft_tokens = Int32(clamping: settings.draftTokens)
          how.stop_texts = texts.baseAddress
          how.stop_text_count = texts.count
          return withExtendedLifetime(answer) { pocketphi_generate(handle, ids, ids.count, &how, &result, error) }
        }
      }
      conversation = whole + Transcript(pieces: [.ids(answer.tokens)])
      // Fed, so that their rows are of no more use.
      if whole.hasMedia, UInt32(result.end) != POCKETPHI_END_STOPPED.rawValue { pocketphi_forget_media(handle, nil) }
      let reason: StopReason =
        switch UInt32(result.end) {
        case POCKETPHI_END_TOKEN.rawValue, POCKETPHI_END_TEXT.rawValue: .endOfTurn
        case POCKETPHI_END_STOPPED.rawValue: .stopped
        default: .newTokens
        }
      return Generated(
        promptTokens: Int(result.prompt_tokens), reusedTokens: Int(result.reused_tokens),
        generatedTokens: Int(result.new_tokens), acceptedTokens: Int(result.accepted_tokens), stopReason: reason)
    }
  }

  public func stop() {
    state.with { state in
      guard state.value.running else { return }
      state.value.stopAsked = true
      pocketphi_stop(state.value.handle)
    }
  }

  /// Gives the memory of the conversation back too, so that each begins as the first did.
  public func reset() {
    try? call { handle in
      conversation = Transcript()
      // Without a model there is nothing to forget.
      _ = pocketphi_release(handle, nil)
      _ = pocketphi_forget_media(handle, nil)
    }
  }

  public func unload() {
    state.with { $0.value.closing = true }
    // Again and again: a call that is about to begin forgets a stop that came before.
    while !turn.try() {
      stop()
      Thread.sleep(forTimeInterval: 0.005)
    }
    defer { turn.unlock() }
    let handle = state.with { state in
      defer { state.value = State() }
      return state.value.handle
    }
    pocketphi_close(handle, nil)
    (tokenizer, conversation) = (nil, Transcript())
  }

  // ---- pictures and sound

  private func spelled(_ prompt: [PromptPart]) throws -> Transcript {
    let tokenizer = try loadedTokenizer()
    return Transcript(
      pieces: try prompt.map { part in
        switch part {
        case .text(let text): .ids(try tokenizer.encode(text))
        case .media(let media): .media(conversation.known[media.id] ?? MediaIds(media))
        }
      })
  }

  /// Everything of `whole` whose rows the engine will look for; what the session has been fed of it is not.
  private func encodeMissing(
    _ handle: OpaquePointer, _ whole: inout Transcript, _ onPart: @escaping (EncodingStep) -> Void
  ) throws -> [Encoded] {
    guard whole.hasMedia else { return [] }
    let mode = whole.mode
    let fed = try tokens(handle)
    var made: [Encoded] = []
    for (at, ids) in whole.media where !whole.isFed(at, fed) {
      let (encoded, first) = try encode(handle, ids.media, mode, onPart)
      ids.by[mode] = (0..<Int64(encoded.tokens)).map { first - $0 }
      conversation.known[ids.media.id] = ids
      made.append(encoded)
    }
    whole.known = conversation.known
    return made
  }

  private func encode(
    _ handle: OpaquePointer, _ media: Media, _ mode: Mode, _ onPart: @escaping (EncodingStep) -> Void
  ) throws -> (Encoded, first: Int64) {
    let watcher = Watcher { [self] done, of in
      onPart(EncodingStep(media: media, done: done, of: of))
      stopAgain(handle)
    }
    try check { error in
      pocketphi_watch_encoding(
        handle,
        { context, done, of in
          Unmanaged<Watcher>.fromOpaque(context!).takeUnretainedValue().told(Int(done), Int(of))
        }, Unmanaged.passUnretained(watcher).toOpaque(), error)
    }
    defer { withExtendedLifetime(watcher) { _ = pocketphi_watch_encoding(handle, nil, nil, nil) } }
    var made = pocketphi_encoded()
    try check { error in
      switch media {
      case .picture(let picture):
        // The engine reads as many bytes as the sizes say.
        guard picture.width > 0, picture.rgb.count == 3 * picture.width * picture.height else {
          return refuse(error, "the picture has fewer or more bytes than its width and height need")
        }
        return pocketphi_picture(handle, picture.rgb, picture.width, picture.height, &made, error)
      case .sound(let sound):
        return pocketphi_sound(
          handle, sound.samples, sound.samples.count, Int32(clamping: sound.rate), mode.native, &made, error)
      }
    }
    let encoded = Encoded(
      tokens: Int(made.count), parts: Int(made.parts), reused: made.reused, prepareMs: made.prepare_ms,
      encodeMs: made.encode_ms)
    return (encoded, made.first_id)
  }

  private func refuse(_ error: UnsafeMutablePointer<pocketphi_error>, _ sentence: String) -> pocketphi_status {
    withUnsafeMutableBytes(of: &error.pointee.text) { $0.copyBytes(from: Array(sentence.utf8) + [0]) }
    return POCKETPHI_BAD_INPUT
  }

  private func tokens(_ handle: OpaquePointer) throws -> [Int64] {
    var count = 0
    try check { pocketphi_tokens(handle, nil, 0, &count, $0) }
    var ids = [Int64](repeating: 0, count: count)
    try check { pocketphi_tokens(handle, &ids, ids.count, &count, $0) }
    return ids
  }

  /// Ids that the engine has been fed, for tests.
  func held() throws -> [Int64] {
    try call { try tokens($0) }
  }

  // ---- one call at a time

  private func call<Value>(_ work: (OpaquePointer) throws -> Value) throws -> Value {
    turn.lock()
    defer { turn.unlock() }
    let handle = try state.with { state -> UncheckedBox<OpaquePointer> in
      if state.value.closing { throw EngineStopped() }
      if state.value.handle == nil { state.value.handle = pocketphi_create() }
      guard let handle = state.value.handle else { throw EngineFailure("There is not enough memory for the engine.") }
      (state.value.running, state.value.stopAsked) = (true, false)
      return UncheckedBox(handle)
    }
    defer { state.with { $0.value.running = false } }
    return try work(handle.value)
  }

  /// A stop may come after `call` and before the engine, which forgets it as its call begins.
  private func stopAgain(_ handle: OpaquePointer) {
    if state.with({ $0.value.stopAsked || $0.value.closing }) { pocketphi_stop(handle) }
  }

  private func loadedTokenizer() throws -> Tokenizer {
    guard let tokenizer else { throw EngineFailure("The model is not loaded.") }
    return tokenizer
  }

  private func check(_ function: (UnsafeMutablePointer<pocketphi_error>) -> pocketphi_status) throws {
    var error = pocketphi_error()
    switch function(&error) {
    case POCKETPHI_OK: return
    case POCKETPHI_STOPPED: throw EngineStopped()
    default: throw EngineFailure(sentence(error.sentence))
    }
  }

  /// The engine's words with files by their names alone.
  private func named(_ words: String) -> String {
    [files.model, packed?.folder].compactMap { $0 }.reduce(words) {
      $0.replacing($1.path(percentEncoded: false), with: $1.lastPathComponent)
    }
  }

  /// And with a full stop, and a capital unless it begins with a file.
  private func sentence(_ words: String) -> String {
    let named = named(words)
    let isFile = named.prefix { $0 != " " }.contains(".")
    return (isFile ? named : named.prefix(1).uppercased() + named.dropFirst()) + "."
  }
}

/// Of a load that is under way.
private final class Progress {
  let told: (Double) -> Void
  let after: () -> Void

  init(told: @escaping (Double) -> Void, after: @escaping () -> Void) {
    self.told = told
    self.after = after
  }
}

/// Of a picture or sound that is being encoded.
private final class Watcher {
  let told: (Int, Int) -> Void

  init(told: @escaping (Int, Int) -> Void) {
    self.told = told
  }
}

extension Mode {
  fileprivate var native: pocketphi_mode {
    switch self {
    case .text: POCKETPHI_TEXT
    case .vision: POCKETPHI_VISION
    case .speech: POCKETPHI_SPEECH
    }
  }
}

/// An answer under way: the context of the engine's callbacks, which come on the thread that asked.
private final class Answer {
  private let tokenizer: Tokenizer
  private let onToken: () -> Void
  private let onText: (String) -> Void
  private let after: () -> Void
  var tokens: [Int64] = []

  init(
    tokenizer: Tokenizer, onToken: @escaping () -> Void, onText: @escaping (String) -> Void,
    after: @escaping () -> Void
  ) {
    self.tokenizer = tokenizer
    self.onToken = onToken
    self.onText = onText
    self.after = after
  }

  /// The callbacks, for as long as this object lives.
  var how: pocketphi_generation {
    var how = pocketphi_generation()
    how.context = Unmanaged.passUnretained(self).toOpaque()
    how.decode = { context, ids, count, out, capacity in
      Answer.of(context).tokenizer.decode(ids, count, out, capacity)
    }
    how.on_token = { context, id, _ in
      let answer = Answer.of(context)
      answer.tokens.append(id)
      answer.onToken()
      answer.after()
    }
    how.on_text = { context, text, length in
      let bytes = UnsafeRawBufferPointer(start: text, count: length)
      Answer.of(context).onText(String(decoding: bytes, as: UTF8.self))
    }
    return how
  }

  private static func of(_ context: UnsafeMutableRawPointer?) -> Answer {
    Unmanaged<Answer>.fromOpaque(context!).takeUnretainedValue()
  }
}

/// What is passed on under a lock, or by one thread, though its type does not say that it may be.
struct UncheckedBox<Value>: @unchecked Sendable {
  var value: Value

  init(_ value: Value) {
    self.value = value
  }
}

extension pocketphi_error {
  var sentence: String {
    withUnsafeBytes(of: text) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
  }
}

private func withOptionalCString<Value>(_ text: String?, _ body: (UnsafePointer<CChar>?) -> Value) -> Value {
  guard let text else { return body(nil) }
  return text.withCString { body($0) }
}

/// A conversation whose context stays in the engine: every turn feeds only what is new.
/// The engine has not read the last token it made, so that one is fed with the next turn.
public final class ChatSession {
  private let engine: any TextEngine
  private var unread = ""
  public private(set) var messages: [Message] = []

  public init(engine: any TextEngine, system: String?) {
    self.engine = engine
    if let system, !system.isEmpty {
      messages.append(Message(role: .system, content: system))
      unread = ChatTemplate.turn(messages[0])
    }
  }

  /// Answers `text` with at most `newTokens` tokens; `onText` gets what a person should see. Throws `EngineFailure`,
  /// after which the conversation must begin anew.
  public func ask(_ text: String, newTokens: Int, onText: @escaping (String) -> Void) throws -> Generated {
    let question = Message(role: .user, content: text)
    messages.append(question)
    let answer = Answer()
    let prompt = unread + ChatTemplate.turn(question) + ChatTemplate.open(.assistant)
    let generated = try engine.generate(prompt, promptTokens: nil, newTokens: newTokens) { piece in
      answer.last = piece
      let visible = answer.scanner.show(piece)
      answer.text += visible
      if !visible.isEmpty { onText(visible) }
    }
    let rest = answer.scanner.rest()
    if !rest.isEmpty { onText(rest) }
    messages.append(Message(role: .assistant, content: answer.text + rest))
    let ended = generated.stopReason == .endOfTurn || answer.scanner.stopped
    unread = (ended ? "" : answer.last) + ChatTemplate.end
    return generated
  }

  private final class Answer {
    var scanner = StopScanner()
    var text = ""
    var last = ""
  }
}

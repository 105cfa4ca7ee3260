/// A conversation whose context stays in the engine: every turn feeds only what is new.
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

  /// Answers `text` with at most `newTokens` tokens; `onText` gets what a person should see. After an error the
  /// conversation must begin anew.
  public func ask(
    _ text: String, newTokens: Int, onToken: @escaping () -> Void = {}, onText: @escaping (String) -> Void
  ) throws -> Generated {
    let question = Message(role: .user, content: text)
    messages.append(question)
    let prompt = unread + ChatTemplate.turn(question) + ChatTemplate.open(.assistant)
    var answer = ""
    let generated = try engine.generate(prompt, newTokens: newTokens, onToken: onToken) { piece in
      answer += piece
      onText(piece)
    }
    messages.append(Message(role: .assistant, content: answer))
    // The token that ended the answer was not read.
    unread = ChatTemplate.end
    return generated
  }
}

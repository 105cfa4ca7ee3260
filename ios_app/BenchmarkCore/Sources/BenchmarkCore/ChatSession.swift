/// A conversation whose context stays in the engine: every turn feeds only what is new.
public final class ChatSession {
  private let engine: any TextEngine
  private var unread = ""
  private var hasMedia = false
  public private(set) var messages: [Message] = []
  /// For the last question.
  public private(set) var encoded: [Encoded] = []

  public init(engine: any TextEngine, system: String?) {
    self.engine = engine
    if let system, !system.isEmpty {
      messages.append(Message(role: .system, content: system))
      unread = ChatTemplate.turn(messages[0])
    }
  }

  /// Answers `text` with `media` before it, with at most `newTokens` tokens; `onText` gets what a person should see,
  /// `onEncode` each part of a picture or sound before it is encoded, and nil when all are. `MediaRefused` where one
  /// cannot be used or encoding was stopped: the conversation is as before. After another error it must begin anew.
  public func ask(
    _ text: String, media: [Media] = [], newTokens: Int, onEncode: @escaping (EncodingStep?) -> Void = { _ in },
    onToken: @escaping () -> Void = {}, onText: @escaping (String) -> Void
  ) throws -> Generated {
    let question = Message(role: .user, content: text, media: media)
    let prompt = ChatTemplate.parts(after: unread, question, then: ChatTemplate.open(.assistant))
    encoded = media.isEmpty && !hasMedia ? [] : try encode(prompt, onEncode)
    hasMedia = hasMedia || !media.isEmpty
    messages.append(question)
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

  private func encode(_ prompt: [PromptPart], _ onEncode: @escaping (EncodingStep?) -> Void) throws -> [Encoded] {
    do {
      let encoded = try engine.encode(prompt, onPart: onEncode)
      onEncode(nil)
      return encoded
    } catch let problem as EngineFailure {
      throw MediaRefused(message: problem.localizedDescription)
    } catch is EngineStopped {
      throw MediaRefused(message: nil)
    }
  }
}

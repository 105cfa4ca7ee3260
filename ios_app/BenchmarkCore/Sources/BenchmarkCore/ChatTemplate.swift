/// Who says something in a conversation.
public enum Role: String, Codable, Sendable {
  case system, user, assistant
}

/// `media` stands before the text.
public struct Message: Sendable {
  public let role: Role
  public let content: String
  public let media: [Media]

  public init(role: Role, content: String, media: [Media] = []) {
    self.role = role
    self.content = content
    self.media = media
  }
}

/// The chat format of the contract.
public enum ChatTemplate {
  public static var end: String { Contract.current.chat.end }
  /// Texts of the tokens that end an answer.
  public static var stops: [String] { Contract.current.chat.stops }

  /// The prompt that lets the model answer `messages`.
  public static func render(_ messages: [Message]) -> String {
    messages.map(turn).joined() + open(.assistant)
  }

  static func turn(_ message: Message) -> String { open(message.role) + message.content + end }

  /// A turn with its pictures and sounds, after what the turn before it left.
  static func parts(after before: String, _ message: Message, then rest: String) -> [PromptPart] {
    guard !message.media.isEmpty else { return [.text(before + turn(message) + rest)] }
    return [.text(before + open(message.role))] + message.media.map { .media($0) }
      + [.text(message.content + end + rest)]
  }

  static func open(_ role: Role) -> String {
    Contract.current.chat.turn.replacing("{role}", with: role.rawValue)
  }
}

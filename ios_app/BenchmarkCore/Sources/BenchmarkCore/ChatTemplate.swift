/// Who says something in a conversation.
public enum Role: String, Codable, Sendable {
  case system, user, assistant
}

public struct Message: Codable, Equatable, Sendable {
  public let role: Role
  public let content: String

  public init(role: Role, content: String) {
    self.role = role
    self.content = content
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

  static func open(_ role: Role) -> String {
    Contract.current.chat.turn.replacing("{role}", with: role.rawValue)
  }
}

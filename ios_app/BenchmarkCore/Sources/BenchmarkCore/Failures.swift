import Foundation

/// Something the user gave cannot be used; `message` is a sentence for a person.
public struct BadInput: Error, Equatable, LocalizedError {
  public let message: String

  public init(_ message: String) {
    self.message = message
  }

  public var errorDescription: String? { message }
}

/// The engine failed; `message` is a sentence for a person, `code` the runner's, where it gave one.
public struct EngineFailure: Error, Equatable, LocalizedError {
  public let message: String
  public let code: Int?

  public init(_ message: String, code: Int? = nil) {
    self.message = message
    self.code = code
  }

  public var errorDescription: String? { message }
}

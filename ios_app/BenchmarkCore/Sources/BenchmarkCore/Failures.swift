import Foundation

/// Something the user gave cannot be used; `message` is a sentence for a person.
public struct BadInput: Error, Equatable, LocalizedError {
  public let message: String

  public init(_ message: String) {
    self.message = message
  }

  public var errorDescription: String? { message }
}

/// The engine failed; `message` is a sentence for a person.
public struct EngineFailure: Error, Equatable, LocalizedError {
  public let message: String

  public init(_ message: String) {
    self.message = message
  }

  public var errorDescription: String? { message }
}

/// Somebody stopped the engine.
public struct EngineStopped: Error, Equatable, Sendable {
  public init() {}
}

/// A picture or sound could not be used, or its encoding was stopped (then there is no message); what was said before it
/// stays.
public struct MediaRefused: Error {
  public let message: String?
}

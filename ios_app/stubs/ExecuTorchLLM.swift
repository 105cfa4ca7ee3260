// What the app uses of ExecuTorch's module ExecuTorchLLM, so that the file that uses it can be type-checked where the
// module cannot be had. Declared after reading the public Objective-C headers under extension/llm/apple
// (ExecuTorchLLMConfig.h, ExecuTorchLLMTextRunner.h, ExecuTorchLLMError.h), which are the same in release 1.4.1 and on
// the main branch at version 1.5.0 (commit cff6f4dd32, August 2026), as Swift imports them. The app never links this.
import Foundation

/// ExecuTorchLLMConfig.
public final class Config: NSObject {
  public var isEchoEnabled = true
  public var maximumNewTokens = -1
  public var isWarming = false
  public var sequenceLength = -1
  public var temperature = 0.8
  public var bosCount = 0
  public var eosCount = 0

  public override init() {}

  public init(_ block: (Config) -> Void) {
    super.init()
    block(self)
  }
}

/// ExecuTorchLLMTextRunner. The Objective-C class is not Sendable either.
open class TextRunner: NSObject {
  public convenience init(modelPath: String, tokenizerPath: String) {
    self.init(modelPath: modelPath, tokenizerPath: tokenizerPath, specialTokens: [])
  }

  public init(modelPath: String, tokenizerPath: String, specialTokens: [String]) {}

  open func isLoaded() -> Bool { fatalError("a declaration only") }

  open func load() throws { fatalError("a declaration only") }

  open func generate(_ prompt: String, _ config: Config, tokenCallback callback: ((String) -> Void)? = nil) throws {
    fatalError("a declaration only")
  }

  open func stop() {}

  open func reset() {}
}

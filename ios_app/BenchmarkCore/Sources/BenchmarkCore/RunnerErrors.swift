/// ExecuTorch's error codes as sentences.
public enum RunnerErrors {
  /// What TextRunner gives where there is no runner at all: no tokenizer, or a program without the metadata.
  public static let noRunner = -1
  private static let invalidArgument = 0x12

  /// What a failed load means for a person.
  public static func loading(code: Int, model: String, tokenizer: String) -> EngineFailure {
    if code == noRunner {
      return EngineFailure(
        "The runner could not be made: \(tokenizer) is no tokenizer it can read, or \(model) lacks the metadata of a "
          + "language model.", code: code)
    }
    return EngineFailure("\(model) could not be loaded: \(reason(code)).", code: code)
  }

  /// What a failed generation means for a person.
  public static func generating(code: Int, promptTokens: Int?, newTokens: Int) -> EngineFailure {
    let asked = promptTokens.map { " (\($0) prompt and \(newTokens) new tokens were asked for)" } ?? ""
    if code == invalidArgument {
      return EngineFailure(
        "The prompt does not fit the model's context, or its text cannot be tokenized\(asked) (code 0x12).",
        code: code)
    }
    return EngineFailure("The model stopped with an error\(asked): \(reason(code)).", code: code)
  }

  private static func reason(_ code: Int) -> String {
    let digits = String(code, radix: 16)
    let hex = code < 0 ? String(code) : "0x" + String(repeating: "0", count: max(0, 2 - digits.count)) + digits
    return (reasons[code] ?? "ExecuTorch gives no reason that is known here") + " (code \(hex))"
  }

  // runtime/core/error.h
  private static let reasons: [Int: String] = [
    0x01: "something inside ExecuTorch failed; the file may be damaged or its tokenizer of another kind",
    0x02: "the model is not in a state to do this; the tokenizer may not have loaded",
    0x10: "the file needs something that this build of ExecuTorch cannot do",
    0x11: "the file needs something that this build of ExecuTorch does not have yet",
    0x12: "a value in the file or the request is not valid",
    0x13: "a tensor in the file has another type than the runtime expects",
    0x14: "this build lacks an operator that the file uses; it was exported for another version or other kernels",
    0x20: "something it needs was not found; the file may lack a method, or a backend is not in this build",
    0x21: "there is not enough memory",
    0x22: "the file could not be read",
    0x23: "this is not a valid .pte, or only a part of one; copy it again",
    0x24: "the weights beside the program are not valid; copy them again",
    0x25: "the device has not enough memory or other resources for it",
    0x30: "it was made for another version of the backend; export it with the ExecuTorch version of this app",
    0x31: "the backend could not get enough memory for the weights",
    0x32: "the backend lost its model",
  ]
}

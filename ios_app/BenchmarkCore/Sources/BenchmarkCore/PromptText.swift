/// A prompt and how many tokens it has.
struct CountedPrompt: Equatable {
  let text: String
  let tokens: Int
}

/// Text of a wanted number of tokens, for an engine that counts but does not tokenize.
enum PromptText {
  private static let words =
    ("The old harbour lay quiet in the morning light while the boats came home from the sea . "
    + "People walked along the long stone wall and talked about the weather , the price of fish and the children . "
    + "A small dog ran up and down between them and looked for something to eat .").split(separator: " ")
  private static let tries = 8

  /// So many words of a text that begins again at its end.
  static func text(words count: Int) -> String {
    (0..<count).map { words[$0 % words.count] }.joined(separator: " ")
  }

  /// The text with `tokens` tokens or, where none that was tried has just as many, the nearest. `count` costs a
  /// prefill, so the next try is always a straight line's guess.
  static func ofLength(_ tokens: Int, count: (String) throws -> Int) rethrows -> CountedPrompt {
    var tried: [Int: Int] = [:]
    var words = tokens
    for _ in 0..<tries where tried[words] == nil {
      let found = try count(text(words: words))
      tried[words] = found
      if found == tokens { break }
      words = next(after: words, found: found, wanted: tokens, tried: tried)
    }
    let nearest = tried.min { (abs($0.value - tokens), $0.key) < (abs($1.value - tokens), $1.key) }!
    return CountedPrompt(text: text(words: nearest.key), tokens: nearest.value)
  }

  private static func next(after words: Int, found: Int, wanted: Int, tried: [Int: Int]) -> Int {
    let other = tried.filter { $0.key != words }.min { abs($0.value - wanted) < abs($1.value - wanted) }
    var slope = Double(found) / Double(words)
    if let other {
      let between = Double(found - other.value) / Double(words - other.key)
      if between > 0.1 { slope = between }
    }
    let guess = max(1, Int((Double(words) + Double(wanted - found) / max(slope, 0.1)).rounded()))
    return tried[guess] == nil ? guess : max(1, words + (found < wanted ? 1 : -1))
  }
}

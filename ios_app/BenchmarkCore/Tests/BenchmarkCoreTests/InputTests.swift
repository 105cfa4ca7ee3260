import Foundation
import Testing

@testable import BenchmarkCore

@Suite struct LaunchArgumentTests {
  let documents = URL(filePath: "/docs")

  func message(_ arguments: [String]) -> String {
    badInput { _ = try LaunchArguments(arguments).request(documents: documents) }
  }

  @Test func allOfThem() throws {
    let arguments =
      "-NSDocumentRevisionsDebugMode YES --run r-1 --model m.pte --tokenizer t/tokenizer.json --prompt-tokens 64,512 "
      + "--new-tokens 32 --repeats 3 --warmups 0 --cooldown 2.5 --load-mode each --prompt-files a.txt,b.txt "
      + "--model-sha256 \(String(repeating: "a", count: 64))"
    let words = arguments.split(separator: " ").map(String.init)
    #expect(LaunchArguments.areScripted(words))
    let request = try LaunchArguments(words).request(documents: documents)
    #expect(request.name == "r-1")
    #expect(request.model.path == "/docs/m.pte")
    #expect(request.tokenizer.path == "/docs/t/tokenizer.json")
    #expect(request.promptFiles.map(\.path) == ["/docs/a.txt", "/docs/b.txt"])
    #expect(request.configurations.map(\.promptTokens) == [64, 512])
    #expect(
      try request.configurations[1]
        == Configuration(promptTokens: 512, newTokens: 32, repeats: 3, warmups: 0, cooldownS: 2.5, loadMode: .each))
  }

  @Test func modes() throws {
    let words = "--run r --model m --tokenizer t --prompt-tokens 64,512 --prompt-files a,b --modes"
    func request(_ modes: String) throws -> RunRequest {
      try LaunchArguments(words.split(separator: " ").map(String.init) + [modes]).request(documents: documents)
    }
    let all = try request("text,speech")
    #expect(all.configurations.map(\.mode) == [nil, nil, .speech])
    #expect(all.promptFiles.map(\.lastPathComponent) == ["a", "b", "a"])
    #expect(try request("vision").promptFiles.map(\.lastPathComponent) == ["a"])
    for wrong in ["", "pictures", "vision,vision"] {
      #expect(badInput { _ = try request(wrong) }.hasPrefix("--modes is \"\(wrong)\"; it wants"))
    }
  }

  @Test func defaults() throws {
    let request = try LaunchArguments(["--run", "r", "--model", "m", "--tokenizer", "t"]).request(
      documents: documents)
    #expect(request.repeats == 10)
    #expect(request.configurations[0].loadMode == .once)
    #expect(!LaunchArguments.areScripted(["-AppleLanguages", "(de)"]))
  }

  @Test(arguments: [
    (["--run", "r", "--model", "m"], "The argument --tokenizer is missing."),
    (
      ["--run", "R!", "--model", "m", "--tokenizer", "t"],
      "The run's name is \"R!\"; 1 to 64 of a-z, 0-9 and - are allowed."
    ),
    (
      ["--run", "r", "--model", "/m", "--tokenizer", "t"],
      "The path \"/m\" must lie in the app's Documents and be relative to them."
    ),
    (
      ["--run", "r", "--model", "a/../../m", "--tokenizer", "t"],
      "The path \"a/../../m\" must lie in the app's Documents and be relative to them."
    ),
    (["--run", "r", "--repeats", "--model", "m"], "The argument --repeats has no value."),
    (["--run", "r", "--run", "s"], "The argument --run is given twice."),
    (
      ["--run", "r", "--model", "m", "--tokenizer", "t", "--repeats", "x"],
      "--repeats is \"x\"; it wants a whole number."
    ),
    (
      ["--run", "r", "--model", "m", "--tokenizer", "t", "--repeats", "0"],
      "Repeats is 0; it wants a whole number from 1 to 1000."
    ),
    (
      ["--run", "r", "--model", "m", "--tokenizer", "t", "--cooldown", "-1"],
      "Cool-down is -1.0 s; it wants 0 to 3600 seconds."
    ),
    (
      ["--run", "r", "--model", "m", "--tokenizer", "t", "--load-mode", "never"],
      "--load-mode is \"never\", but only \"once\" and \"each\" exist."
    ),
    (
      ["--run", "r", "--model", "m", "--tokenizer", "t", "--prompt-files", "a"],
      "There are 1 prompt files, but 2 lengths of prompt."
    ),
    (
      ["--run", "r", "--model", "m", "--tokenizer", "t", "--model-sha256", "AB"],
      "The model's sha256 is \"AB\", which is not 64 lower-case hex digits."
    ),
  ]) func wrong(_ arguments: [String], _ expected: String) {
    #expect(message(arguments) == expected)
  }

  @Test(arguments: ["", "64,", "0", "64,x", "200000"]) func wrongLengths(_ text: String) {
    #expect(badInput { _ = try LaunchArguments.lengths(text) }.contains("\"\(text)\""))
  }

  @Test func unknown() {
    #expect(message(["--run", "r", "--modle", "m"]).hasPrefix("The argument --modle is not known; there are --run,"))
  }
}

@Suite struct ModelFileTests {
  let folder: Folder
  init() throws { folder = try Folder() }

  func files(available: Int64? = nil, executorch: String = "1.5.1", tokenizer: String = "tokenizer.json") throws
    -> ModelFiles
  {
    try ModelFiles(
      model: folder.url.appending(path: "m.pte"), tokenizer: folder.url.appending(path: tokenizer),
      availableBytes: available, executorch: executorch)
  }

  func needed(keepsPacked: Bool = false) throws -> Int64 {
    let found = try files()
    return ModelFiles.neededBytes(sizeBytes: found.sizeBytes, manifest: found.manifest, keepsPacked: keepsPacked)
  }

  func whole() throws {
    try folder.put("m.pte", Made.pte())
    try folder.put("m.json", Made.manifest())
    try folder.put("tokenizer.json", Made.tokenizer(tokens: 100))
  }

  @Test func wholeOnes() throws {
    try whole()
    let found = try files(available: 1500)
    #expect(found.notes.isEmpty)
    let record = found.record(sha256: nil)
    #expect(record.file == "m.pte")
    #expect(record.sizeBytes == 1000)
    #expect(record.manifest?.plannedMemoryBytes == 500)
    #expect(record.manifest?.contextTokens == 4096)
    #expect(record.manifest?.kvCache == "bf16")
    #expect(record.manifest?.checkpoint == "phi4-tiny")
  }

  @Test func withoutAManifest() throws {
    try folder.put("m.pte", Made.pte())
    try folder.put("t.model", Made.sentencePiece(tokens: 7))
    #expect(try files(available: 1000, tokenizer: "t.model").record(sha256: nil).manifest == nil)
  }

  @Test func tooLarge() throws {
    try whole()
    #expect(
      badInput { _ = try files(available: 1499) }
        == "m.pte needs 1.5 kB of memory (weights 1.0 kB, planned 500 bytes), this app may use 1.5 kB more.")
  }

  /// Weights that are packed into a file take none of the memory that the system counts.
  @Test func packedWeightsNeedNoMemory() throws {
    try whole()
    #expect(try needed(keepsPacked: true) == 500)
    let packed = PackedWeights(folder: folder.url.appending(path: "packed"))
    func fits(_ available: Int64) throws {
      _ = try ModelFiles(
        model: folder.url.appending(path: "m.pte"), tokenizer: folder.url.appending(path: "tokenizer.json"),
        availableBytes: available, executorch: "1.5.1", packed: packed)
    }
    try fits(500)
    #expect(
      badInput { try fits(499) }.hasPrefix("m.pte needs 500 bytes of memory (weights 0 bytes, planned 500 bytes)"))
  }

  @Test func theEmbeddingStaysInTheFile() throws {
    try whole()
    try folder.put("m.json", Made.manifest(embeddingBits: 8))
    #expect(try needed() == 1000 - 100 * 4 + 500)
    try folder.put("m.json", Made.manifest(embeddingBits: 4))
    #expect(try needed() == 1000 - 100 * 4 / 2 + 500)
  }

  /// Measured on a desktop after loading: 2723 MB of private memory.
  @Test func phi4MiniNeedsWhatWasMeasured() throws {
    let json = """
      {"config": {"vocab_size": 200064, "hidden_size": 3072},
       "options": {"recipe": {"quantized": true, "group_size": 32, "embedding_bits": 8, "head_bits": 4}},
       "planned": {"kv_cache_bytes": 536870912, "activation_bytes": 18100000}}
      """
    let manifest = try Manifest(json: Data(json.utf8), name: "m.json")
    let needed = ModelFiles.neededBytes(sizeBytes: 2_776_258_976, manifest: manifest, keepsPacked: false)
    #expect(abs(Double(needed) / 2_723_000_000 - 1) < 0.02)
  }

  /// Its recipe is a text: shown, and no number is read out of it.
  @Test func olderManifests() throws {
    let json = """
      {"config": {"vocab_size": 100, "hidden_size": 4}, "options": {"recipe": "8da4w g32, embedding int8, lm_head int4"}}
      """
    let manifest = try Manifest(json: Data(json.utf8), name: "m.json")
    #expect(manifest.recipe == "8da4w g32, embedding int8, lm_head int4")
    #expect(ModelFiles.neededBytes(sizeBytes: 1000, manifest: manifest, keepsPacked: false) == 1000)
  }

  @Test func otherRuntimes() throws {
    try whole()
    try folder.put("m.pte", Made.pte(identifier: "ET13"))
    #expect(
      badInput { _ = try files() }
        == "m.pte is an ExecuTorch program of another runtime version: its format is ET13, this app reads ET12.")
    try folder.put("m.pte", Made.pte())
    #expect(
      badInput { _ = try files(executorch: "1.4.9") }
        == "m.pte was exported for ExecuTorch 1.5.1, this app holds the older 1.4.9.")
    #expect(
      try files(executorch: "1.10.0").notes == ["m.pte was exported for ExecuTorch 1.5.1, this app holds 1.10.0."])
    #expect(try files(executorch: "1.5.0").notes.isEmpty)
  }

  @Test func noPrograms() throws {
    try whole()
    try folder.put("m.pte", Data("GGUF and more than that".utf8))
    #expect(
      badInput { _ = try files() } == "m.pte is not an ExecuTorch program: bytes 4 to 8 are \" and\", not ET12.")
    try folder.put("m.pte", Data())
    #expect(badInput { _ = try files() } == "The model m.pte is empty.")
    try folder.put("m.pte", Data("ET12".utf8))
    #expect(badInput { _ = try files() } == "m.pte is not an ExecuTorch program: it has only 4 bytes.")
    try FileManager.default.removeItem(at: folder.url.appending(path: "m.pte"))
    #expect(badInput { _ = try files() } == "The model m.pte is not on this device.")
  }

  @Test func cutShort() throws {
    try whole()
    try folder.put("m.pte", Made.pte(saysBytes: 5000))
    #expect(
      badInput { _ = try files() }
        == "m.pte is cut short: its header says 5000 bytes, the file has 1000. Copy it again.")
    try folder.put("m.pte", Made.pte(saysBytes: UInt64.max))
    #expect(badInput { _ = try files() }.contains("its header"))
  }

  @Test func manifestOfAnotherFile() throws {
    try whole()
    try folder.put("m.json", Made.manifest(bytes: 1001))
    #expect(
      badInput { _ = try files() }
        == "m.pte has 1000 bytes, its manifest says 1001: one of them is of another export.")
  }

  @Test func foreignTokenizers() throws {
    try whole()
    try folder.put("tokenizer.json", Made.tokenizer(tokens: 101))
    #expect(
      badInput { _ = try files() } == "tokenizer.json belongs to another model: it has 101 tokens, m.pte has 100.")
    try folder.put("tokenizer.json", Made.tokenizer(tokens: 49))
    #expect(badInput { _ = try files() }.contains("belongs to another model"))
    for data in [Data("{}".utf8), Data("hello\n".utf8), Data([0, 1, 2, 3])] {
      try folder.put("tokenizer.json", data)
      #expect(badInput { _ = try files() }.hasPrefix("tokenizer.json is no tokenizer that the runner reads"))
    }
    try folder.put("tokenizer.json", Made.tokenizer(tokens: 100).dropLast(5))
    #expect(badInput { _ = try files() }.contains("damaged or cut short"))
    #expect(badInput { _ = try files(tokenizer: "none.json") } == "The tokenizer none.json is not on this device.")
  }

  @Test func kindsOfTokenizers() throws {
    let cases: [(Data, TokenizerFile.Kind)] = [
      (Made.tokenizer(tokens: 60), .huggingFace), (Made.tiktoken(tokens: 60), .tiktoken),
      (Made.sentencePiece(tokens: 60), .sentencePiece),
    ]
    for (data, kind) in cases {
      let found = try TokenizerFile(data: data, name: "t")
      #expect(found.kind == kind)
      #expect(found.vocabularySize == 60)
    }
  }
}

@Suite struct LibraryTests {
  let folder: Folder
  let other: Folder
  let library: ModelLibrary
  init() throws {
    folder = try Folder()
    other = try Folder()
    library = ModelLibrary(folder: folder.url)
  }

  @Test func addListDelete() throws {
    try library.add([
      try other.put("m.pte", Made.pte()), try other.put("m.json", Made.manifest()),
      try other.put("tokenizer.json", Made.tokenizer(tokens: 100)),
    ])
    let model = try #require(library.models().first)
    #expect(model.sizeBytes == 1000)
    #expect(model.manifest?.recipe == "8da4w g32")
    #expect(model.tokenizer?.lastPathComponent == "tokenizer.json")
    try folder.put("m-tokenizer.json", Made.tokenizer(tokens: 100))
    #expect(library.models()[0].tokenizer?.lastPathComponent == "m-tokenizer.json")
    try library.delete(model)
    #expect(folder.names == ["m-tokenizer.json", "tokenizer.json"])
  }

  @Test func nothingElseComesIn() throws {
    #expect(badInput { try library.add([try other.put("a.zip", Data([1]))]) }.hasPrefix("a.zip is neither a model"))
    #expect(
      badInput { try library.add([try other.put("b.pte", Data("not a program".utf8))]) }.contains("not an ExecuTorch")
    )
    #expect(
      badInput { try library.add([other.url.appending(path: "gone.json")]) }.hasPrefix(
        "gone.json could not be copied"))
    #expect(folder.names.isEmpty)
  }

  @Test func sentModelsAreFound() throws {
    let sent = folder.url.appending(path: ModelLibrary.sent)
    try FileManager.default.createDirectory(at: sent, withIntermediateDirectories: true)
    for place in [folder.url, sent] {
      try Made.pte().write(to: place.appending(path: "m.pte"))
      try Made.tokenizer(tokens: 100).write(to: place.appending(path: "tokenizer.json"))
    }
    let models = library.models()
    #expect(models.count == 2)
    #expect(Set(models.map(\.id)).count == 2)
    for model in models {
      #expect(model.tokenizer?.deletingLastPathComponent().path == model.file.deletingLastPathComponent().path)
    }
  }

  @Test func twoTokenizersNeedAChoice() throws {
    try folder.put("m.pte", Made.pte())
    try folder.put("a.model", Data([1]))
    try folder.put("tokenizer.model", Data([1]))
    try folder.put("tokenizer.json", Data([1]))
    #expect(library.models()[0].tokenizer == nil)
    #expect(library.tokenizers().map(\.lastPathComponent) == ["tokenizer.json", "tokenizer.model"])
  }
}

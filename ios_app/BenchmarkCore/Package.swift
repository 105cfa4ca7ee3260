// swift-tools-version: 6.0
import PackageDescription

let package = Package(
  name: "BenchmarkCore",
  platforms: [.iOS(.v17)],
  products: [
    .library(name: "BenchmarkCore", targets: ["BenchmarkCore"]),
    .library(name: "PocketphiEngine", targets: ["PocketphiEngine"]),
  ],
  targets: [
    // Resources is a link to export/bench/contract/bundled, which Python and the Android app read too. A link to the
    // file itself would be copied as a link, which leads nowhere.
    .target(name: "BenchmarkCore", resources: [.process("Resources")]),
    // Headers alone: the app compiles their C++ itself, the tests bring a library of it.
    .systemLibrary(name: "CPocketphi"),
    .target(name: "PocketphiEngine", dependencies: ["BenchmarkCore", "CPocketphi"]),
    // The app's scripted run with an engine that only keeps time, and with the real one; for tests, no part of the app.
    .executableTarget(name: "rehearse", dependencies: ["BenchmarkCore", "PocketphiEngine"]),
    .testTarget(name: "BenchmarkCoreTests", dependencies: ["BenchmarkCore"]),
    .testTarget(name: "PocketphiEngineTests", dependencies: ["PocketphiEngine"]),
  ],
  swiftLanguageModes: [.v6]
)

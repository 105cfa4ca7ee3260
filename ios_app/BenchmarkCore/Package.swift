// swift-tools-version: 6.0
import PackageDescription

let package = Package(
  name: "BenchmarkCore",
  platforms: [.iOS(.v17)],
  products: [
    .library(name: "BenchmarkCore", targets: ["BenchmarkCore"])
  ],
  targets: [
    // Resources is a link to export/bench/contract/bundled, which Python and the Android app read too. A link to the
    // file itself would be copied as a link, which leads nowhere.
    .target(name: "BenchmarkCore", resources: [.process("Resources")]),
    // The app's scripted run with an engine that only keeps time; for tests, no part of the app.
    .executableTarget(name: "rehearse", dependencies: ["BenchmarkCore"]),
    .testTarget(name: "BenchmarkCoreTests", dependencies: ["BenchmarkCore"]),
  ],
  swiftLanguageModes: [.v6]
)

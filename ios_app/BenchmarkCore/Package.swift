// swift-tools-version: 6.0
import PackageDescription

let package = Package(
  name: "BenchmarkCore",
  platforms: [.iOS(.v17)],
  products: [
    .library(name: "BenchmarkCore", targets: ["BenchmarkCore"])
  ],
  targets: [
    .target(name: "BenchmarkCore"),
    // The app's scripted run with an engine that only keeps time; for tests, no part of the app.
    .executableTarget(name: "rehearse", dependencies: ["BenchmarkCore"]),
    .testTarget(name: "BenchmarkCoreTests", dependencies: ["BenchmarkCore"]),
  ],
  swiftLanguageModes: [.v6]
)

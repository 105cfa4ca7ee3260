import BenchmarkCore
import Foundation

#if canImport(UIKit)
  import UIKit
#endif

/// Memory, heat and power of this device; from any thread.
struct DeviceProbes: Probes {
  func memory() -> Memory {
    let task = TaskMemory.now()
    return Memory(
      footprintBytes: task?.footprint, rssBytes: task?.resident, availableBytes: TaskMemory.available())
  }

  func highestFootprint() -> Int64? {
    TaskMemory.now().flatMap { $0.highestFootprint > 0 ? $0.highestFootprint : nil }
  }

  func thermal() -> Thermal {
    Thermal(status: Self.thermalStatus, batteryPercent: Self.batteryPercent(), lowPowerMode: Self.lowPowerMode)
  }

  static var thermalStatus: ThermalStatus {
    #if canImport(Darwin)
      switch ProcessInfo.processInfo.thermalState {
      case .nominal: return .none
      case .fair: return .light
      case .serious: return .severe
      case .critical: return .critical
      @unknown default: return .unknown
      }
    #else
      return .unknown
    #endif
  }

  private static var lowPowerMode: Bool? {
    #if canImport(Darwin)
      return ProcessInfo.processInfo.isLowPowerModeEnabled
    #else
      return nil
    #endif
  }

  /// UIDevice belongs to the main thread, which never waits for the one that measures.
  private static func batteryPercent() -> Double? {
    #if canImport(UIKit)
      let level: Float =
        if Thread.isMainThread {
          MainActor.assumeIsolated { batteryLevel() }
        } else {
          DispatchQueue.main.sync { MainActor.assumeIsolated { batteryLevel() } }
        }
      return level < 0 ? nil : Double(level) * 100
    #else
      return nil
    #endif
  }

  #if canImport(UIKit)
    @MainActor private static func batteryLevel() -> Float {
      UIDevice.current.isBatteryMonitoringEnabled = true
      return UIDevice.current.batteryLevel
    }
  #endif
}

extension DeviceFacts {
  static var current: DeviceFacts {
    let version = ProcessInfo.processInfo.operatingSystemVersion
    return DeviceFacts(
      model: machine, ramBytes: Int64(ProcessInfo.processInfo.physicalMemory), os: "iOS",
      osVersion: "\(version.majorVersion).\(version.minorVersion).\(version.patchVersion)", abi: abi,
      cores: ProcessInfo.processInfo.processorCount)
  }

  // As "iPhone16,1"; a simulator is named after what it simulates.
  private static var machine: String {
    if let simulated = ProcessInfo.processInfo.environment["SIMULATOR_MODEL_IDENTIFIER"] {
      return "\(simulated) (simulator)"
    }
    var system = utsname()
    uname(&system)
    return withUnsafeBytes(of: &system.machine) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
  }

  private static var abi: String {
    #if arch(arm64)
      return "arm64"
    #else
      return "x86_64"
    #endif
  }
}

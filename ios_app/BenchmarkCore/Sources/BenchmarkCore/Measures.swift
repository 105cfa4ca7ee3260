/// What the engine is doing while memory is looked at.
public enum Phase: String, Codable, Sendable {
  case load, encode, prefill, decode, idle
}

/// A process's memory and what it may still take, in bytes; nil where the system does not tell.
public struct Memory: Codable, Equatable, Sendable {
  @Explicit public var pssBytes: Int64?
  @Explicit public var rssBytes: Int64?
  @Explicit public var privateDirtyBytes: Int64?
  @Explicit public var nativeHeapBytes: Int64?
  @Explicit public var footprintBytes: Int64?
  @Explicit public var availableBytes: Int64?

  public static let unknown = Memory(footprintBytes: nil, rssBytes: nil, availableBytes: nil)

  /// What Apple's systems tell: `footprintBytes` is phys_footprint, `availableBytes` os_proc_available_memory().
  public init(footprintBytes: Int64?, rssBytes: Int64?, availableBytes: Int64?) {
    self.rssBytes = rssBytes
    self.footprintBytes = footprintBytes
    self.availableBytes = availableBytes
  }

  /// The worse of both: the higher use, the lower rest.
  func worse(_ other: Memory) -> Memory {
    func highest(_ one: Int64?, _ two: Int64?) -> Int64? { [one, two].compactMap { $0 }.max() }
    var worst = self
    worst.pssBytes = highest(pssBytes, other.pssBytes)
    worst.rssBytes = highest(rssBytes, other.rssBytes)
    worst.privateDirtyBytes = highest(privateDirtyBytes, other.privateDirtyBytes)
    worst.nativeHeapBytes = highest(nativeHeapBytes, other.nativeHeapBytes)
    worst.footprintBytes = highest(footprintBytes, other.footprintBytes)
    worst.availableBytes = [availableBytes, other.availableBytes].compactMap { $0 }.min()
    return worst
  }
}

/// `atMs` milliseconds since the repeat began.
public struct Sample: Codable, Equatable, Sendable {
  public let atMs: Double
  public let phase: Phase
  public let memory: Memory
}

/// Android's names, in the order of severity; Apple's nominal, fair, serious, critical are none, light, severe,
/// critical.
public enum ThermalStatus: String, Codable, CaseIterable, Sendable {
  case none, light, moderate, severe, critical, emergency, shutdown, unknown

  /// The device slows itself down.
  public var throttles: Bool { Contract.current.hot.contains(rawValue) }
}

/// How warm and how powered the device is. Degrees Celsius and percent; nil where the system does not tell.
public struct Thermal: Codable, Equatable, Sendable {
  public var status: ThermalStatus
  @Explicit public var batteryCelsius: Double?
  @Explicit public var batteryPercent: Double?
  @Explicit public var lowPowerMode: Bool?

  public static let unknown = Thermal(status: .unknown, batteryPercent: nil, lowPowerMode: nil)

  public init(status: ThermalStatus, batteryPercent: Double?, lowPowerMode: Bool?) {
    self.status = status
    self.batteryPercent = batteryPercent
    self.lowPowerMode = lowPowerMode
  }
}

/// What measures the device and this process; from any thread.
public protocol Probes: Sendable {
  func memory() -> Memory

  func thermal() -> Thermal

  /// The highest footprint since the process began, as the kernel counts it, in bytes; nil where it does not tell.
  func highestFootprint() -> Int64?
}

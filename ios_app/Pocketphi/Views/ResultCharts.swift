import BenchmarkCore
import Charts
import SwiftUI

/// Decode rate of every repeat.
struct RateChart: View {
  let repeats: [RepeatRecord]

  private struct Point: Identifiable {
    let id: Int
    let rate: Double
    let throttled: Bool
  }

  private var points: [Point] {
    repeats.enumerated().compactMap { index, one in
      one.decodeTokensPerS.map { Point(id: index + 1, rate: $0, throttled: one.throttled) }
    }
  }

  var body: some View {
    if !points.isEmpty {
      Chart(points) { point in
        BarMark(x: .value("Repeat", "\(point.id)"), y: .value("Tokens per second", point.rate))
          .foregroundStyle(by: .value("Device", point.throttled ? "hot" : "cool"))
          .accessibilityLabel("Repeat \(point.id)")
          .accessibilityValue(Format.rate(point.rate) + (point.throttled ? ", hot device" : ""))
      }
      .chartForegroundStyleScale(["cool": Color.accentColor, "hot": Color.orange])
      .chartLegend(points.contains(where: \.throttled) ? .visible : .hidden)
      .chartYAxisLabel("Decode, tokens/s")
      .chartXAxisLabel("Repeat")
      .frame(minHeight: 160)
      .padding(.vertical, 8)
    }
  }
}

/// Footprint over the time of the repeats, one after another.
struct MemoryChart: View {
  let repeats: [RepeatRecord]

  private struct Point: Identifiable {
    let id: Int
    let seconds: Double
    let gigabytes: Double
    let series: String
  }

  private var points: [Point] {
    var points: [Point] = []
    var start = 0.0
    for (number, one) in repeats.enumerated() {
      for sample in one.memory.samples {
        guard let bytes = sample.memory.footprintBytes else { continue }
        points.append(
          Point(
            id: points.count, seconds: (start + sample.atMs) / 1000, gigabytes: Double(bytes) / 1e9,
            series: "\(number)"))
      }
      start += one.memory.samples.last?.atMs ?? 0
    }
    return points
  }

  private var peak: String {
    repeats.compactMap(\.memory.peak.footprintBytes).max().map(Format.bytes) ?? "unknown"
  }

  var body: some View {
    if points.count > 1 {
      Chart(points) { point in
        LineMark(
          x: .value("Seconds", point.seconds), y: .value("Footprint in GB", point.gigabytes),
          series: .value("Repeat", point.series))
      }
      .chartYAxisLabel("Footprint, GB")
      .chartXAxisLabel("Measured seconds")
      .frame(minHeight: 160)
      .padding(.vertical, 8)
      .accessibilityElement(children: .ignore)
      .accessibilityLabel("Memory footprint over time")
      .accessibilityValue("Peak \(peak)")
    }
  }
}

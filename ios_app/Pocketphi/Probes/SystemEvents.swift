import BenchmarkCore
import Foundation
import UIKit

/// Tells a run what happens to the app meanwhile, and keeps the screen on for as long.
@MainActor
final class SystemEvents {
  private var observers: [any NSObjectProtocol] = []

  init(run: BenchmarkRun) {
    UIApplication.shared.isIdleTimerDisabled = true
    let center = NotificationCenter.default
    func observe(_ name: Notification.Name, _ body: @escaping @Sendable () -> Void) {
      observers.append(center.addObserver(forName: name, object: nil, queue: nil) { _ in body() })
    }
    observe(UIApplication.didEnterBackgroundNotification) { run.note(Contract.current.note("background")) }
    observe(UIApplication.didReceiveMemoryWarningNotification) { run.lowMemory() }
  }

  /// The run has ended.
  func end() {
    UIApplication.shared.isIdleTimerDisabled = false
    for observer in observers { NotificationCenter.default.removeObserver(observer) }
    observers = []
  }
}

import SwiftUI

struct RootView: View {
  @Environment(LibraryState.self) private var library

  var body: some View {
    TabView {
      ModelsView()
        .tabItem { Label("Models", systemImage: "shippingbox") }
      BenchmarkView()
        .tabItem { Label("Benchmark", systemImage: "gauge.with.needle") }
      HistoryView()
        .tabItem { Label("History", systemImage: "clock.arrow.circlepath") }
      ChatView()
        .tabItem { Label("Chat", systemImage: "bubble.left.and.bubble.right") }
    }
    .onAppear { library.refresh() }
    .onOpenURL { library.add([$0]) }
  }
}

extension View {
  /// An alert for the sentence in `problem`, which it clears.
  func problemAlert(_ problem: Binding<String?>) -> some View {
    alert("That did not work", isPresented: problem.isThere) {
      Button("OK", role: .cancel) {}
    } message: {
      Text(problem.wrappedValue ?? "")
    }
  }
}

extension String? {
  /// Whether there is a text; false takes it away.
  fileprivate var isThere: Bool {
    get { self != nil }
    set { if !newValue { self = nil } }
  }
}

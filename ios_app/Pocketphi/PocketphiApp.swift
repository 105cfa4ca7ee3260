import BenchmarkCore
import SwiftUI

@main
struct PocketphiApp: App {
  @State private var library = LibraryState()
  @State private var chat = ChatState()
  @State private var settings = SettingsState()
  @State private var attachments = AttachmentsState(
    readPicture: { try PictureReader.read($0, side: $1) }, microphone: Microphone())
  @State private var benchmark = BenchmarkState(watchSystem: { run in
    let events = SystemEvents(run: run)
    return { events.end() }
  })

  private let scripted = LaunchArguments.areScripted(CommandLine.arguments)

  init() {
    Folders.make()
  }

  var body: some Scene {
    WindowGroup {
      if scripted {
        ScriptedView()
      } else {
        RootView()
          .environment(library)
          .environment(chat)
          .environment(benchmark)
          .environment(settings)
          .environment(attachments)
      }
    }
  }
}

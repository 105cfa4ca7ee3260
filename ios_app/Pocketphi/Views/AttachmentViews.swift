import BenchmarkCore
import PhotosUI
import SwiftUI

/// Pictures and sounds of a question, as small cards; with `onRemove` each has a button for that.
struct AttachmentRow: View {
  let media: [Media]
  var onRemove: ((Media) -> Void)?

  var body: some View {
    ScrollView(.horizontal) {
      HStack {
        ForEach(media) { one in
          AttachmentCard(media: one)
            .overlay(alignment: .topTrailing) {
              if let onRemove {
                Button("Remove", systemImage: "xmark.circle.fill") { onRemove(one) }
                  .labelStyle(.iconOnly)
                  .symbolRenderingMode(.palette)
                  .foregroundStyle(.white, .black.opacity(0.6))
                  .padding(4)
              }
            }
        }
      }
    }
    .scrollIndicators(.hidden)
    .fixedSize(horizontal: false, vertical: true)
  }
}

private struct AttachmentCard: View {
  let media: Media

  var body: some View {
    switch media {
    case .picture(let picture):
      Group {
        if let image = picture.image {
          Image(decorative: image, scale: 1).resizable().scaledToFill()
        } else {
          Image(systemName: "photo")
        }
      }
      .frame(width: 72, height: 72)
      .clipShape(RoundedRectangle(cornerRadius: 12))
      .accessibilityElement()
      .accessibilityLabel("Picture of \(picture.width) by \(picture.height) pixels")
    case .sound(let sound):
      Label(Format.time(sound.seconds), systemImage: "waveform")
        .monospacedDigit()
        .padding(.horizontal)
        .frame(height: 72)
        .background(Color(.secondarySystemBackground), in: RoundedRectangle(cornerRadius: 12))
        .accessibilityLabel("Sound of \(Format.time(sound.seconds))")
    }
  }
}

/// The time and the loudness of a recording, and its end.
struct RecordingRow: View {
  let clip: Clip
  let onStop: () -> Void

  var body: some View {
    HStack {
      // The root, as loudness is heard.
      ProgressView(value: Double(clip.loudness.squareRoot())) {
        Text("Recording, \(Format.time(clip.seconds)) of \(Format.time(Double(Clip.mostSeconds)))").monospacedDigit()
      }
      Button("Stop", systemImage: "stop.circle.fill", action: onStop).labelStyle(.iconOnly).font(.title2)
    }
  }
}

/// What a model that takes pictures or sound can be shown and told.
struct AttachMenu: View {
  let takes: Takes
  let side: Int
  let attachments: AttachmentsState
  @State private var picking = false
  @State private var photographing = false
  @State private var picked: [PhotosPickerItem] = []

  var body: some View {
    Menu {
      if takes.pictures {
        Button("Choose pictures", systemImage: "photo.on.rectangle") { picking = true }
        if Camera.isThere { Button("Take a picture", systemImage: "camera") { photographing = true } }
      }
      if takes.sound { Button("Record sound", systemImage: "mic") { attachments.record() } }
    } label: {
      Label("Attach", systemImage: "paperclip")
    }
    .disabled(attachments.clip != nil)
    .photosPicker(isPresented: $picking, selection: $picked, matching: .images)
    .onChange(of: picked) {
      for item in picked {
        attachments.attach(side: side) { try await item.loadTransferable(type: Data.self) }
      }
      picked = []
    }
    .fullScreenCover(isPresented: $photographing) {
      Camera { data in attachments.attach(side: side) { data } }.ignoresSafeArea()
    }
  }
}

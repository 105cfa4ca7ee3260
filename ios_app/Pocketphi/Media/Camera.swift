import SwiftUI
import UIKit

/// The system's camera; `onPicture` gets a JPEG, upright by its EXIF.
struct Camera: UIViewControllerRepresentable {
  let onPicture: (Data) -> Void
  @Environment(\.dismiss) private var dismiss

  static var isThere: Bool { UIImagePickerController.isSourceTypeAvailable(.camera) }

  func makeUIViewController(context: Context) -> UIImagePickerController {
    let picker = UIImagePickerController()
    picker.sourceType = .camera
    picker.delegate = context.coordinator
    return picker
  }

  func updateUIViewController(_ picker: UIImagePickerController, context: Context) {}

  func makeCoordinator() -> Coordinator { Coordinator(self) }

  @MainActor
  final class Coordinator: NSObject, UIImagePickerControllerDelegate, UINavigationControllerDelegate {
    private let camera: Camera

    init(_ camera: Camera) {
      self.camera = camera
    }

    func imagePickerController(
      _ picker: UIImagePickerController, didFinishPickingMediaWithInfo info: [UIImagePickerController.InfoKey: Any]
    ) {
      if let image = info[.originalImage] as? UIImage, let data = image.jpegData(compressionQuality: 0.95) {
        camera.onPicture(data)
      }
      camera.dismiss()
    }

    func imagePickerControllerDidCancel(_ picker: UIImagePickerController) {
      camera.dismiss()
    }
  }
}

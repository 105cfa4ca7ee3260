import BenchmarkCore
import CoreGraphics
import Foundation
import ImageIO

/// Files of pictures to pixels: upright, on white, no larger than is wanted.
enum PictureReader {
  /// The longer side has at most `side` pixels. Throws `BadInput` with a sentence for a person.
  static func read(_ data: Data, side: Int) throws -> Picture {
    let options: [CFString: Any] = [
      kCGImageSourceCreateThumbnailFromImageAlways: true,
      kCGImageSourceCreateThumbnailWithTransform: true,  // as EXIF says
      kCGImageSourceThumbnailMaxPixelSize: side,
    ]
    guard let source = CGImageSourceCreateWithData(data as CFData, nil),
      let image = CGImageSourceCreateThumbnailAtIndex(source, 0, options as CFDictionary)
    else { throw BadInput("This is no picture that the system can read.") }
    return try pixels(of: image)
  }

  private static func pixels(of image: CGImage) throws -> Picture {
    let (width, height) = (image.width, image.height)
    var rgbx = [UInt8](repeating: 255, count: 4 * width * height)
    let drawn = rgbx.withUnsafeMutableBytes { bytes in
      guard
        let space = CGColorSpace(name: CGColorSpace.sRGB),
        let context = CGContext(
          data: bytes.baseAddress, width: width, height: height, bitsPerComponent: 8, bytesPerRow: 4 * width,
          space: space, bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
      else { return false }
      let all = CGRect(x: 0, y: 0, width: width, height: height)
      context.setFillColor(CGColor(red: 1, green: 1, blue: 1, alpha: 1))
      context.fill(all)
      context.draw(image, in: all)
      return true
    }
    guard drawn else { throw BadInput("There is not enough memory for the picture.") }
    return Picture(rgbx: rgbx, width: width, height: height)
  }
}

extension Picture {
  /// To show it.
  var image: CGImage? {
    guard let provider = CGDataProvider(data: Data(rgb) as CFData), let space = CGColorSpace(name: CGColorSpace.sRGB)
    else { return nil }
    return CGImage(
      width: width, height: height, bitsPerComponent: 8, bitsPerPixel: 24, bytesPerRow: 3 * width, space: space,
      bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.none.rawValue), provider: provider, decode: nil,
      shouldInterpolate: true, intent: .defaultIntent)
  }
}

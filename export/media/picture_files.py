"""Files of pictures to arrays of RGB pixels, and their resizing: the only module that knows Pillow.

Pictures come from strangers: size is checked in the header, before anything is decoded, and whatever a decoder
raises is a sentence. Pixels become RGB as in transformers' processor (5.23): what is transparent lies over white,
palettes, grey and CMYK are converted by Pillow, of an animation the first frame is taken. Two things differ, for the
better picture: the rotation of EXIF is done (as by transformers' `load_image`, not its processor), and grey of
16 bits keeps its upper 8 (Pillow turns everything above 255 white).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

import numpy as np

from checkpoints.errors import BadInput, show

try:
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError as problem:
    raise BadInput(f"pictures need the package pillow ({problem}): `uv sync --extra media`") from None

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
# Pillow's own limit before it warns: 268 MB of RGB. Cameras of 200 megapixels save 12 or 50 unless told otherwise.
MAX_PIXELS = 1024 * 1024 * 1024 // 12
STRIP = 256  # rows that are converted at once
# Modes in which Pillow does not know what white is, or how to make RGB of it.
NOT_READ = {"I": "32 bits", "F": "32-bit floats", "LAB": "the colour space Lab", "HSV": "the colour space HSV"}

# Of a damaged EXIF block, for one: its reader is not interested, and standard error is a command's.
warnings.filterwarnings("ignore", module=r"PIL\.")


def read_picture(
    source: bytes | str | os.PathLike[str], name: str | None = None, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """The pixels of a file, or of its bytes: RGB, uint8 [height, width, 3].

    BadInput where there is no such file, for what is no picture in one of `FORMATS`, damaged, truncated, of no
    size or of more than `max_pixels`; `name` stands in the sentence, by default the path.
    """
    name = name or ("the picture" if isinstance(source, bytes) else str(Path(source)))
    with _opened(source, name, max_pixels) as image:
        width, height = image.size
        if width < 1 or height < 1:
            raise BadInput(f"{name} is {width} x {height} pixels, there is nothing to see")
        if width * height > max_pixels:
            raise BadInput(f"{name} is {width} x {height} pixels, at most {max_pixels:,} are read")
        try:
            image.load()
            with suppress(Exception):  # a damaged EXIF block is no reason to refuse the picture beside it
                ImageOps.exif_transpose(image, in_place=True)
            pixels = _rgb(image, name)
        except BadInput:
            raise
        except Exception as problem:  # decoders raise anything: OSError, SyntaxError, struct.error, ValueError …
            raise BadInput(f"{name} is damaged or truncated: {show(str(problem))}") from None
    return pixels


def resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bilinear, smoothed where it shrinks: uint8 [h, w, 3] to uint8 [height, width, 3].

    Pillow rounds weights and each of the two passes to whole steps, in which torchvision differs by at most one.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


@contextmanager
def _opened(source: bytes | str | os.PathLike[str], name: str, max_pixels: int) -> Iterator[Image.Image]:
    if not isinstance(source, bytes) and not Path(source).is_file():  # a pipe would wait forever
        raise BadInput(f"{name} does not exist or is not a file")
    if not (start := _start(source, name)):
        raise BadInput(f"{name} is empty")
    try:
        image = Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except Image.DecompressionBombError:  # from twice Pillow's limit on, whatever ours is
        raise BadInput(f"{name} has more pixels than the {max_pixels:,} that are read") from None
    except UnidentifiedImageError:
        raise BadInput(f"{name} is {_kind(start)}: {', '.join(FORMATS)} are read") from None
    except Exception as problem:
        raise BadInput(f"{name} is damaged or truncated: {show(str(problem))}") from None
    with image:
        yield image


def _start(source: bytes | str | os.PathLike[str], name: str) -> bytes:
    if isinstance(source, bytes):
        return source[:12]
    try:
        with open(source, "rb") as file:
            return file.read(12)
    except OSError as problem:
        raise BadInput(f"{name} cannot be read: {problem.strerror}") from None


def _kind(start: bytes) -> str:
    if start[4:8] == b"ftyp":
        return "in a container of HEIC, AVIF or MPEG-4, which must be converted first"
    return "not a picture that is known here, or its header is damaged"


def _rgb(image: Image.Image, name: str) -> np.ndarray:
    """As `convert_to_rgb` of transformers' image_transforms, but for 16 bits; uint8 [height, width, 3].

    In strips: Pillow has four bytes for each pixel of RGB, and a whole picture in three modes would be a gigabyte.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in NOT_READ:
        raise BadInput(f"{name} has pixels of {NOT_READ[image.mode]}: save it as RGB or grey, of 8 or 16 bits")
    transparent = "A" in image.getbands() or image.info.get("transparency") is not None
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, STRIP):
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        if transparent:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, (255, 255, 255, 255)), strip)
        pixels[top : top + STRIP] = np.asarray(strip.convert("RGB"))
    return pixels

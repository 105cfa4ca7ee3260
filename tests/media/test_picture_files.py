"""Pixels of every kind of file are those that transformers' processor sees; hostile files are one sentence."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from checkpoints.errors import BadInput
from export.media.picture_files import MAX_PIXELS, read_picture

# pytest undoes the module's own filters
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def drawn(mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 256, (23, 31, 4), dtype=np.uint8), "RGBA")
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG of grey that says it has this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


FILES = {
    "png": saved(drawn()),
    "jpeg": saved(drawn(), "JPEG"),
    "webp": saved(drawn(), "WEBP"),
    "gif": saved(drawn("P"), "GIF"),
    "bmp": saved(drawn(), "BMP"),
    "tiff": saved(drawn(), "TIFF", compression="tiff_lzw"),
    "grey": saved(drawn("L")),
    "black and white": saved(drawn("1")),
    "palette": saved(drawn("P")),
    "cmyk": saved(drawn("CMYK"), "JPEG"),
    "cmyk tiff": saved(drawn("CMYK"), "TIFF"),
    "progressive": saved(drawn(), "JPEG", progressive=True),
    "alpha": saved(drawn("RGBA")),
    "alpha webp": saved(drawn("RGBA"), "WEBP", lossless=True),
    "grey and alpha": saved(drawn("RGBA").convert("LA")),
    "palette, one colour transparent": saved(drawn("P"), transparency=3),
    "grey, one value transparent": saved(drawn("L"), transparency=7),
    "animated": saved(drawn("P"), "GIF", save_all=True, append_images=[drawn("L").convert("P")]),
    "animated webp": saved(drawn(), "WEBP", save_all=True, append_images=[drawn("L").convert("RGB")], lossless=True),
    "more than a strip": saved(drawn("RGBA").resize((20, 600))),
    "1x1": saved(Image.new("RGB", (1, 1), (9, 8, 7))),
}


@pytest.mark.parametrize("kind", FILES)
def test_pixels_are_those_that_transformers_processor_sees(kind: str, image_processor: Any) -> None:
    with Image.open(io.BytesIO(FILES[kind])) as image:
        expected = image_processor.process_image(image, do_convert_rgb=True).permute(1, 2, 0).numpy()
    pixels = read_picture(FILES[kind])
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_picture(orientation: int, tmp_path: Path) -> None:
    """As transformers' load_image does."""
    from transformers.image_utils import load_image

    exif = Image.Exif()
    exif[0x0112] = orientation
    (path := tmp_path / "turned.jpg").write_bytes(saved(drawn(), "JPEG", exif=exif))
    assert np.array_equal(read_picture(path), np.asarray(load_image(str(path))))
    assert read_picture(path).shape == ((23, 31, 3) if orientation < 5 else (31, 23, 3))


def test_damaged_exif_is_no_reason_to_refuse(tmp_path: Path) -> None:
    plain = saved(drawn(), "JPEG")
    broken = saved(drawn(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken")
    assert np.array_equal(read_picture(broken), read_picture(plain))
    (path := tmp_path / "broken.jpg").write_bytes(broken)
    program = "import sys; from export.media.picture_files import read_picture; read_picture(sys.argv[1])"
    told = subprocess.run([sys.executable, "-c", program, path], check=True, capture_output=True, text=True)
    assert told.stdout == told.stderr == ""


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_keeps_its_upper_8(kind: str) -> None:
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    pixels = read_picture(saved(Image.fromarray(values), kind))
    assert np.array_equal(pixels, np.repeat((values // 256)[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "it is empty"),
        (b"hello", "it is not a picture that is known here"),
        (FILES["png"][:200], "it is damaged or truncated: "),
        (FILES["jpeg"][:-300], "it is damaged or truncated: "),
        (FILES["tiff"][:600], "it is (damaged or truncated|not a picture)"),
        (FILES["webp"][:100], "it is (damaged or truncated|not a picture)"),
        (FILES["bmp"][:500], "it is damaged or truncated: "),
        (FILES["gif"][:900], "it is damaged or truncated: "),
        (FILES["png"][:60] + b"\0" * 40 + FILES["png"][100:], "it is damaged or truncated: "),
        (png(4, 4, zlib.compress(b"short")), "it is damaged or truncated: "),
        (png(0, 10), "it is "),
        (png(12000, 10000), f"it is 12000 x 10000 pixels, at most {MAX_PIXELS:,} are read"),
        (png(2**31 - 1, 2**31 - 1), f"it has more pixels than the {MAX_PIXELS:,} that are read"),
        (saved(Image.new("I", (4, 4)), "TIFF"), "it has pixels of 32 bits: save it as RGB or grey, of 8 or 16 bits"),
        (saved(Image.new("F", (4, 4)), "TIFF"), "it has pixels of 32-bit floats: save"),
        (saved(Image.new("LAB", (4, 4)), "TIFF"), "it has pixels of the colour space Lab: save"),
        (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            "it is in a container of HEIC, AVIF or MPEG-4, which must be converted first: PNG, JPEG",
        ),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is not a picture that is known here"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is not a picture that is known here"),
    ],
)
def test_hostile_files_are_a_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(BadInput, match=f"^{sentence}"):
        read_picture(data, "it")


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(image: Image.Image) -> None:
        raise AssertionError("decoded")

    bomb = png(9000, 9000, zlib.compress(b"\0" * 9001 * 9000, 9))
    assert len(bomb) < 100_000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(BadInput, match="9000 x 9000 pixels, at most 1,000,000 are read"):
        read_picture(bomb, max_pixels=1_000_000)


@pytest.mark.parametrize("kind", ["folder", "nothing", "pipe"])
def test_what_is_no_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(BadInput, match=f"{path} does not exist or is not a file"):
        read_picture(path)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp", "tiff"])
def test_random_damage_is_a_picture_or_a_sentence(kind: str) -> None:
    rng = np.random.default_rng(len(kind))
    for _ in range(100):
        data = bytearray(FILES[kind])
        for place in rng.integers(0, len(data), 4):
            data[place] = rng.integers(256)
        try:
            assert read_picture(bytes(data[: rng.integers(1, 2 * len(data))]), max_pixels=10**6).dtype == np.uint8
        except BadInput as problem:
            assert "\n" not in str(problem)


SILENT = """
import sys
from checkpoints.errors import BadInput
from export.media import {module}
assert "torch" not in sys.modules, "torch"
"""


@pytest.mark.parametrize("module", ["pictures", "sounds", "sound_files", "prompt"])
def test_torch_is_not_needed(module: str) -> None:
    subprocess.run([sys.executable, "-c", SILENT.format(module=module)], check=True)


@pytest.mark.parametrize(("module", "package"), [("pictures", "PIL"), ("sound_files", "soxr")])
def test_without_the_extra_it_says_what_brings_it(module: str, package: str) -> None:
    program = f"""
import sys
sys.modules[{package!r}] = None
from checkpoints.errors import BadInput
try:
    from export.media import {module}
except BadInput as problem:
    print(problem)
"""
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert said.rstrip().endswith("`uv sync --extra media`") and said.count("\n") == 1

"""Pictures, sounds and prompts with what becomes of them, by which the apps' ports check themselves.

    python -m export.media.vectors [--out FILE]

Makes `vectors.json` again with the settings that stand in it. The pictures and tones are formulas, which it names.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.errors import BadInput, run
from export.media.pictures import prepare, tile
from export.media.prompt import place
from export.media.settings import AudioSettings, ImageSettings
from export.media.sounds import log_mel, pieces, tokens, windows

FILE = Path(__file__).with_name("vectors.json")
DIGITS = 4  # of a value: ports compute in float32, on other processors
ABOUT = {
    "picture": "channel c of the pixel in column x and row y is |(3 x + 2 y + 85 c) mod 510 - 255|, 0 to 255",
    "pixels": "[crop, channel, row, column, normalized value]; crop 0 is the global view",
    "valid": "[rows, columns] of patches that hold picture, by crop",
    "sound": "sample n of a tone is loudness sin(2 pi hertz n / rate), in float32",
    "values": "[frame, bin, log-mel]",
    "pieces": "[first frame, end, tokens to skip, tokens that count]",
    "windows": "[first token, end, tokens of zeros after them]",
}
PICTURES = [
    (36, 448, 448), (36, 449, 300), (36, 300, 449), (36, 1000, 333), (36, 37, 91), (36, 1, 1), (36, 2500, 100),
    (4, 640, 480), (4, 1000, 3000), (4, 4000, 3000), (1, 800, 600), (36, 2016, 1512),
]  # most crops, width, height  # fmt: skip
REFUSED = [(36, 20000, 10), (36, 1, 448)]
SOUNDS = [(16000, 0.025, 440, 0.5), (16000, 0.1, 440, 0.5), (16000, 1.0, 3000, 0.9), (16000, 0.5, 0, 0.5),
          (8000, 0.5, 1000, 0.5), (16000, 2.005, 7600, 0.01)]  # rate, seconds, hertz, loudness  # fmt: skip
FRAMES = [1, 98, 335, 336, 1000, 29998]
PROMPTS = [
    ["image", "What is shown?"],
    ["audio", "image", "What is said, and what is shown?"],
    ["What is in ", "image", " and not in ", "image", "?"],
    ["image", "audio", "Hear <|audio_1|>, see <|image_1|>."],
]


def make(images: ImageSettings, audio: AudioSettings) -> dict[str, Any]:
    """All vectors, for these settings."""
    return {
        "about": ABOUT,
        "images": asdict(images),
        "audio": asdict(audio),
        "pictures": [_picture(replace(images, max_crops=most), *size) for most, *size in PICTURES],
        "refused": [_refused(replace(images, max_crops=most), *size) for most, *size in REFUSED],
        "sounds": [_sound(audio, *tone) for tone in SOUNDS],
        "cuts": [_cuts(audio, count) for count in FRAMES],
        "prompts": [{"parts": parts, "text": _prompt(parts)} for parts in PROMPTS],
    }


def read(path: Path = FILE) -> tuple[dict[str, Any], ImageSettings, AudioSettings]:
    """The file, and the settings in it."""
    try:
        found = json.loads(path.read_text())
        return found, ImageSettings(**found["images"]), AudioSettings(**found["audio"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise BadInput(f"{path} has no settings to make vectors with: {problem}") from None


def painted(width: int, height: int) -> np.ndarray:
    """The picture of `ABOUT`: uint8 [height, width, 3]."""
    y, x, channel = np.ogrid[:height, :width, :3]
    return np.abs((3 * x + 2 * y + 85 * channel) % 510 - 255).astype(np.uint8)


def tone(rate: int, seconds: float, hertz: float, loudness: float) -> np.ndarray:
    """The sound of `ABOUT`: float32 [n]."""
    return (loudness * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def _picture(settings: ImageSettings, width: int, height: int) -> dict[str, Any]:
    picture = prepare(painted(width, height), settings)
    rng = np.random.default_rng(width * 100_000 + height)
    plan = picture.tiling
    spots = rng.integers(0, picture.crops.shape, (24, 4))
    spots[:8, 0] = 0  # some of the global view in any case
    shown = [(plan.height // plan.rows, plan.width // plan.columns)]
    shown += [(rows * settings.patch, columns * settings.patch) for rows, columns in plan.valid[1:]]
    for spot in spots[:20]:  # where the picture is, most of them
        spot[2:] %= np.maximum(1, shown[spot[0]])
    return {
        "max_crops": settings.max_crops,
        "size": [width, height],
        **asdict(picture.tiling),
        "pixels": [[*map(int, spot), round(float(picture.crops[tuple(spot)]), DIGITS)] for spot in spots],
        "mean": round(float(picture.crops.mean(dtype=np.float64)), DIGITS),
    }


def _refused(settings: ImageSettings, width: int, height: int) -> dict[str, Any]:
    try:
        tile(width, height, settings)
    except BadInput:
        return {"max_crops": settings.max_crops, "size": [width, height]}
    raise AssertionError(f"{width} x {height} is not refused")


def _sound(settings: AudioSettings, rate: int, seconds: float, hertz: float, loudness: float) -> dict[str, Any]:
    spectrogram = log_mel(tone(rate, seconds, hertz, loudness), rate, settings)
    rng = np.random.default_rng(round(rate * seconds + hertz))
    spots = rng.integers(0, spectrogram.shape, (32, 2))
    return {
        "rate": rate,
        "seconds": seconds,
        "hertz": hertz,
        "loudness": loudness,
        "frames": len(spectrogram),
        "tokens": tokens(len(spectrogram), settings),
        "values": [[*map(int, spot), round(float(spectrogram[tuple(spot)]), DIGITS)] for spot in spots],
        "mean": round(float(spectrogram.mean(dtype=np.float64)), DIGITS),
    }


def _cuts(settings: AudioSettings, count: int) -> dict[str, Any]:
    def rows(parts: Any) -> list[list[int]]:
        return [[getattr(part, field.name) for field in fields(part)] for part in parts]

    total = tokens(count, settings)
    found = {"pieces": rows(pieces(count, settings)), "windows": rows(windows(total, settings))}
    return {"frames": count, "tokens": total, **found}


def _prompt(parts: list[str]) -> str:
    content = [
        {"type": part, part: ""} if part in ("image", "audio") else {"type": "text", "text": part} for part in parts
    ]
    return place([{"role": "user", "content": content}]).messages[0]["content"]


def _as_text(vectors: dict[str, Any]) -> str:
    """JSON with a line for each case, so that a change shows in a diff."""
    parts = []
    for key, value in vectors.items():
        if isinstance(value, list):
            lines = ",\n".join(f"  {json.dumps(entry)}" for entry in value)
            parts.append(f"{json.dumps(key)}: [\n{lines}\n ]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def main(argv: Sequence[str] | None = None) -> int:
    from checkpoints.files import write_whole  # imports torch

    parser = argparse.ArgumentParser(prog="python -m export.media.vectors", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE", help="where to write (default: in place)")
    flags = parser.parse_args(argv)
    _, images, audio = read()
    if not flags.out.resolve().parent.is_dir():
        raise BadInput(f"--out {flags.out}: its folder does not exist")
    text = _as_text(make(images, audio))
    write_whole(flags.out, text.encode())
    print(f"wrote {flags.out}: {len(PICTURES)} pictures, {len(SOUNDS)} sounds, {len(text):,} bytes")
    return 0


if __name__ == "__main__":
    run(main)

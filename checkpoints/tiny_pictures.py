"""The pictures of the tiny multimodal checkpoint: one coloured shape or digit each, and questions about it.

A picture follows from a random generator alone. Held-out pictures have digits of other fonts than those that are
trained on. Fonts are those that matplotlib and Pillow bring.
"""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from checkpoints.tiny_questions import Fact

SIDE = 112  # pixels of an ordinary picture: one crop
FINE = 2  # drawn so many times larger, and scaled down
# Hue in degrees, saturation and value as in a colour wheel.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0, 0.9, 0.85),
    "yellow": (55, 0.95, 0.95),
    "green": (125, 0.85, 0.6),
    "blue": (222, 0.9, 0.85),
    "purple": (280, 0.8, 0.6),
    "black": (0, 0.0, 0.06),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
DIGITS = tuple("12345")
TRAINED_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "cmr10",
    "cmss10",
    "cmtt10",
    "cmb10",
    "STIXGeneral",
    "STIXGeneralItalic",
)
HELDOUT_FONTS = ("STIXGeneralBol", "Aileron")  # the second is Pillow's own
Point = tuple[float, float]


class Figure(NamedTuple):
    """What is to be seen."""

    name: str  # of SHAPES or DIGITS
    colour: str  # of COLOURS

    @property
    def kind(self) -> str:
        return "digit" if self.name in DIGITS else "shape"

    def __str__(self) -> str:
        return f"a {self.colour} {self.name}"


class Picture(NamedTuple):
    """RGB pixels, uint8 [height, width, 3], and what they show."""

    pixels: np.ndarray
    figure: Figure


def asked(figure: Figure) -> dict[str, Fact]:
    """What can be asked about a figure, by kind: "colour", "shape" or "digit", and "all"."""
    if figure.kind == "digit":
        own = Fact("Which digit is it?", ("What digit is it?", "Which number is it?"), f"It is {figure.name}.")
    else:
        own = Fact("What shape is it?", ("Which shape is it?", "What is the shape?"), f"It is a {figure.name}.")
    return {
        "colour": Fact("Which colour is it?", ("What colour is it?", "What color is it?"), f"It is {figure.colour}."),
        figure.kind: own,
        "all": Fact("What is in the picture?", ("What do you see?", "Describe the picture."), f"It is {figure}."),
    }


def any_figure(rng: random.Random) -> Figure:
    """A shape or, as often, a digit."""
    return Figure(rng.choice(rng.choice((SHAPES, DIGITS))), rng.choice(list(COLOURS)))


def draw(
    rng: random.Random, *, heldout: bool = False, size: tuple[int, int] = (SIDE, SIDE), noise: bool = True
) -> Picture:
    """A picture of `size`, width and height in pixels; what it shows and how is random."""
    figure = any_figure(rng)
    width, height = (FINE * side for side in size)
    canvas = Image.new("RGB", (width, height), _background(rng, figure.colour))
    radius = rng.uniform(0.25, 0.42) * min(width, height)
    centre = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
    ink = _shade(rng, figure.colour)
    if figure.kind == "digit":
        _digit(canvas, figure.name, centre, radius, ink, rng, heldout)
    else:
        _shape(canvas, figure.name, centre, radius, ink, rng)
    pixels = np.asarray(canvas.reduce(FINE))
    if noise:
        grain = np.random.default_rng(rng.getrandbits(32)).standard_normal(pixels.shape, np.float32)
        pixels = np.clip(pixels + np.float32(rng.uniform(0, 12)) * grain, 0, 255).astype(np.uint8)
    return Picture(pixels, figure)


def _shade(rng: random.Random, colour: str) -> tuple[int, int, int]:
    hue, saturation, value = COLOURS[colour]
    hue = (hue + rng.uniform(-6, 6)) / 360 % 1
    red, green, blue = colorsys.hsv_to_rgb(
        hue, saturation * rng.uniform(0.9, 1), min(1.0, value * rng.uniform(0.9, 1.1))
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def _background(rng: random.Random, colour: str) -> tuple[int, int, int]:
    """A shade of grey, light or, under a bright colour, dark as well; with a slight tint."""
    dark = colour not in ("black", "purple", "blue") and rng.random() < 0.3
    grey = rng.uniform(25, 60) if dark else rng.uniform(185, 255)
    return tuple(round(min(255.0, max(0.0, grey + rng.uniform(-8, 8)))) for _ in range(3))  # type: ignore[return-value]


def _shape(
    canvas: Image.Image, name: str, centre: Point, radius: float, ink: tuple[int, int, int], rng: random.Random
) -> None:
    pen = ImageDraw.Draw(canvas)
    around = (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
    if name == "circle":
        pen.ellipse(around, fill=ink)
    else:
        corners, most = OUTLINES[name]
        turn = math.radians(rng.uniform(-most, most))
        pen.polygon([_turned(point, turn, centre, radius) for point in corners(rng)], fill=ink)


def _turned(point: Point, turn: float, centre: Point, radius: float) -> Point:
    x, y = point
    return (
        centre[0] + radius * (x * math.cos(turn) - y * math.sin(turn)),
        centre[1] + radius * (x * math.sin(turn) + y * math.cos(turn)),
    )


def _ring_of(radii: list[float]) -> list[Point]:
    """Points around the middle, the first at the top."""
    turns = [2 * math.pi * i / len(radii) for i in range(len(radii))]
    return [(radius * math.sin(turn), -radius * math.cos(turn)) for radius, turn in zip(radii, turns, strict=True)]


def _square(rng: random.Random) -> list[Point]:
    return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]


def _triangle(rng: random.Random) -> list[Point]:
    return _ring_of([1.0] * 3)


def _star(rng: random.Random) -> list[Point]:
    return _ring_of([1.0, rng.uniform(0.38, 0.48)] * 5)


def _cross(rng: random.Random) -> list[Point]:
    w = rng.uniform(0.22, 0.34)
    quarter = [(-w, -1.0), (w, -1.0), (w, -w)]
    return [_turned(point, math.pi / 2 * i, (0, 0), 1) for i in range(4) for point in quarter]


# Corners in units of the radius, and the most degrees that the shape is turned by.
OUTLINES: dict[str, tuple[Callable[[random.Random], list[Point]], float]] = {
    "square": (_square, 25),
    "triangle": (_triangle, 60),
    "star": (_star, 36),
    "cross": (_cross, 25),
}


def _digit(
    canvas: Image.Image,
    digit: str,
    centre: Point,
    radius: float,
    ink: tuple[int, int, int],
    rng: random.Random,
    heldout: bool,
) -> None:
    """Draws a digit about twice `radius` high, turned by at most 15 degrees.

    Those to train on are stretched and slanted, and half of them are bolder than their font.
    """
    side = math.ceil(radius * 3)
    mask = Image.new("L", (side, side))
    font = _font(rng.choice(HELDOUT_FONTS if heldout else TRAINED_FONTS), round(radius * 2.5))
    bolder = 0 if heldout else max(0, round(radius * rng.uniform(-0.08, 0.08)))
    pen = ImageDraw.Draw(mask)
    pen.text((side / 2, side / 2), digit, fill=255, font=font, anchor="mm", stroke_width=bolder)
    if not heldout:
        width, slant = rng.uniform(0.8, 1.3), rng.uniform(-0.2, 0.2)
        shift = side / 2 * (1 - width - slant)  # the middle stays where it is
        across = (width, slant, shift, 0, 1, 0)
        mask = mask.transform(mask.size, Image.Transform.AFFINE, across, resample=Image.Resampling.BILINEAR)
    mask = mask.rotate(rng.uniform(-15, 15), resample=Image.Resampling.BILINEAR)
    canvas.paste(ink, (round(centre[0] - side / 2), round(centre[1] - side / 2)), mask)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    if name == "Aileron":
        return ImageFont.load_default(size)  # type: ignore[return-value]
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", f"{name}.ttf"), size)

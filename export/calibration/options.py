"""What can be chosen of a calibration, and its flags. Imports nothing heavy: commands read it before they start."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from checkpoints.errors import BadInput
from checkpoints.texts import find_texts


@dataclass(frozen=True)
class Method:
    """What a method does beyond searching scales."""

    gptq: bool  # levels by GPTQ, else to nearest
    fold: bool  # AWQ's channel scales, folded into the weights before
    sequences: int  # of calibration text that suffice


METHODS = {
    "scales": Method(gptq=False, fold=False, sequences=4),
    "gptq": Method(gptq=True, fold=False, sequences=16),
    "awq-gptq": Method(gptq=True, fold=True, sequences=16),
}
BEST = "awq-gptq"
SEQUENCE = 512  # tokens of a sequence
DEVICES = ("cpu", "cuda")
UNITS = {"%": 0, "": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3}  # % is of the weights' bytes


@dataclass(frozen=True)
class ExtraBytes:
    """What int8 linears among int4 may take beyond int4."""

    text: str  # as given
    number: float
    unit: str  # a key of UNITS
    keep_head: bool  # the bits of lm_head were asked for, and are not chosen

    def budget(self, weights: int) -> int:
        """In bytes, for so many bytes of weights."""
        return int(self.number * (weights / 100 if self.unit == "%" else UNITS[self.unit]))


@dataclass(frozen=True)
class Calibration:
    """How levels and scales are chosen; with a checkpoint and a recipe it decides their bytes."""

    name: str  # a key of METHODS
    texts: Mapping[str, str]  # by name
    count: int  # sequences of SEQUENCE tokens
    device: str = "cpu"
    extra: ExtraBytes | None = None  # for int8 linears

    @property
    def method(self) -> Method:
        return METHODS[self.name]


class CalibrationFlags(TypedDict, total=False):
    """What a command may choose of a Calibration; None is the default of each."""

    calibrate: str | None  # a key of METHODS; None: round to nearest
    calibration_text: Sequence[str | Path] | None
    calibration_sequences: int | None
    device: str
    extra_bytes: str | None


CALIBRATION = tuple(CalibrationFlags.__annotations__)


def add_calibration(parser: ArgumentParser) -> None:
    """The flags of CalibrationFlags."""
    parser.add_argument(
        "--calibrate",
        nargs="?",
        const=BEST,
        choices=METHODS,
        metavar="METHOD",
        help=f"choose levels on text instead of rounding to nearest: {', '.join(METHODS)} (without a word: {BEST})",
    )
    parser.add_argument(
        "--calibration-text",
        nargs="+",
        metavar="FILE",
        help="texts in UTF-8 in the place of ours, best of several kinds",
    )
    counts = ", ".join(f"{method.sequences} for {name}" for name, method in METHODS.items())
    parser.add_argument(
        "--calibration-sequences", type=int, metavar="N", help=f"of {SEQUENCE} tokens (default: {counts})"
    )
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="that calibrates (default: %(default)s)")
    parser.add_argument(
        "--extra-bytes",
        metavar="N",
        help="make the linears int8 where that pays most, for so much more: 5%% (of the weights), 20MB",
    )


def make_calibration(
    calibrate: str | None = None,
    calibration_text: Sequence[str | Path] | None = None,
    calibration_sequences: int | None = None,
    device: str = "cpu",
    extra_bytes: str | None = None,
    head_bits: int | None = None,
) -> Calibration | None:
    """The calibration that flags ask for, None without one; BadInput for what is none of the choices.

    With `head_bits` asked for, `extra_bytes` go to other linears than lm_head.
    """
    if calibrate is None:
        given = {
            "--calibration-text": calibration_text,
            "--calibration-sequences": calibration_sequences,
            "--extra-bytes": extra_bytes,
        }
        if left := [flag for flag, value in given.items() if value is not None]:
            raise BadInput(f"{left[0]} is for --calibrate, which is not given")
        return None
    if calibrate not in METHODS:
        raise BadInput(f"--calibrate {calibrate} is none of {', '.join(METHODS)}")
    count = METHODS[calibrate].sequences if calibration_sequences is None else calibration_sequences
    if count < 1:
        raise BadInput(f"--calibration-sequences {count} is below 1")
    if device not in DEVICES:
        raise BadInput(f"--device {device} is none of {', '.join(DEVICES)}")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise BadInput("--device cuda: torch finds no CUDA device on this machine")
    extra = None if extra_bytes is None else _extra(extra_bytes, head_bits is not None)
    return Calibration(calibrate, find_texts("calibration", calibration_text), count, device, extra)


def _extra(text: str, keep_head: bool) -> ExtraBytes:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(%|[KMG]?B|)", text, re.IGNORECASE | re.ASCII)
    if not match or not float(match[1]):
        raise BadInput(f"--extra-bytes {text} is no size like 5% or 20MB")
    return ExtraBytes(text, float(match[1]), match[2].upper(), keep_head)

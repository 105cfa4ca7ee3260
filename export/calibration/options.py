"""What can be chosen of a calibration, and its flags. Imports nothing heavy: commands read it before they start."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Calibration:
    """How levels and scales are chosen; with a checkpoint and a recipe it decides their bytes."""

    name: str  # a key of METHODS
    texts: Mapping[str, str]  # by name
    count: int  # sequences of SEQUENCE tokens
    device: str = "cpu"

    @property
    def method(self) -> Method:
        return METHODS[self.name]


class CalibrationFlags(TypedDict, total=False):
    """What a command may choose of a Calibration; None is the default of each."""

    calibrate: str | None  # a key of METHODS; None: round to nearest
    calibration_text: Sequence[str | Path] | None
    calibration_sequences: int | None
    device: str


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


def make_calibration(
    calibrate: str | None = None,
    calibration_text: Sequence[str | Path] | None = None,
    calibration_sequences: int | None = None,
    device: str = "cpu",
) -> Calibration | None:
    """The calibration that flags ask for, None without one; BadInput for what is none of the choices."""
    if calibrate is None:
        given = {"--calibration-text": calibration_text, "--calibration-sequences": calibration_sequences}
        if extra := [flag for flag, value in given.items() if value is not None]:
            raise BadInput(f"{extra[0]} is for --calibrate, which is not given")
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
    return Calibration(calibrate, find_texts("calibration", calibration_text), count, device)

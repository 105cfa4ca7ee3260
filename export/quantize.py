"""Keeps a checkpoint quantized: `python -m export.quantize --checkpoint C --out DIR`.

The folder is one of transformers with torchao, as `export.quantization.saved_writer` says. With --calibrate levels
and scales are chosen on text, in the same format and as many bytes; with --extra-bytes those linears are int8 where
that pays most. Of a multimodal checkpoint it is the text model alone, for export.pte --text-weights.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from checkpoints.errors import run
from checkpoints.files import check_folder
from checkpoints.phi4mm_config import TEXT
from checkpoints.source import find_source
from checkpoints.untied import Untied
from checkpoints.weights import open_checkpoint
from export.calibration.options import CALIBRATION, CalibrationFlags, add_calibration, make_calibration
from export.flags import add_adapters, add_recipe, stage_parser
from export.progress import bar, quiet
from export.quantization.recipe import RecipeFlags, make_recipe
from export.quantization.rounding import Quantizing
from export.quantization.saved_writer import nbytes, plan, save_quantized


class Options(RecipeFlags, CalibrationFlags, total=False):
    """What can be chosen."""


def quantize(
    checkpoint: str | None = None,
    *,
    out: str | os.PathLike[str],
    revision: str | None = None,
    adapter: Sequence[str | os.PathLike[str]] | None = None,
    adapter_scale: Sequence[float] | None = None,
    **options: Unpack[Options],
) -> Path:
    """Write a checkpoint (hub id, folder or "phi4-tiny") untied and quantized at `out`; whole or not at all.

    `options` are those of a recipe and of a calibration. Stopped, a calibration goes on where it was with the same
    ones.
    """
    given: dict[str, Any] = dict(options)
    asked = {key: given.pop(key) for key in CALIBRATION if key in given}
    calibration = make_calibration(**asked, head_bits=given.get("head_bits"))
    recipe = make_recipe(**given)
    source = find_source(checkpoint, revision=revision, adapter=adapter, adapter_scale=adapter_scale)
    check_folder(out := Path(out))
    if calibration is not None:
        from export.calibration.calibrate import calibrate  # imports transformers

        record = calibrate(source, recipe, calibration, out, bar)
        if "mixed" in record:
            from export.calibration.mixing import price

            print(price(record["mixed"]), file=sys.stderr)
        return out
    opened = open_checkpoint(source.folder, source.adapters, modalities=[TEXT])
    quantizing = Quantizing(Untied(opened), recipe)
    with bar("quantize", nbytes(plan(quantizing))) as progress:
        save_quantized(quantizing, out, progress)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module docstring."""
    parser = stage_parser("quantize", __doc__)
    add_adapters(parser)
    add_recipe(parser)
    add_calibration(parser)
    flags = vars(parser.parse_args(argv))
    quiet(verbose=False)
    print(quantize(**flags))


command = partial(run, main)  # the script of pyproject.toml

if __name__ == "__main__":
    command()

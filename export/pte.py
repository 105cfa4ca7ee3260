"""From a Hugging Face checkpoint to a verified `.pte`: `python -m export.pte --out phi4-mini-8da4w.pte`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from checkpoints.errors import run
from checkpoints.source import find_source
from export.calibration.options import CALIBRATION, add_calibration, make_calibration
from export.engine.native_output import hushed
from export.flags import (
    add_adapters,
    add_checkpoint,
    add_file,
    add_media,
    add_recipe,
    command_parser,
    whole_numbers,
)
from export.progress import quiet

if TYPE_CHECKING:
    from export.calibration.options import CalibrationFlags
    from export.options import Flags
    from export.pipeline import Exported

    class Options(Flags, CalibrationFlags, total=False):
        """What can be chosen."""


def export_pte(
    checkpoint: str | None = None,
    *,
    out: str | os.PathLike[str],
    revision: str | None = None,
    adapter: Sequence[str | os.PathLike[str]] | None = None,
    adapter_scale: Sequence[float] | None = None,
    modalities: Sequence[str] | None = None,
    merge: str | None = None,
    text_weights: str | os.PathLike[str] | None = None,
    save_quantized: str | os.PathLike[str] | None = None,
    verify: bool = True,
    verbose: bool = False,
    **options: Unpack[Options],
) -> Exported:
    """Export a checkpoint (hub id, folder or "phi4-tiny") to `out`; tokenizer and manifest are put beside it.

    `options` are those of `export.options.Flags` and `export.calibration.options.CalibrationFlags`. Raises BadInput
    for anything wrong with the input, and leaves nothing under the final names then, nor when interrupted or when the
    verification fails.
    """
    quiet(verbose)
    path = Path(out)
    given: dict[str, Any] = dict(options)
    asked = {key: given.pop(key) for key in CALIBRATION if key in given}
    calibration = make_calibration(**asked, head_bits=given.get("head_bits"))
    with hushed(f"the export of {path} was ended by C++ code; --verbose shows more", verbose):
        from export.options import from_flags  # imports torch
        from export.pipeline import export_calibrated, export_checkpoint
        from export.publishing import check_place

        check_place(path)
        quantized_out = None if save_quantized is None else Path(save_quantized)
        source = find_source(
            checkpoint,
            revision=revision,
            adapter=adapter,
            adapter_scale=adapter_scale,
            modalities=modalities,
            merge=merge,
            text_weights=text_weights,
        )
        if calibration is None:
            return export_checkpoint(source, path, from_flags(**given), quantized_out, verify)
        return export_calibrated(source, path, from_flags(**given), calibration, quantized_out, verify)


def print_exported(exported: Exported) -> None:
    """The few lines a person wants to see at the end."""
    from rich.console import Console
    from rich.table import Table

    manifest = exported.manifest
    table = Table(show_header=False, box=None, pad_edge=False)
    planned, options = manifest["planned"], manifest["options"]
    rows = {
        "file": f"{exported.path}  {manifest['file']['bytes'] / 1e6:,.1f} MB",
        "beside it": f"{exported.tokenizer_path.name}, {exported.manifest_path.name}",
        "sha256": manifest["file"]["sha256"],
        "weights": manifest["recipe"],
        "context": f"{options['context']} tokens, {options['prefill_chunk']} at once",
        "planned": f"KV cache {planned['kv_cache_bytes'] / 1e6:,.1f} MB ({options['kv_cache']}), "
        f"activations {planned['activation_bytes'] / 1e6:,.1f} MB",
        "verified": "yes" if manifest["verification"] else "no (--no-verify)",
    }
    if mixed := (manifest["calibration"] or {}).get("mixed"):
        from export.calibration.mixing import price

        rows["int8"] = price(mixed)
    for key, value in rows.items():
        table.add_row(f"[bold]{key}", value)
    console = Console()
    console.print(table)
    for note in manifest["notes"]:
        console.print(f"note: {note}", style="yellow", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the module docstring."""
    parser = command_parser("pte", __doc__)
    parser.add_argument("--out", required=True, help="the .pte to write; tokenizer and manifest go beside it")
    add_checkpoint(parser)
    add_adapters(parser)
    add_file(parser)
    add_recipe(parser)
    add_media(parser)
    parser.add_argument("--max-crops", type=int, default=4, metavar="N", help="of a picture (default: %(default)s)")
    add_calibration(parser)
    parser.add_argument("--bos-id", type=int, help="default: the checkpoint's")
    parser.add_argument(
        "--eos-ids", type=whole_numbers("ids like 200020,199999"), help="comma-separated; default: the checkpoint's"
    )
    parser.add_argument("--save-quantized", metavar="DIR", help="also keep the quantized checkpoint")
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="skip the verification at the end")
    parser.add_argument("--json", action="store_true", help="print the manifest")
    parser.add_argument("--verbose", action="store_true", help="show upstream's logs and warnings")
    flags = vars(parser.parse_args(argv))
    as_json = flags.pop("json")
    exported = export_pte(**flags)
    if as_json:
        print(json.dumps(exported.manifest, indent=2))
    else:
        print_exported(exported)
    return 0


command = partial(run, main)  # the script of pyproject.toml

if __name__ == "__main__":
    command()

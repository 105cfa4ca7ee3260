"""Checks a `.pte`, run by the wheel's C++ runtime as on phones, against transformers: `python -m export.verify FILE`.

Five questions, each answered by numbers with bounds (`export.verification.checks` says where they come from). Are
the file's weights the checkpoint's, rounded? On these weights, are its logits those of transformers? Are its rotary
factors those for its context? Do the logits agree however tokens are fed: at once, in chunks, one by one? And does it
diverge from the checkpoint's own weights by no more than quantization explains?

A file has one table of rotary factors, for its whole context: made for more than original_max_position_embeddings
tokens it uses the long factors at every length, as the phones' runners do, and is compared with transformers made to
do the same. Memory: the running file, in a process of its own; after that one layer in float32 and the logits.

A file of calibrated weights is compared with its quantized checkpoint, whose weights it must have exactly; with
--original, the float checkpoint that was made of, what they lose is measured against that one.

With --cpu the file is run by emulated arm64 CPUs instead, by the code a phone runs: `export.verification.emulated`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from checkpoints.errors import run
from checkpoints.source import Given, Source, find_source
from export.flags import FILE_HELP, add_adapters, add_checkpoint, add_merge, command_parser
from export.progress import quiet
from export.ptefile.find import resolve_file
from export.verification import verify as verification
from export.verification.extent import SHORT, Extent

if TYPE_CHECKING:
    from export.verification.compare import Report


FAR = 0.3  # nats of KL from the checkpoint that are worth a word


def verify(
    file: str | os.PathLike[str],
    checkpoint: str | None = None,
    *,
    text: str | os.PathLike[str] | None = None,
    tokens: int | None = None,
    short: bool = False,
    long: bool = False,
    original: str | None = None,
    progress: Callable[[str], None] = lambda step: None,
    **given: Unpack[Given],
) -> Report:
    """Compare `file` with a checkpoint (hub id, folder or "phi4-tiny") on a text; see `export.verification.verify`.

    `text` is a file in UTF-8 (default: the checkpoint's heldout.txt, else a page of English) of which `tokens` are
    compared. `short` is what an export ends with; `long` goes past original_max_position_embeddings.
    """
    extent, path = _extent(text, tokens, short, long), resolve_file(file)
    source, base = _sources(checkpoint, original, given)
    return verification.verify(path, source, extent, progress, base)


def verify_emulated(
    file: str | os.PathLike[str],
    checkpoint: str | None = None,
    *,
    cpu: Sequence[str],
    text: str | os.PathLike[str] | None = None,
    tokens: int | None = None,
    short: bool = False,
    long: bool = False,
    original: str | None = None,
    progress: Callable[[str], None] = lambda step: None,
    **given: Unpack[Given],
) -> list[Report]:
    """`verify` with the file run on each of these arm64 CPUs, emulated by qemu, against one reference.

    BadInput also where qemu does not know a CPU or a tool is missing.
    """
    from export.verification.arm64.toolchain import check_cpus  # for Linux alone

    check_cpus(cpu)  # before a download
    extent, path = _extent(text, tokens, short, long), resolve_file(file)
    source, base = _sources(checkpoint, original, given)
    return verification.verify_emulated(path, source, extent, cpu, progress, base)


def _sources(checkpoint: str | None, original: str | None, given: Given) -> tuple[Source, Source | None]:
    """The checkpoint, and the original if there is one: a revision and adapters are then the original's."""
    if original is None:
        return find_source(checkpoint, **given), None
    return find_source(checkpoint), find_source(original, **given)


def _extent(text: str | os.PathLike[str] | None, tokens: int | None, short: bool, long: bool) -> Extent:
    usual = SHORT if short else Extent()
    return Extent(usual.tokens if tokens is None else tokens, None if text is None else Path(text), short, long)


def print_report(report: Report) -> None:
    """For people: the checks, and what quantization costs."""
    console = Console()
    where = f" on an emulated {report.cpu}" if report.cpu else ""
    console.print(
        f"[bold]{escape(report.file)}[/]{where}: {report.recipe}; {report.kv_cache} KV cache of "
        f"{report.context_tokens} tokens, {report.chunk_tokens} at once; {report.rotary_factors} rotary factors\n"
        f"against {escape(report.checkpoint)}, on {report.tokens} tokens of {escape(report.text)}",
        highlight=False,
    )
    table = Table("check", "measured", "at most", "", "", box=SIMPLE_HEAD, pad_edge=False)
    for check in report.checks:
        verdict = "[green]pass" if check.passed else "[bold red]FAIL"
        table.add_row(check.name, *check.numbers(), verdict, escape(check.detail))
    console.print(table)
    quality = report.quality
    console.print(
        f"against the checkpoint's own weights, {quality.positions} positions: KL {quality.kl_mean_nats:.4f} nats "
        f"(worst {quality.kl_max_nats:.4f}), top-1 the same at {quality.top1_agreement:.1%}, perplexity "
        f"{quality.perplexity_checkpoint:.2f}, the file {quality.perplexity_file:.2f} "
        f"({quality.perplexity_change_percent:+.2f} %)",
        highlight=False,
    )
    if report.calibration:
        console.print(_calibrated(report.calibration), highlight=False)
    if quality.kl_mean_nats > FAR:
        console.print(
            "[yellow]That is far from the checkpoint: answers may differ or ramble. Calibrated levels lose less "
            "(python -m export.quantize --calibrate)."
        )
    console.print("[green]passed" if report.passed else f"[bold red]failed {len(report.failures)} checks")


def _calibrated(record: dict[str, Any]) -> str:
    """What a calibrated checkpoint says of itself."""
    found, name = record["fidelity"], record["checkpoint"]["name"]
    ours, nearest = found["calibrated"], found["nearest"]
    return (
        f"calibrated ({escape(record['method'])}); against the original {escape(name)}, measured then on "
        f"{ours['positions']} tokens of {escape(found['text'])}: KL {ours['kl_mean_nats']:.4f} nats where rounding "
        f"to nearest loses {nearest['kl_mean_nats']:.4f}, top-1 the same at {ours['top1_agreement']:.1%} and "
        f"{nearest['top1_agreement']:.1%}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the module docstring."""
    parser = command_parser("verify", __doc__)
    parser.add_argument("file", metavar="FILE", help=FILE_HELP)
    add_checkpoint(parser)
    add_adapters(parser)
    add_merge(parser)
    parser.add_argument(
        "--original",
        metavar="C",
        help="the float checkpoint that --checkpoint is the quantized one of: hub id or folder",
    )
    parser.add_argument(
        "--text", metavar="FILE", help="text in UTF-8 (default: the checkpoint's heldout.txt, or ours)"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        help=f"how many (default: {Extent.tokens}, with --short {SHORT.tokens})",
    )
    parser.add_argument("--short", action="store_true", help="fewer: what an export ends with")
    parser.add_argument("--long", action="store_true", help="also beyond original_max_position_embeddings")
    cpus = "run the file on these arm64 CPUs, emulated, such as cortex-a53,cortex-a76,max; a report for each"
    parser.add_argument("--cpu", metavar="LIST", type=lambda names: names.split(","), help=cpus)
    parser.add_argument("--json", action="store_true", help="print the report as JSON (a list of them with --cpu)")
    flags = vars(parser.parse_args(argv))
    as_json, cpu = flags.pop("json"), flags.pop("cpu")
    quiet(verbose=False)
    # Before torch is imported: the file runs beside the reference, and a thread that spins while it waits takes the
    # other's core.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with Console(stderr=True).status("reading") as status:
        if cpu is None:
            reports = [verify(**flags, progress=status.update)]
        else:
            reports = verify_emulated(**flags, cpu=cpu, progress=status.update)
    if as_json:
        found = [_finite(asdict(report)) for report in reports]
        print(json.dumps(found[0] if cpu is None else found, indent=2))
    else:
        for report in reports:
            print_report(report)
    return 0 if all(report.passed for report in reports) else 1


def _finite(value: Any) -> Any:
    """The same with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


command = partial(run, main)  # the script of pyproject.toml

if __name__ == "__main__":
    command()

"""Checks a `.pte`, run by the wheel's C++ runtime, against transformers: `python -m export.verify FILE`.

Five questions, each answered by numbers with bounds (`export.verification.checks` says where they come from). Are
the file's weights the checkpoint's, rounded? On these weights, are its logits those of transformers? Are its rotary
factors those for its context? Do the logits agree however tokens are fed: at once, in chunks, one by one? And does it
diverge from the checkpoint's own weights by no more than quantization explains?

A file has one table of rotary factors, for its whole context: made for more than original_max_position_embeddings
tokens it uses the long factors at every length, as the phones' runners do, and is compared with transformers made to
do the same. Memory: the running file, in a process of its own; after that one layer in float32 and the logits.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from checkpoints.errors import run
from checkpoints.source import find_source
from export.flags import add_adapters, add_checkpoint, command_parser
from export.progress import quiet
from export.verification import verify as verification

if TYPE_CHECKING:
    from export.verification.compare import Report


def verify(
    file: str | os.PathLike[str],
    checkpoint: str | None = None,
    *,
    revision: str | None = None,
    adapter: Sequence[str | os.PathLike[str]] | None = None,
    adapter_scale: Sequence[float] | None = None,
    text: str | os.PathLike[str] | None = None,
    tokens: int | None = None,
    short: bool = False,
    long: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Report:
    """Compare `file` with a checkpoint (hub id, folder or "phi4-tiny") on a text; see `export.verification.verify`.

    `text` is a file in UTF-8 (default: the checkpoint's heldout.txt, else a page of English) of which `tokens` are
    compared. `short` is what an export ends with; `long` goes past original_max_position_embeddings.
    """
    usual = verification.SHORT if short else verification.Extent()
    extent = verification.Extent(
        usual.tokens if tokens is None else tokens, None if text is None else Path(text), short, long
    )
    source = find_source(checkpoint, revision=revision, adapter=adapter, adapter_scale=adapter_scale)
    return verification.verify(Path(file), source, extent, progress)


def print_report(report: Report) -> None:
    """For people: the checks, and what quantization costs."""
    console = Console()
    console.print(
        f"[bold]{escape(report.file)}[/]: {report.recipe}; {report.kv_cache} KV cache of {report.context_tokens} "
        f"tokens, {report.chunk_tokens} at once; {report.rotary_factors} rotary factors\n"
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
    console.print("[green]passed" if report.passed else f"[bold red]failed {len(report.failures)} checks")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the module docstring."""
    parser = command_parser("verify", __doc__)
    parser.add_argument("file", metavar="FILE", help="the .pte")
    add_checkpoint(parser)
    add_adapters(parser)
    parser.add_argument(
        "--text", metavar="FILE", help="text in UTF-8 (default: the checkpoint's heldout.txt, or ours)"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        help=f"how many (default: {verification.Extent.tokens}, with --short {verification.SHORT.tokens})",
    )
    parser.add_argument("--short", action="store_true", help="fewer: what an export ends with")
    parser.add_argument("--long", action="store_true", help="also beyond original_max_position_embeddings")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    flags = vars(parser.parse_args(argv))
    as_json = flags.pop("json")
    quiet(verbose=False)
    # Before torch is imported: the file runs beside the reference, and a thread that spins while it waits takes the
    # other's core.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with Console(stderr=True).status("reading") as status:
        report = verify(**flags, progress=status.update)
    if as_json:
        print(json.dumps(_finite(asdict(report)), indent=2))
    else:
        print_report(report)
    return 0 if report.passed else 1


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

"""Checks a `.pte`, run by the wheel's C++ runtime as on phones, against transformers: `python -m export.verify FILE`.

Five questions, each answered by numbers with bounds (`export.checks` says where they come from). Are the file's
weights the checkpoint's, rounded? On these weights, are its logits those of transformers? Are its rotary factors
those for its context? Do the logits agree however tokens are fed: at once, in chunks, one by one? And does it diverge
from the checkpoint's own weights by no more than quantization explains?

A file has one table of rotary factors, for its whole context: made for more than original_max_position_embeddings
tokens it uses the long factors at every length, as the phones' runners do, and is compared with transformers made to
do the same. Memory: the running file, in a process of its own; after that one layer in float32 and the logits.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from checkpoints.errors import BadInput, run
from checkpoints.source import DEFAULT, EMBEDDED, resolve
from export.child import Child
from export.progress import quiet

if TYPE_CHECKING:
    from export.compare import Report

TOKENS, SHORT_TOKENS = 128, 40


def verify(
    file: str | os.PathLike[str],
    checkpoint: str | None = None,
    *,
    revision: str | None = None,
    text: str | os.PathLike[str] | None = None,
    tokens: int | None = None,
    short: bool = False,
    long: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Report:
    """Compare `file` with a checkpoint (hub id, folder or "phi4-tiny") on a text.

    `text` is a file in UTF-8 (default: the checkpoint's heldout.txt, else a page of English) of which `tokens` are
    compared. `short` is what an export ends with; `long` goes past original_max_position_embeddings. A wrong file
    gets a Report that says so; BadInput is for a file that is no `.pte` of this model or that the runtime refuses.
    """
    if tokens is not None and tokens < 2:
        raise BadInput(f"--tokens must be at least 2, it is {tokens}")
    source, place = resolve(checkpoint, revision), Path(file)
    if not place.is_file():
        raise BadInput(f"{place} is not a file")
    count = tokens or (SHORT_TOKENS if short else TOKENS)
    with Child(imports="export.runtime") as child:  # beside the imports of this process
        from export.compare import compare  # imports torch and transformers

        return compare(place, source, None if text is None else Path(text), count, short, long, progress, child)


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
    parser = argparse.ArgumentParser(prog="python -m export.verify", description=__doc__.split("\n\n")[0])
    parser.add_argument("file", metavar="FILE", help="the .pte")
    parser.add_argument("--checkpoint", help=f"hub id, folder, or {EMBEDDED} (default: {DEFAULT})")
    parser.add_argument("--revision", help="commit, branch or tag of a hub id")
    parser.add_argument(
        "--text", metavar="FILE", help="text in UTF-8 (default: the checkpoint's heldout.txt, or ours)"
    )
    parser.add_argument("--tokens", type=int, help=f"how many (default: {TOKENS}, with --short {SHORT_TOKENS})")
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


if __name__ == "__main__":
    run(main)

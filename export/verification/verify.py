"""Starts a verification, and the process that runs the file beside it.

Imports nothing heavy, so that the new process imports the runtime while this one imports the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints.errors import BadInput
from export.subprocess_call import Child
from export.verification.extent import Extent

if TYPE_CHECKING:
    from checkpoints.source import Source
    from export.verification.compare import Report


def verify(
    file: Path,
    source: Source,
    extent: Extent,
    progress: Callable[[str], None] = lambda step: None,
    original: Source | None = None,
) -> Report:
    """Compare `file` with a checkpoint on a text.

    `original` is the float one where `source` is a quantized one made of it: weights must be those of `source`, and
    what they lose is measured against the original.

    A wrong file gets a Report that says so; BadInput is for a file that is no `.pte` of this model or that the
    runtime refuses.
    """
    _check(file, extent)
    with Child("export.engine.session") as child:  # beside the imports of this process
        from export.engine.session import run_feeds
        from export.verification.compare import compare  # imports torch and transformers

        [report] = compare(file, source, extent, progress, child, {None: run_feeds}, original)
    return report


def verify_emulated(
    file: Path,
    source: Source,
    extent: Extent,
    cpus: Sequence[str],
    progress: Callable[[str], None] = lambda step: None,
    original: Source | None = None,
) -> list[Report]:
    """The same with the file run on each of these arm64 CPUs, which `check_cpus` accepts, against one reference."""
    _check(file, extent)
    with Child("export.verification.emulated") as child:
        from export.verification.compare import Runner, compare
        from export.verification.emulated import run_emulated

        runners: dict[str | None, Runner] = {cpu: partial(run_emulated, cpu) for cpu in cpus}
        return compare(file, source, extent, progress, child, runners, original)


def _check(file: Path, extent: Extent) -> None:
    if extent.tokens < 2:
        raise BadInput(f"--tokens must be at least 2, it is {extent.tokens}")
    if not file.is_file():
        raise BadInput(f"{file} is not a file")

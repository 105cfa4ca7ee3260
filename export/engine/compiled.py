"""C++ of ours that is compiled on first use: the compiler, and `checkpoints.cache` for what it made."""

from __future__ import annotations

import subprocess
from pathlib import Path

from checkpoints.cache import CACHE, cache_folder
from checkpoints.cache import made_once as compiled
from checkpoints.errors import BadInput

__all__ = ["CACHE", "cache_folder", "compiled", "run_compiler"]


def run_compiler(compiler: str, *arguments: str | Path) -> str:
    """What the compiler prints; BadInput with its first error where it fails or is not there."""
    try:
        ran = subprocess.run([compiler, *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise BadInput(f"{compiler} is not installed: a C++ compiler is needed") from None
    if ran.returncode:
        errors = [line for line in ran.stderr.splitlines() if "error" in line] or ["no word of why"]
        raise BadInput(f"{compiler} fails: {errors[0]}")
    return ran.stdout

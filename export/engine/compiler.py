"""Runs a compiler; what it makes is kept by `checkpoints.cache`."""

from __future__ import annotations

import subprocess
from pathlib import Path

from checkpoints.errors import BadInput


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

"""Tools that not every machine has: a test that needs one is left out and says so, or fails where all must run."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

REQUIRED = "POCKETPHI_REQUIRE_TOOLS"


def need(part: str, missing: Sequence[str], how: str = "tests/install_tools") -> None:
    """Go on only if nothing is missing; the command `how` with `part` would bring it."""
    if not missing:
        return
    sentence = f"needs {', '.join(missing)}: {how} {part}"
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{sentence} ({REQUIRED}=1)")
    pytest.skip(sentence)

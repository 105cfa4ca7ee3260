"""Tools that not every machine has: a test that needs one is left out and says so, or fails where all must run."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

REQUIRED = "POCKETPHI_REQUIRE_TOOLS"


def need(part: str, missing: Sequence[str]) -> None:
    """Go on only if nothing is missing; `part` of tests/install_tools would bring it."""
    if not missing:
        return
    sentence = f"needs {', '.join(missing)}: tests/install_tools {part}"
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{sentence} ({REQUIRED}=1)")
    pytest.skip(sentence)

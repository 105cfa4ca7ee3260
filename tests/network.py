"""The machine's network interfaces, by which the tests' phones come and go, and no browser must see that.

Chromium drops every request when one of them changes (ERR_NETWORK_CHANGED), whatever it is connected to.
"""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = Path(tempfile.gettempdir(), "pocketphi-network.lock")


@contextmanager
def unchanged() -> Iterator[None]:
    """No test that `changing` guards changes an interface meanwhile, in whatever process."""
    yield from _locked(fcntl.LOCK_SH)


@contextmanager
def changing() -> Iterator[None]:
    yield from _locked(fcntl.LOCK_EX)


def _locked(how: int) -> Iterator[None]:
    with LOCK.open("w") as file:
        fcntl.flock(file, how)
        yield

"""Threads, one a core, for pieces of work the size of a cache: each computes alone, waiting for no other.

Pieces that are cut the same way on every machine give the same bits whatever the number of threads: sums within a
piece are those of one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """As many as torch has threads; the caller's own work is single-threaded meanwhile, too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # A thread of its own has its own setting.
        pool = ThreadPoolExecutor(threads, initializer=_alone)
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)  # a stop does not wait for what was not begun
    finally:
        torch.set_num_threads(threads)


def _alone() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)

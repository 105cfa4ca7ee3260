"""Runs a `.pte` on an emulated arm64 CPU, by the same runtime's arm64 libraries, set up as phones set it up.

Beside `export.engine.session`, which runs it on this machine; knows nothing of what the logits should be.
"""

from __future__ import annotations

import signal
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from checkpoints.errors import BadInput
from export.engine.session import Feed, Runs, collect
from export.subprocess_call import ChildDied, last_line
from export.verification.arm64.toolchain import command

REFUSED, FAILED = 3, 4  # exit codes of run.cpp


def run_emulated(cpu: str, path: Path, tokens: Sequence[int], feeds: Sequence[Feed]) -> Runs:
    """What `run_feeds` gives, from a CPU that `check_cpus` accepts.

    BadInput where the runtime refuses the file or fails, ChildDied where it ends the emulated process.
    """
    with (
        tempfile.TemporaryFile("w+", errors="replace") as log,
        subprocess.Popen([*command(cpu), path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        assert process.stdin and process.stdout
        calls, answers = process.stdin, process.stdout

        def step(ids: Sequence[int], start_pos: int) -> np.ndarray:
            try:
                calls.write(f"{start_pos} {' '.join(map(str, ids))}\n".encode())
                calls.flush()
                rows, columns = struct.unpack("<qq", answers.read(16))
                return np.frombuffer(answers.read(4 * rows * columns), "<f4").reshape(rows, columns)
            except (BrokenPipeError, struct.error, ValueError):  # no answer, or half of one
                with suppress(BrokenPipeError):
                    calls.close()
            code = process.wait()
            log.seek(0)
            last = last_line(log.read().partition("qemu: uncaught")[0])
            if code in (REFUSED, FAILED):
                what = "refuses it" if code == REFUSED else f"fails on {len(ids)} tokens at position {start_pos}"
                raise BadInput(f"{path}: ExecuTorch's runtime on {cpu} {what} ({last})")
            raise ChildDied(f"{cpu}, {signal.strsignal(-code) if code < 0 else f'exit code {code}'}: {last}")

        return collect(step, tokens, feeds)

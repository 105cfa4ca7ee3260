"""Keeps what C++ libraries print off the terminal, without losing it when something goes wrong.

The runner of executorch 1.5.1 prints every piece of the answer to C's stdout and a page of logs to C's stderr, and
offers no switch for either. Python's own sys.stdout and sys.stderr go on working inside `hushed`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator

from checkpoints.errors import BadInput
from export.subprocess_call import last_line

# The last lines live in a process of their own, which prints them when the pipe from us closes: a failed assertion in
# C++, or a damaged file, ends our process without another word.
FAREWELL = b"\n\0\n"
KEEPER = """
import collections, sys
lines, farewell = collections.deque(maxlen=20), False
for line in sys.stdin.buffer:  # processes we started may hold the pipe open after us
    if farewell := line == b"\\0\\n":
        break
    lines.append(line)
lines = [line.rstrip() + b"\\n" for line in lines if line.strip()]
if not farewell:
    lines.append(b"error: " + sys.argv[1].encode(errors="replace") + b"\\n")
sys.stderr.buffer.writelines(lines)
"""


@contextlib.contextmanager
def hushed(crash: str, verbose: bool = False) -> Iterator[None]:
    """Drop C's stdout and keep back its stderr, whose last lines are shown after any error but BadInput.

    `crash` is the sentence shown below them where C++ ends the process. With `verbose` both streams go to stderr as
    they come. Not for two threads at once: the file descriptors belong to the process.
    """
    with contextlib.ExitStack() as stack:
        out, err = os.dup(1), os.dup(2)
        stack.callback(os.close, out)
        stack.callback(os.close, err)
        for name, number, real in (("stdout", 1, out), ("stderr", 2, err)):
            stream = getattr(sys, name)
            stream.flush()
            if _fileno(stream) == number:  # not where a test or a notebook has put something else
                ours = open(real, "w", 1, stream.encoding, stream.errors, closefd=False)  # noqa: SIM115
                setattr(sys, name, ours)
                stack.callback(setattr, sys, name, stream)
                stack.callback(ours.close)
        stack.callback(_restore, out, err)
        if verbose:
            os.dup2(err, 1)
            yield
            return
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", KEEPER, crash],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=err,
            start_new_session=True,  # Ctrl-C is for us
        )
        assert keeper.stdin is not None
        os.dup2(keeper.stdin.fileno(), 2)
        to_nothing(1)
        silent = True
        try:
            yield
        except (BadInput, KeyboardInterrupt, BrokenPipeError):
            raise
        except BaseException:
            silent = False
            raise
        finally:
            _restore(out, err)
            if silent:
                keeper.kill()
            else:
                keeper.stdin.write(FAREWELL)
            with contextlib.suppress(BrokenPipeError):
                keeper.stdin.close()
            keeper.wait()


def _restore(out: int, err: int) -> None:
    # C keeps its own buffers: without this they would come out later, on the real stdout.
    ctypes.CDLL(None).fflush(None)
    os.dup2(out, 1)
    os.dup2(err, 2)


def _fileno(stream: object) -> int | None:
    try:
        return stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return None


def to_nothing(descriptor: int) -> None:
    """Drop all that is written to a file descriptor from now on."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, descriptor)
    os.close(nothing)


_one_at_a_time = threading.RLock()  # file descriptors belong to the process


@contextlib.contextmanager
def native_errors(complaint: str) -> Iterator[None]:
    """Keep what C++ code writes to stderr off the terminal, and turn the runtime's errors into BadInput.

    One thread at a time: another one waits.
    """
    # What C++ logs comes partly by way of Python's stderr, partly through the descriptor.
    with (
        _one_at_a_time,
        tempfile.TemporaryFile("w+", errors="replace", buffering=1) as log,
        contextlib.redirect_stderr(log),
    ):
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield
        except RuntimeError as problem:
            log.seek(0)
            raise BadInput(f"{complaint}: {problem} ({last_line(log.read())})") from None
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)

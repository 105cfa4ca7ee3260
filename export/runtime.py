"""Runs a `.pte` with the C++ runtime of the executorch wheel, the code a phone runs.

Knows a program's methods, tokens and logits; knows nothing of checkpoints, text or what the logits should be.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import executorch.extension.llm.custom_ops.custom_ops  # noqa: F401  registers llama::update_cache, custom_sdpa
import executorch.kernels.quantized  # noqa: F401  registers the quantized embeddings
import torch
from executorch.runtime import Runtime
from torch import Tensor

from checkpoints.errors import BadInput

P = ParamSpec("P")
T = TypeVar("T")


class Session:
    """One loaded file: its constant methods and one KV cache, which `step` writes.

    Memory: packed weights, KV cache and planned activations, until the session is dropped. The runtime ends the
    whole process on some damaged files; `in_child` turns that into an error.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise BadInput(f"{path} does not exist or is not a file")
        self.path = path
        try:
            with native_log() as log:
                self._program = Runtime.get().load_program(path)
                if "forward" not in self._program.method_names:
                    raise BadInput(f"{path} has no method called forward")
                self._forward = self._program.load_method("forward")
        except RuntimeError as problem:
            raise BadInput(f"{path}: ExecuTorch's runtime refuses it: {_reason(problem, log)}") from None

    def constant(self, name: str) -> int | bool | list[int]:
        """The value of a constant method, such as get_max_seq_len (tokens) or get_eos_ids."""
        if name not in self._program.method_names:
            raise BadInput(f"{self.path} has no method called {name}")
        method = self._program.load_method(name)
        assert method is not None
        values = list(method.execute([]))
        return values if name == "get_eos_ids" else values[0]

    def step(self, tokens: Sequence[int], start_pos: int) -> Tensor:
        """Feed tokens whose first is at position `start_pos`; what is in the cache from there on is overwritten.

        Returns float32 logits [1, V] of the last token, or [S, V] of all S of them where the file was exported with
        full logits. BadInput where the runtime fails, as with more tokens than get_max_seq_len.
        """
        assert self._forward is not None
        inputs = (torch.tensor([list(tokens)], dtype=torch.long), torch.tensor([start_pos], dtype=torch.long))
        try:
            with native_log() as log:
                logits = self._forward.execute(inputs)[0]
        except RuntimeError as problem:
            what = f"{len(tokens)} tokens at position {start_pos}"
            raise BadInput(f"{self.path}: ExecuTorch's runtime fails on {what}: {_reason(problem, log)}") from None
        # The binding copies outputs by default, but says so in no contract: the next step must not change these.
        return logits.reshape(-1, logits.shape[-1]).clone()


def in_child(path: Path, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a picklable function in a process of its own; `path` is the file it runs, named in errors.

    The runtime's memory is all given back when it returns, and where the runtime aborts the process, as it does on
    damaged files and failed assertions, BadInput says so with the last line of its log.
    """
    with tempfile.TemporaryFile("w+b") as log:
        context = multiprocessing.get_context("spawn")
        with native_log() as log, ProcessPoolExecutor(1, context) as pool:
            try:
                return pool.submit(function, *args, **kwargs).result()
            except BrokenProcessPool:
                pass
            raise BadInput(f"{path}: ExecuTorch's runtime crashed on this file: {_last_line(log)}")


@contextmanager
def native_log() -> Iterator[Callable[[], str]]:
    """Keep what C++ code and child processes write to stderr away from the terminal; yields a way to read it."""
    with tempfile.TemporaryFile() as log:

        def read() -> str:
            log.seek(0)
            return log.read().decode(errors="replace")

        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield read
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _reason(problem: Exception, log: Callable[[], str]) -> str:
    return f"{problem} ({_last_line(log)})"

"""Runs a `.pte` with the C++ runtime of the executorch wheel, the code a phone runs.

Knows a program's methods, tokens and logits; knows nothing of checkpoints, text or what the logits should be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import executorch.extension.llm.custom_ops.custom_ops  # registers llama::update_cache, custom_sdpa
import executorch.kernels.quantized  # noqa: F401  registers the quantized embeddings
import numpy as np
import torch
from executorch.runtime import Runtime
from torch import Tensor

from checkpoints.errors import BadInput
from export.engine.native_output import native_errors
from export.engine.phone_options import PHONE, XnnpackOptions, set_options


class Session:
    """One loaded file: its constant methods, and a KV cache that `step` writes.

    Loading sets XNNPACK's options for the process, by default to a phone's; sessions loaded before keep theirs.
    Memory: packed weights, KV cache and planned activations, until the session is dropped. On some damaged files
    and failed assertions the runtime ends the whole process: see `subprocess_call`.
    """

    def __init__(self, path: Path, options: XnnpackOptions = PHONE) -> None:
        if not path.is_file():
            raise BadInput(f"{path} does not exist or is not a file")
        self.path = path
        set_options(options)
        with native_errors(f"{path}: ExecuTorch's runtime refuses it"):
            self._program = Runtime.get().load_program(path)
            if "forward" not in self._program.method_names:
                raise BadInput(f"{path} has no method called forward")
            method = self._program.load_method("forward")
        assert method is not None
        self._forward = method

    def constant(self, name: str) -> int | bool | list[int]:
        """The value of a constant method, such as get_max_seq_len (tokens); get_eos_ids is a list."""
        if name not in self._program.method_names:
            raise BadInput(f"{self.path} has no method called {name}")
        with native_errors(f"{self.path}: ExecuTorch's runtime fails in {name}"):
            method = self._program.load_method(name)
            assert method is not None
            values = list(method.execute([]))
        return values if name == "get_eos_ids" else values[0]

    def step(self, tokens: Sequence[int], start_pos: int) -> Tensor:
        """Feed tokens, the first at position `start_pos`; what the cache holds from there on is overwritten.

        Returns float32 logits [rows, V]: of the last tokens, as many of them as the file gives. BadInput where the
        runtime fails, as with more tokens than get_max_seq_len.
        """
        inputs = (torch.tensor([list(tokens)], dtype=torch.long), torch.tensor([start_pos], dtype=torch.long))
        what = f"{len(tokens)} tokens at position {start_pos}"
        with native_errors(f"{self.path}: ExecuTorch's runtime fails on {what}"):
            logits = self._forward.execute(inputs)[0]
        # The binding copies outputs by default, but no contract says so: the next step must not change these.
        return logits.reshape(-1, logits.shape[-1]).clone()


@dataclass(frozen=True)
class Feed:
    """One way of feeding tokens: how many in each call, from position 0 on."""

    name: str
    calls: tuple[int, ...]
    every: bool = True  # keep the logits of every position that a file gives, not only of each call's last

    def positions(self, logits: int) -> list[int]:
        """Where `run_feeds` keeps logits, of a file that gives those of up to so many last tokens of a call."""
        kept = [min(count, logits) if self.every else 1 for count in self.calls]
        ends = zip(accumulate(self.calls), kept, strict=True)
        return [position for end, rows in ends for position in range(end - rows, end)]


Step = Callable[[Sequence[int], int], np.ndarray]  # tokens, position of the first -> float32 logits [rows, V]
Runs = list[
    tuple[list[int], np.ndarray]
]  # of each way of feeding: positions, and their float32 logits [positions, V]


def run_feeds(path: Path, tokens: Sequence[int], feeds: Sequence[Feed]) -> Runs:
    """Load the file and feed it the same tokens in several ways; all can be pickled, for another process."""
    session = Session(path)
    return collect(lambda ids, start_pos: session.step(ids, start_pos).numpy(), tokens, feeds)


def collect(step: Step, tokens: Sequence[int], feeds: Sequence[Feed]) -> Runs:
    """Feed `step` the same tokens in several ways and keep the logits."""
    results = []
    for feed in feeds:
        at = 0
        positions: list[int] = []
        kept: list[np.ndarray] = []
        for count in feed.calls:
            logits = step(tokens[at : at + count], at)
            at += count
            logits = logits if feed.every else logits[-1:]
            positions.extend(range(at - len(logits), at))
            kept.append(logits)
        results.append((positions, np.concatenate(kept)))
    return results

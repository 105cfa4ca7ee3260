"""What is evaluated, with one face: a `.pte` in the wheel's C++ runtime, and a checkpoint by transformers in float32.

Knows tokens and logits; knows nothing of texts or of what is made of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from checkpoints.errors import BadInput
from checkpoints.files import folder_of
from checkpoints.source import find_source
from export.engine.memory import trim
from export.engine.native import NativeEngine
from export.engine.session import Session
from export.engine.tokenizer import Tokenizer, find_tokenizer, load_tokenizer
from export.ptefile.find import resolve_file
from export.ptefile.reader import open_pte
from export.ptefile.weights import constant, logits_positions, run_bytes
from export.quantization.recipe import Recipe
from export.quantization.saved_reader import open_quantized
from export.reference.layerwise import CheckpointWeights, Stream, stream_logits
from export.verification.memory import check_memory

Logits = Callable[[Sequence[int]], Tensor]  # of a sequence from position 0 on: float32 [tokens, V]
SMALLER = "a file exported with a smaller --context takes less"


class Model(Protocol):
    """Something that gives the logits of every token of a sequence, while it is loaded."""

    name: str
    size: int  # bytes of its weights on disk
    context: int  # tokens of a sequence, at most
    vocab_size: int
    tokenizer: Tokenizer

    def loaded(self) -> AbstractContextManager[Logits]:
        """The model in memory, until the block ends."""
        ...


class FileModel:
    """What a `.pte` says of itself; its weights are loaded by `loaded`."""

    def __init__(self, path: Path) -> None:
        opened = open_pte(path)
        self.name, self.size, self.path = path.name, path.stat().st_size, path
        self.context, self.vocab_size = constant(opened, "get_max_context_len"), constant(opened, "get_vocab_size")
        self.chunk = constant(opened, "get_max_seq_len")
        self.rows = min(self.chunk, logits_positions(opened))
        self.run_bytes = run_bytes(opened)
        try:
            self.tokenizer = load_tokenizer(find_tokenizer(folder_of(path)))
        except BadInput as problem:
            raise BadInput(f"{problem}, and {path.name} is evaluated with the tokenizer beside it") from None

    @contextmanager
    def loaded(self) -> Iterator[Logits]:
        """Fed as many tokens at once as it gives logits of: what is measured is what a phone computes."""
        running = RunningFile(self)
        try:
            yield running.logits
        finally:
            running.close()


class RunningFile:
    """A `.pte` in the wheel's runtime, and the logits of any number of last tokens."""

    def __init__(self, model: FileModel) -> None:
        check_memory(model.path, model.run_bytes, "running", SMALLER)
        self.chunk, self.rows, self.session = model.chunk, model.rows, Session(model.path)

    def close(self) -> None:
        """Give the memory back, whoever still knows this."""
        del self.session
        trim()

    def logits(self, ids: Sequence[int]) -> Tensor:
        return self.last_logits(ids, len(ids), 0)

    def last_logits(self, ids: Sequence[int], count: int, held: int) -> Tensor:
        """float32 [count, V] of the last tokens of `ids`, the first `held` of which the KV cache has already."""
        first = len(ids) - count
        for at in range(held, first, self.chunk):
            self.session.step(ids[at : min(at + self.chunk, first)], at)
        steps = range(max(first, held), len(ids), self.rows)
        return torch.cat([self.session.step(ids[at : at + self.rows], at) for at in steps])


class SharedFile:
    """A `.pte` in our C++ engine, its packed weights in a file that all processes map: the same logits."""

    def __init__(self, model: FileModel, folder: Path, threads: int) -> None:
        self._engine = NativeEngine()
        loaded = self._engine.load(model.path, folder, threads)
        self.note = loaded.packed_note  # why weights are in private memory after all, else nothing
        self._vocab_size = model.vocab_size

    def last_logits(self, ids: Sequence[int], count: int, held: int) -> Tensor:
        """As RunningFile's; the engine knows itself what its KV cache holds."""
        return torch.from_numpy(self._engine.feed_rows(ids, count, self._vocab_size))


class CheckpointModel:
    """A checkpoint by the modules of transformers, a layer in memory at a time.

    Of a quantized one the weights are what its levels stand for, and activations are not rounded.
    """

    def __init__(self, checkpoint: str) -> None:
        source = find_source(checkpoint)
        opened = open_quantized(source, Recipe())
        self.name, self.size = str(source), sum(file.stat().st_size for file in opened.files)
        self.context, self.vocab_size = opened.config.max_position_embeddings, opened.config.vocab_size
        self.tokenizer = load_tokenizer(find_tokenizer(source.folder))
        self._weights = CheckpointWeights(opened)

    @contextmanager
    def loaded(self) -> Iterator[Logits]:
        yield self._logits

    def _logits(self, ids: Sequence[int]) -> Tensor:
        stream = Stream("all", len(ids), tuple(range(len(ids))), rope_length=len(ids))
        return stream_logits([stream], ids, self._weights)["all"]


def open_model(name: str) -> Model:
    """A `.pte` by its suffix, else a checkpoint as --checkpoint names it."""
    return FileModel(resolve_file(name)) if name.endswith(".pte") else CheckpointModel(name)

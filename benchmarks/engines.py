"""The engines that `benchmarks.run` measures beside each other, each with the same few functions: ids in, a step
taken.

`ours` is export/engine/cpp; `wheel` is upstream's C++ runtime with the XNNPACK options of its libraries for
phones, which is what its runners stand on; `llama` is llama.cpp by its C functions in llama-cpp-python. A step is
what comes before a token can be chosen: the logits are there, nothing is chosen.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from checkpoints.errors import BadInput

PTE = ("ours", "wheel")  # for `.pte`
GGUF = ("llama",)  # for `.gguf`
LLAMA_BATCH = 512  # tokens that llama.cpp computes at once by default


class Engine(Protocol):
    """A loaded file. It is loaded by the constructor, after what is imported or compiled for it."""

    context: int  # tokens
    chunk: int  # tokens fed at once at most
    vocab_size: int

    def feed(self, ids: Sequence[int], position: int) -> None:
        """Compute the logits of the last of these tokens, which come after the `position` tokens fed before."""

    def clear(self) -> None:
        """Forget what was fed."""

    def close(self) -> None: ...


class Ours:
    """With its packed weights in a folder: what is there already makes the load a warm one."""

    def __init__(self, path: Path, packed: Path) -> None:
        from export.engine.native import NativeEngine

        self._engine = NativeEngine()
        loaded = self._engine.load(path, packed)
        if loaded.packed_note:
            raise BadInput(f"{path}: no packed weights are kept: {loaded.packed_note}")
        self.context, self.chunk, self.vocab_size = loaded.context_length, loaded.prefill_chunk, loaded.vocab_size
        self._fed: list[int] = []

    def feed(self, ids: Sequence[int], position: int) -> None:
        self._fed[position:] = ids
        self._engine.feed(self._fed, self.vocab_size)

    def clear(self) -> None:
        self._fed = []
        self._engine.release()

    def close(self) -> None:
        self._engine.close()


class Wheel:
    """Upstream's `forward` method; the cache's contents need no clearing, a position writes over them."""

    def __init__(self, path: Path, packed: Path) -> None:
        import torch
        from executorch.runtime import Runtime, Verification

        # Minimal verification is what Module, and so the LLM runners on phones, load with.
        program = Runtime.get().load_program(path, verification=Verification.Minimal)
        forward = program.load_method("forward")
        assert forward is not None
        self._forward, self._tensor = forward, torch.tensor

        def constant(name: str) -> int:
            method = program.load_method(name)
            assert method is not None
            return int(method.execute([])[0])

        # The planned size of the tokens' tensor is the most that can be fed at once: get_max_seq_len in our files,
        # one less than that in upstream's.
        self.chunk = int(forward.metadata.input_tensor_meta(0).sizes()[1])
        longest = "get_max_context_len" if "get_max_context_len" in program.method_names else "get_max_seq_len"
        self.context, self.vocab_size = constant(longest), constant("get_vocab_size")

    def feed(self, ids: Sequence[int], position: int) -> None:
        self._forward.execute((self._tensor([list(ids)]), self._tensor([position])))

    def clear(self) -> None:
        pass

    def close(self) -> None:
        del self._forward


class Llama:
    """llama.cpp as it comes, with a cache for `context` tokens and a thread for each core."""

    def __init__(self, path: Path, context: int) -> None:
        self._cpp = cpp = _llama_cpp()
        self._model = cpp.llama_model_load_from_file(os.fsencode(path), cpp.llama_model_default_params())
        settings = cpp.llama_context_default_params()
        settings.n_ctx = context
        settings.n_threads = settings.n_threads_batch = os.cpu_count() or 1
        self._context = self._model and cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise BadInput(f"llama.cpp does not load {path}")
        self.context, self.chunk = cpp.llama_n_ctx(self._context), min(LLAMA_BATCH, context)
        self.vocab_size = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(self._model))

    def feed(self, ids: Sequence[int], position: int) -> None:
        cpp, memory = self._cpp, self._cpp.llama_get_memory(self._context)
        cpp.llama_memory_seq_rm(memory, 0, position, -1)
        tokens = (cpp.llama_token * len(ids))(*ids)
        if code := cpp.llama_decode(self._context, cpp.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError(f"llama_decode gives {code} for {len(ids)} tokens at {position}")
        cpp.llama_synchronize(self._context)

    def logits(self) -> list[float]:
        """Of the last token fed."""
        return list(self._cpp.llama_get_logits_ith(self._context, -1)[: self.vocab_size])

    def clear(self) -> None:
        self._cpp.llama_memory_clear(self._cpp.llama_get_memory(self._context), True)

    def close(self) -> None:
        self._cpp.llama_free(self._context)
        self._cpp.llama_model_free(self._model)


def prepare(engine: str) -> None:
    """Import and compile what an engine needs, so that it is not measured; BadInput where it is not there."""
    if engine == "ours":
        from export.engine.native import memory_use

        memory_use()
    elif engine == "wheel":
        import executorch.extension.llm.custom_ops.custom_ops
        import executorch.kernels.quantized  # noqa: F401  registers the quantized embeddings

        from export.engine.phone_options import PHONE, set_options

        set_options(PHONE)
    else:
        _llama_cpp()


def load(engine: str, path: Path, packed: Path, context: int) -> Engine:
    """Load a file; `packed` is for ours, `context` (tokens) for llama.cpp, whose files do not say."""
    if engine == "llama":
        return Llama(path, context)
    return {"ours": Ours, "wheel": Wheel}[engine](path, packed)


def _llama_cpp() -> Any:
    try:
        import llama_cpp
    except ImportError:
        raise BadInput("the package llama-cpp-python is not installed: uv run --group peers brings it") from None
    llama_cpp.llama_log_set(_silent(llama_cpp), ctypes.c_void_p(0))
    return llama_cpp


@cache
def _silent(llama_cpp: Any) -> Any:
    """A callback for its logs, which are pages; kept, for C holds it."""
    return llama_cpp.llama_log_callback(lambda level, text, context: None)

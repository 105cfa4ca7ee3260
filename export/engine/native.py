"""The C++ engine of both apps in this process, by the functions of `cpp/pocketphi.h`; compiled on first use.

Knows ids, text through a function that decodes ids, and files of sessions; nothing of prompts or chat templates.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from ctypes import byref, c_char_p, c_int32, c_int64, c_size_t, c_void_p
from dataclasses import dataclass, fields
from enum import IntEnum
from functools import cache, partial
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.cache import cached_folder
from checkpoints.errors import BadInput
from export.engine.compiler import run_compiler
from export.engine.media_ids import Encoded
from export.engine.native_structs import (
    MEMORY,
    Decode,
    EncodedMedia,
    Error,
    Generation,
    LoadOptions,
    LoadReport,
    MemoryUse,
    OnPart,
    OnText,
    OnToken,
    Progress,
    Result,
)
from export.engine.runner import import_runner
from export.media.prompt import Mode

CPP = Path(__file__).parent / "cpp"
OK, BAD_INPUT, STOPPED, BUSY, FAILED = range(5)  # pocketphi_status
MODES: dict[Mode, int] = {"text": 0, "vision": 1, "speech": 2}  # pocketphi_mode
FLAGS = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror", "-ffp-contract=off", "-fPIC")
DEFINES = ("-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED")


class Packing(IntEnum):
    UNPACKED = 0
    PACKED = 1  # a cold load
    REUSED = 2  # a warm one


class End(IntEnum):
    TOKEN = 0
    TEXT = 1
    LIMIT = 2
    CONTEXT = 3
    STOPPED = 4


class Stopped(Exception):
    """`NativeEngine.stop` or `close` ended a load, or an encoding."""


class EngineFailed(RuntimeError):
    """The runtime or the system failed in the engine, or two threads called it at once."""


@dataclass(frozen=True)
class Loaded:
    """pocketphi_load_report."""

    context_length: int
    prefill_chunk: int
    vocab_size: int
    logits_positions: int
    packing: Packing
    threads: int
    load_ms: float
    pack_ms: float
    packed_bytes: int
    planned_bytes: int
    private_bytes: int
    takes_pictures: bool
    takes_sound: bool
    sound_rate: int  # samples a second; 0 for none
    packed_note: str


@dataclass(frozen=True)
class Answer:
    """pocketphi_result, and the tokens themselves."""

    token_ids: tuple[int, ...]
    token_ms: tuple[float, ...]
    end: End
    prompt_tokens: int
    reused_tokens: int
    steps: int  # of decoding, each of one token and its drafts
    drafted_tokens: int
    accepted_tokens: int
    prefill_ms: float
    first_token_ms: float
    decode_ms: float


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen and where the answer ends: pocketphi_generation without its functions."""

    max_new_tokens: int = 0  # 0: until it ends or the context is full
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    draft_tokens: int = 0  # guessed ahead at most, with a file exported with --speculate
    ignore_eos: bool = False
    stop_ids: tuple[int, ...] = ()
    stop_texts: tuple[str, ...] = ()


# What the engine gets as it is.
_PLAIN = [field.name for field in fields(Sampling) if not field.name.startswith("stop_")]


class NativeEngine:
    """One engine: load, media, answer, session. Calls release the GIL; `stop` may come from another thread.

    BadInput for what the engine says is wrong with what was given, EngineFailed for the rest.
    """

    def __init__(self) -> None:
        self._library = _library()
        self._handle = c_void_p(self._library.pocketphi_create())
        self._part: Callable[..., Any] = lambda *_: None
        self._on_part = OnPart(lambda *told: self._part(*told))  # for as long as the engine may call it
        self._call("watch_encoding", self._on_part, None)

    def __enter__(self) -> NativeEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def load(
        self,
        model: Path,
        cache_dir: Path | None = None,
        threads: int = 0,
        prefill_chunk: int = 0,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> Loaded:
        """Load a `.pte`; its packed weights are kept in `cache_dir` between starts."""
        progress = Progress(lambda _, done, total: on_progress and on_progress(done, total))
        folder = None if cache_dir is None else os.fsencode(cache_dir)
        options = LoadOptions(os.fsencode(model), folder, threads, prefill_chunk, progress, None)
        report = LoadReport()
        self._call("load", byref(options), byref(report))
        values = {field.name: getattr(report, field.name) for field in fields(Loaded)}
        values |= {"packing": Packing(report.packing), "packed_note": report.packed_note.decode(errors="replace")}
        return Loaded(**values)

    def picture(self, pixels: np.ndarray, on_part: Callable[[], object] | None = None) -> Encoded:
        """Encode a picture, RGB as uint8 [height, width, 3]; its ids then stand for it in prompts.

        `on_part` is called before each crop; an exception there ends the encoding and comes out here.
        """
        pixels = np.ascontiguousarray(pixels, np.uint8)
        height, width, _ = pixels.shape
        return self._encoded(on_part, "picture", c_void_p(pixels.ctypes.data), c_size_t(width), c_size_t(height))

    def sound(
        self, samples: np.ndarray, rate: int, mode: Mode, on_part: Callable[[], object] | None = None
    ) -> Encoded:
        """Encode a sound, float32 [n] at the file's rate or half of it, for prompts of `mode`; `on_part` as above."""
        samples = np.ascontiguousarray(samples, np.float32)
        data = (c_void_p(samples.ctypes.data), c_size_t(len(samples)))
        return self._encoded(on_part, "sound", *data, c_int32(rate), c_int32(MODES[mode]))

    def picture_tokens(self, width: int, height: int) -> int:
        """How many tokens a picture of so many pixels will be."""
        return self._count("picture_tokens", c_size_t(width), c_size_t(height))

    def sound_tokens(self, samples: int, rate: int) -> int:
        """How many tokens so many samples will be."""
        return self._count("sound_tokens", c_size_t(samples), c_int32(rate))

    def forget_media(self) -> None:
        """Free the rows of what was encoded; what the session has been fed of them stays."""
        self._call("forget_media")

    def generate(
        self,
        ids: Sequence[int],
        sampling: Sampling = Sampling(),
        decode: Callable[[Sequence[int]], str] | None = None,
        on_text: Callable[[str], object] | None = None,
        on_token: Callable[[int], object] | None = None,
    ) -> Answer:
        """Answer a prompt of ids; an exception in a callback ends the answer and comes out here."""
        tokens, times, raised = list[int](), list[float](), list[BaseException]()
        guarded = partial(self._guarded, raised)

        @guarded
        def decoded(_: None, ids: Any, count: int, out: int, capacity: int) -> int:
            assert decode is not None
            text = decode(ids[:count]).encode()
            if len(text) <= capacity:
                ctypes.memmove(out, text, len(text))
            return len(text)

        @guarded
        def token(_: None, token_id: int, ms: float) -> None:
            tokens.append(token_id)
            times.append(ms)
            if on_token is not None:
                on_token(token_id)

        @guarded
        def piece(_: None, text: int, length: int) -> None:
            if on_text is not None:
                on_text(ctypes.string_at(text, length).decode(errors="replace"))

        texts = [text.encode() for text in sampling.stop_texts]
        how = Generation(
            **{name: getattr(sampling, name) for name in _PLAIN},
            stop_ids=(c_int64 * len(sampling.stop_ids))(*sampling.stop_ids),
            stop_id_count=len(sampling.stop_ids),
            stop_texts=(c_char_p * len(texts))(*texts),
            stop_text_count=len(texts),
            decode=Decode(decoded) if decode is not None else Decode(),
            on_token=OnToken(token),
            on_text=OnText(piece),
        )
        result = Result()
        self._call("generate", *_ids(ids), byref(how), byref(result))
        if raised:
            raise raised[0]
        told = {field.name: getattr(result, field.name) for field in fields(Answer) if hasattr(result, field.name)}
        return Answer(**told | {"token_ids": tuple(tokens), "token_ms": tuple(times), "end": End(result.end)})

    def feed(self, ids: Sequence[int], vocab_size: int) -> np.ndarray:
        """Float32 logits [vocab_size] of the last of these tokens."""
        logits = np.empty(vocab_size, np.float32)
        self._call("feed", *_ids(ids), c_void_p(logits.ctypes.data))
        return logits

    def feed_rows(self, ids: Sequence[int], rows: int, vocab_size: int) -> np.ndarray:
        """Float32 logits [rows, vocab_size] of the last of these tokens."""
        logits = np.empty((rows, vocab_size), np.float32)
        self._call("feed_rows", *_ids(ids), c_size_t(rows), c_void_p(logits.ctypes.data))
        return logits

    def tokens(self) -> list[int]:
        """Those that the session holds."""
        count = c_size_t()
        self._call("tokens", None, c_size_t(), byref(count))
        found = (c_int64 * count.value)()
        self._call("tokens", found, count, byref(count))
        return list(found)

    def rewind(self, count: int) -> None:
        """Forget all tokens after the first `count`."""
        self._call("rewind", c_size_t(count))

    def release(self) -> None:
        """Forget the session and give its memory back."""
        self._call("release")

    def save(self, path: Path) -> None:
        """Write the session to a file."""
        self._call("save", os.fsencode(path))

    def restore(self, path: Path) -> None:
        """Take up a saved session."""
        self._call("restore", os.fsencode(path))

    def stop(self) -> None:
        """End the running load or answer."""
        self._library.pocketphi_stop(self._handle)

    def close(self) -> None:
        """Stop, and free everything."""
        self._call("close")
        self._handle = c_void_p()

    def _encoded(self, on_part: Callable[[], object] | None, name: str, *arguments: Any) -> Encoded:
        found, raised = EncodedMedia(), list[BaseException]()
        self._part = self._guarded(raised, lambda *_: on_part and on_part())
        try:
            self._call(name, *arguments, byref(found))
        except Stopped:
            if raised:
                raise raised[0] from None
            raise
        return Encoded(**{field.name: getattr(found, field.name) for field in fields(Encoded)})

    def _guarded(self, raised: list[BaseException], work: Callable[..., Any]) -> Callable[..., Any]:
        """A callback for C: what it raises is kept, and ends the call."""

        def call(*arguments: Any) -> Any:
            try:
                return work(*arguments) if not raised else 0
            except BaseException as problem:
                raised.append(problem)
                self.stop()
                return 0

        return call

    def _count(self, name: str, *arguments: Any) -> int:
        count = c_int64()
        self._call(name, *arguments, byref(count))
        return count.value

    def _call(self, name: str, *arguments: Any) -> None:
        error = Error()
        status = getattr(self._library, f"pocketphi_{name}")(self._handle, *arguments, byref(error))
        sentence = error.text.decode(errors="replace")
        if status == BAD_INPUT:
            raise BadInput(sentence)
        if status == STOPPED:
            raise Stopped(sentence)
        if status:
            raise EngineFailed(sentence)


def memory_use() -> dict[str, int]:
    """pocketphi_memory_use of this process, in bytes."""
    use = MemoryUse()
    _library().pocketphi_memory(byref(use))
    return {name: getattr(use, name) for name in MEMORY}


@cache
def _library() -> ctypes.CDLL:
    import_runner()  # the kernels; the engine's library has none of its own, for two of a name end the process
    parts = sorted(CPP.glob("*.h")) + sorted(CPP.glob("*.cpp")) + [Path(__file__)]
    folder = cached_folder(f"engine-{version('executorch')}", [path.read_bytes() for path in parts], _build)
    library = ctypes.CDLL(str(folder / "libpocketphi.so"))
    library.pocketphi_create.restype = c_void_p
    library.pocketphi_memory.restype = library.pocketphi_stop.restype = None
    return library


def compile_flags() -> list[str]:
    """What every compiler of the engine's sources is given, against the wheel's headers."""
    include = _wheel() / "include"
    includes = [f"-isystem{include}", f"-isystem{include}/executorch/runtime/core/portable_type/c10"]
    return [*FLAGS, *DEFINES, f'-DPOCKETPHI_EXECUTORCH_VERSION="{version("executorch")}"', *includes]


def compiler() -> str:
    """The command that compiles the engine; it may not be installed."""
    return os.environ.get("CXX") or "c++"


def _build(folder: Path) -> None:
    libraries = _wheel() / "lib"
    link = [f"-L{libraries}", "-lexecutorch", "-lexecutorch_threadpool", f"-Wl,-rpath,{libraries}"]
    out = ("-shared", "-o", folder / "libpocketphi.so")
    run_compiler(compiler(), *compile_flags(), *sorted(CPP.glob("*.cpp")), *out, *link)


def _wheel() -> Path:
    return Path(str(distribution("executorch").locate_file("executorch")))


def _ids(ids: Sequence[int]) -> tuple[Any, c_size_t]:
    return (c_int64 * len(ids))(*ids), c_size_t(len(ids))

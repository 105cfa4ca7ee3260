"""Answers a prompt with a `.pte`, by the C++ runner the phone apps use, or by our own C++ engine.

The runner is `TextLLMRunner` of the executorch wheel; two things of its 1.5.1 are worked around. Its Python binding
hands out every token as str, which fails where a token is only part of a character (an emoji is up to four tokens).
So it gets a tokenizer that spells ids as numbers, and the phone's tokenizer makes the prompt's ids beforehand. And it
does not count the prompt against the context where get_max_seq_len is below get_max_context_len, but fails once the
KV cache is full. So the answer is limited here. Its first token is the likeliest, whatever the temperature.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from checkpoints.errors import BadInput
from checkpoints.files import folder_of
from export.engine.chat_template import chat_prompt
from export.engine.media_prompt import EncodedMedia, MediaPrompt, OnEncoding, check_text, encode
from export.engine.memory import own_memory, trim
from export.engine.runner import Facts, check_fits, import_runner, numbers_tokenizer, read_facts
from export.engine.tokenizer import COMPANIONS, Tokenizer, find_tokenizer, load_tokenizer, runner_ids
from export.manifest import check_beside
from export.media.prompt import Kind, Mode, place
from export.media.settings import TEXT_ONLY

MAX_TEMPERATURE = 1.0  # the runner gives up above


@dataclass(frozen=True)
class Stats:
    """What a run took; tokens per second are None where the runner's millisecond clock shows no time."""

    prompt_tokens: int
    generated_tokens: int  # without the one that ended the answer
    load_ms: int  # the file's method, with the packing of weights
    first_token_ms: int  # from the prompt to the first token, encoding of pictures too, loading left out
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None  # after the first token
    peak_resident_bytes: int  # of the whole process, Python and torch too
    dirty_bytes: int  # private memory of the process at the end, which cannot be dropped and read again
    model_dirty_bytes: int  # what of it came with the file: KV cache, activations, packed weights
    drafted_tokens: int = 0  # guessed
    accepted_tokens: int = 0  # of them, the right ones
    mode: Mode = "text"  # which adapter answered
    media: tuple[EncodedMedia, ...] = ()  # pictures and sounds, in the order of the prompt


@dataclass(frozen=True)
class Generation:
    """An answer."""

    text: str
    token_ids: tuple[int, ...]  # without the one that ended it
    ended: bool  # by a stop token; else by max_new_tokens or a full context
    stats: Stats


class Joiner:
    """Turns ids into text as they come; an unfinished character waits for the rest of its bytes."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self.decode = decode
        self.ids: list[int] = []
        self.shown, self.read = 0, 0  # text of ids[:read] is out; decoding starts at `shown` for context

    def push(self, token: int) -> str:
        """The new text this id completes, often empty."""
        self.ids.append(token)
        return self._take(final=False)

    def rest(self) -> str:
        """What is left at the end, with U+FFFD for characters that never got whole."""
        return self._take(final=True)

    def _take(self, final: bool) -> str:
        # Some decoders drop a space in front, so the ids before are decoded with the new ones and cut off again.
        before, text = self.decode(self.ids[self.shown : self.read]), self.decode(self.ids[self.shown :])
        if not final and text.endswith("\ufffd"):
            return ""
        self.shown, self.read = self.read, len(self.ids)
        return text[len(before) :]


@dataclass(frozen=True)
class Request:
    """What to answer, and how."""

    prompt: str
    system: str | None = None  # what the model is told before the prompt
    raw: bool = False  # without chat template
    max_new_tokens: int | None = None  # None: until it ends or the context is full
    temperature: float = 0.0  # 0 always takes the likeliest token
    engine: Literal["runner", "ours"] = "runner"
    packed: Path | None = None  # folder where our engine keeps packed weights between starts
    draft_tokens: int = 0  # our engine guesses ahead at most
    media: tuple[tuple[Kind, Path], ...] = ()  # files of pictures and sound: see `media_generation`

    def check(self) -> None:
        """Raise BadInput for what no file can do."""
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise BadInput(f"--max-new-tokens {self.max_new_tokens} is not at least 1")
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise BadInput(f"--temperature {self.temperature} is not within 0 to {MAX_TEMPERATURE}")
        if self.raw and self.system is not None:
            raise BadInput("--system needs the chat template, which --raw leaves out")
        if self.packed is not None and self.engine != "ours":
            raise BadInput("--packed is for --engine ours: the runner keeps no packed weights")
        if self.draft_tokens < 0:
            raise BadInput(f"--draft-tokens {self.draft_tokens} is below 0")
        if self.draft_tokens and self.engine != "ours":
            raise BadInput("--draft-tokens is for --engine ours: the runner does not guess")


def answer(path: Path, tokenizer_path: Path | None, request: Request, on_text: Callable[[str], object]) -> Generation:
    """Run a `.pte` on a prompt; `on_text` gets the answer piece by piece.

    The chat template beside the tokenizer is applied unless raw; the tokenizer is the one beside the file unless
    given. At temperature 0 the answer is always the same. It ends at a stop token, after max_new_tokens,
    or when prompt and answer fill the context. BadInput for files that are not what they should be and a prompt that
    leaves no room in the context, RunnerFailed where the runner gives up.
    """
    tokenizer_path, facts, tokenizer = opened(path, tokenizer_path, request.raw)
    text = request.prompt
    if not request.raw:
        text = chat_prompt(tokenizer_path.parent, turns(request.system, request.prompt))
    if facts.media != TEXT_ONLY:
        place(turns(request.system, request.prompt))  # no picture is given: there must be no <|image_1|>
    ids = runner_ids(tokenizer_path, text)
    check_text(ids, facts.media)
    if not ids:
        raise BadInput("the prompt is empty")
    if len(ids) >= facts.context:
        raise BadInput(f"the prompt has {len(ids)} tokens, {path} has a context of {facts.context}")
    limit = most_tokens(request, facts.context - len(ids))
    if request.engine == "ours":
        return run_ours(path, tokenizer, ids, limit, request, on_text)
    return _run(path, facts, tokenizer, ids, limit, request.temperature, on_text)


def opened(path: Path, tokenizer_path: Path | None, raw: bool) -> tuple[Path, Facts, Tokenizer]:
    """What a file says of itself, and the tokenizer beside it, or another."""
    if tokenizer_path is None:
        try:
            tokenizer_path = find_tokenizer(folder_of(path))
        except BadInput as problem:
            raise BadInput(f"{problem}: give a tokenizer with --tokenizer") from None
        check_beside(path, [tokenizer_path.name] if raw else [tokenizer_path.name, *COMPANIONS])
    facts, tokenizer = read_facts(path), load_tokenizer(tokenizer_path)
    check_fits(path, facts, tokenizer)
    return tokenizer_path, facts, tokenizer


def turns(system: str | None, content: Any) -> list[dict[str, Any]]:
    """What the user says, after what the model is told before."""
    told = [{"role": "system", "content": system}] if system is not None else []
    return [*told, {"role": "user", "content": content}]


def most_tokens(request: Request, room: int) -> int:
    """How long the answer may be."""
    return room if request.max_new_tokens is None else min(room, request.max_new_tokens)


def _run(
    path: Path,
    facts: Facts,
    tokenizer: Tokenizer,
    ids: list[int],
    limit: int,
    temperature: float,
    on_text: Callable[[str], object],
) -> Generation:
    runner_module = import_runner()
    joiner, pieces, found = Joiner(tokenizer.decode), list[str](), list[int]()
    took: dict[str, int] = {}

    def take(spelled: str) -> None:
        found.append(int(spelled))
        if found[-1] not in facts.eos_ids and (text := joiner.push(found[-1])):
            pieces.append(text)
            on_text(text)

    def keep(stats: Any) -> None:
        took.update({name: getattr(stats, name) for name in dir(stats) if name.endswith(("_ms", "_tokens"))})

    with tempfile.TemporaryDirectory() as folder:
        numbers = Path(folder, "tokenizer.json")
        numbers.write_text(numbers_tokenizer(tokenizer.vocab_size))
        trim()
        before = own_memory().private_dirty
        settings = runner_module.GenerationConfig(echo=False, max_new_tokens=limit, temperature=temperature)
        try:
            runner = runner_module.TextLLMRunner(str(path), str(numbers))
            runner.generate("".join(f"{token} " for token in ids), settings, take, keep)
        except RuntimeError as problem:
            raise RunnerFailed(f"{path}: ExecuTorch's runner gave up: {problem}") from None
        memory = own_memory()
    if rest := joiner.rest():
        pieces.append(rest)
        on_text(rest)
    ended = bool(found) and found[-1] in facts.eos_ids
    answer = tuple(found[:-1] if ended else found)
    prefill_ms = took["prompt_eval_end_ms"] - took["inference_start_ms"]
    decode_ms = took["inference_end_ms"] - took["prompt_eval_end_ms"]
    stats = Stats(
        len(ids),
        len(answer),
        took["model_load_end_ms"] - took["model_load_start_ms"],
        took["first_token_ms"] - took["inference_start_ms"],
        rate(len(ids), prefill_ms),
        rate(len(found) - 1, decode_ms),
        memory.peak_resident,
        memory.private_dirty,
        max(0, memory.private_dirty - before),
    )
    return Generation("".join(pieces), answer, ended, stats)


def run_ours(
    path: Path,
    tokenizer: Tokenizer,
    ids: list[int],
    limit: int,
    request: Request,
    on_text: Callable[[str], object],
    prompt: MediaPrompt | None = None,
    on_encoding: OnEncoding = lambda done, of: None,
) -> Generation:
    """Answer ids with our engine; the pictures and sounds of `prompt`, whose ids these are, are encoded before."""
    from export.engine.native import End, NativeEngine, Sampling  # compiled on first use

    pieces = list[str]()

    def take(text: str) -> None:
        pieces.append(text)
        on_text(text)

    with NativeEngine() as engine:
        trim()
        before = own_memory().private_dirty
        loaded = engine.load(path, request.packed)
        if request.draft_tokens and loaded.logits_positions == 1:
            raise BadInput(f"{path} cannot check guesses: it was exported with --speculate 0")
        begin = time.perf_counter()
        media: tuple[EncodedMedia, ...] = ()
        if prompt is not None:
            media = tuple(encode(prompt.items, prompt.mode, engine, on_encoding=on_encoding))
        encode_ms = 1000 * (time.perf_counter() - begin)
        sampling = Sampling(limit, request.temperature, draft_tokens=request.draft_tokens)
        found = engine.generate(ids, sampling, tokenizer.decode, take)
        memory = own_memory()
    stats = Stats(
        len(ids),
        len(found.token_ids),
        round(loaded.load_ms),
        round(encode_ms + found.first_token_ms),
        rate(len(ids), found.prefill_ms),
        rate(len(found.token_ids) - 1, found.decode_ms),
        memory.peak_resident,
        memory.private_dirty,
        max(0, memory.private_dirty - before),
        found.drafted_tokens,
        found.accepted_tokens,
        prompt.mode if prompt is not None else "text",
        media,
    )
    return Generation("".join(pieces), found.token_ids, found.end == End.TOKEN, stats)


class RunnerFailed(RuntimeError):
    """The runner gave up on a file that looked right; the last lines of its log are shown on stderr."""


def rate(count: int, ms: float) -> float | None:
    """A second; None where no time can be measured."""
    return round(1000 * count / ms, 2) if ms > 0 and count else None

"""Answers a prompt with a `.pte`, by the C++ runner the phone apps use: `python -m export.generate FILE "prompt"`.

The runner is `TextLLMRunner` of the executorch wheel; two things of its 1.5.1 are worked around. Its Python binding
hands out every token as str, which fails where a token is only part of a character (an emoji is up to four tokens).
So it gets a tokenizer that spells ids as numbers, and the phone's tokenizer makes the prompt's ids beforehand. And it
does not count the prompt against the context where get_max_seq_len is below get_max_context_len, but fails once the
KV cache is full. So the answer is limited here. Its first token is the likeliest, whatever the temperature.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from checkpoints.errors import BadInput, run
from export.hush import hushed
from export.progress import quiet
from export.runner import Facts, check_fits, check_is_program, import_runner, numbers_tokenizer, read_facts

if TYPE_CHECKING:
    from export.tokenizer import Tokenizer

MAX_TEMPERATURE = 1.0  # the runner gives up above


@dataclass(frozen=True)
class Stats:
    """What a run took; tokens per second are None where the runner's millisecond clock shows no time."""

    prompt_tokens: int
    generated_tokens: int  # without the one that ended the answer
    load_ms: int  # the file's method, with the packing of weights
    first_token_ms: int  # from the prompt to the first token, loading left out
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None  # after the first token
    peak_resident_bytes: int  # of the whole process, Python and torch too
    dirty_bytes: int  # private memory of the process at the end, which cannot be dropped and read again
    model_dirty_bytes: int  # what of it came with the file: KV cache, activations, packed weights


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


def generate(
    file: str | os.PathLike[str],
    prompt: str,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    system: str | None = None,
    raw: bool = False,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    on_text: Callable[[str], object] = lambda text: None,
    verbose: bool = False,
) -> Generation:
    """Run a `.pte` on a prompt; `on_text` gets the answer piece by piece.

    The chat template beside the tokenizer is applied unless `raw`; the tokenizer is the one beside the file unless
    given. At temperature 0 the answer is always the same. It ends at a stop token, after `max_new_tokens`, or when
    prompt and answer fill the context. BadInput for files that are not what they should be, a prompt that leaves no
    room in the context, and where the runner gives up.
    """
    path = Path(file)
    if max_new_tokens is not None and max_new_tokens < 1:
        raise BadInput(f"--max-new-tokens {max_new_tokens} is not at least 1")
    if not 0 <= temperature <= MAX_TEMPERATURE:
        raise BadInput(f"--temperature {temperature} is not within 0 to {MAX_TEMPERATURE}")
    if raw and system is not None:
        raise BadInput("--system needs the chat template, which --raw leaves out")
    check_is_program(path)
    with hushed(f"{path}: ExecuTorch's runtime ended the process on this file", verbose):
        from export.tokenizer import chat_prompt, find_tokenizer, load_tokenizer, runner_ids

        if tokenizer is None:
            try:
                words = find_tokenizer(path.resolve().parent)
            except BadInput as problem:
                raise BadInput(f"{problem}: give a tokenizer with --tokenizer") from None
        else:
            words = Path(tokenizer)
        facts = read_facts(path)
        loaded = load_tokenizer(words)
        check_fits(path, facts, loaded)
        if raw:
            text = prompt
        else:
            turns = [{"role": "system", "content": system}] if system is not None else []
            text = chat_prompt(words.parent, [*turns, {"role": "user", "content": prompt}])
        ids = runner_ids(words, text)
        if not ids:
            raise BadInput("the prompt is empty")
        if len(ids) >= facts.context:
            raise BadInput(f"the prompt has {len(ids)} tokens, {path} has a context of {facts.context}")
        room = facts.context - len(ids)
        limit = room if max_new_tokens is None else min(room, max_new_tokens)
        return _run(path, facts, loaded, ids, limit, temperature, on_text)


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
        _give_back()
        before = _memory()[1]
        settings = runner_module.GenerationConfig(echo=False, max_new_tokens=limit, temperature=temperature)
        try:
            runner = runner_module.TextLLMRunner(str(path), str(numbers))
            runner.generate("".join(f"{token} " for token in ids), settings, take, keep)
        except RuntimeError as problem:
            raise RunnerFailed(f"{path}: ExecuTorch's runner gave up: {problem}") from None
        peak, dirty = _memory()
    if rest := joiner.rest():
        pieces.append(rest)
        on_text(rest)
    ended = bool(found) and found[-1] in facts.eos_ids
    answer = tuple(found[:-1] if ended else found)
    prefill_ms = took["prompt_eval_end_ms"] - took["inference_start_ms"]
    decode_ms = took["inference_end_ms"] - took["prompt_eval_end_ms"]
    stats = Stats(
        len(ids), len(answer), took["model_load_end_ms"] - took["model_load_start_ms"],
        took["first_token_ms"] - took["inference_start_ms"], _rate(len(ids), prefill_ms),
        _rate(len(found) - 1, decode_ms), peak, dirty, max(0, dirty - before),
    )  # fmt: skip
    return Generation("".join(pieces), answer, ended, stats)


class RunnerFailed(RuntimeError):
    """The runner gave up on a file that looked right; the last lines of its log are shown on stderr."""


def _rate(count: int, ms: int) -> float | None:
    return round(1000 * count / ms, 2) if ms > 0 and count else None


def _give_back() -> None:
    """Return freed memory to the system, where C's library can: else the model would seem to take it for nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)


def _memory() -> tuple[int, int]:
    """Peak resident and present private dirty bytes of this process; without Linux's /proc the nearest there is."""
    try:
        status, rollup = Path("/proc/self/status").read_text(), Path("/proc/self/smaps_rollup").read_text()
        return _kib(status, "VmHWM:"), _kib(rollup, "Private_Dirty:")
    except (OSError, StopIteration):
        info = psutil.Process().memory_full_info()
        return getattr(info, "peak_wset", info.rss), info.uss


def _kib(text: str, key: str) -> int:
    line = next(line for line in text.splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def show_stats(generation: Generation) -> None:
    """A few lines for people on stderr."""
    stats = generation.stats

    def rate(value: float | None) -> str:
        return "faster than can be measured" if value is None else f"{value:,.1f} tokens/s"

    end = "" if generation.ended else ", cut at the limit"
    peak, dirty, own = (f"{size / 1e6:,.0f} MB" for size in (
        stats.peak_resident_bytes, stats.dirty_bytes, stats.model_dirty_bytes
    ))  # fmt: skip
    lines = {
        "prompt": f"{stats.prompt_tokens} tokens, {rate(stats.prefill_tokens_per_second)}, "
        f"first token after {stats.first_token_ms:,} ms",
        "answer": f"{stats.generated_tokens} tokens{end}, {rate(stats.decode_tokens_per_second)}",
        "loading": f"{stats.load_ms:,} ms",
        "memory": f"{peak} at most, {dirty} dirty with Python and torch, {own} of it for the file",
    }
    for name, value in lines.items():
        print(f"{name:<8} {value}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.generate", description=__doc__.split("\n\n")[0])
    parser.add_argument("file", metavar="FILE", help="the .pte")
    parser.add_argument("prompt")
    parser.add_argument("--tokenizer", metavar="PATH", help="default: the one beside the file")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the prompt")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without chat template")
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="default: until it ends or the context is full"
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", default=0.0, help="0 (default) always takes the likeliest token"
    )
    parser.add_argument("--json", action="store_true", help="print answer and measurements for a program, at the end")
    parser.add_argument("--verbose", action="store_true", help="show the runner's logs")
    flags = vars(parser.parse_args(argv))
    quiet(flags["verbose"])
    as_json = flags.pop("json")

    def show(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        generation = generate(**flags, on_text=(lambda text: None) if as_json else show)
    except BrokenPipeError:  # whoever read the answer has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except RunnerFailed as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(asdict(generation), indent=2))
    else:
        print()
        show_stats(generation)
    return 0


if __name__ == "__main__":
    run(main)

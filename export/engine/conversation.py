"""A conversation with a `.pte`: turns or a text in, an answer out as it comes, over one KV cache.

What two requests have in common at their beginning is fed once. Knows nothing of screens or servers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from checkpoints.errors import BadInput
from export.engine.answer import Answer, OnPiece, Piece, TokenLogprob
from export.engine.chat_template import chat_prompt
from export.engine.choosing import Choosing
from export.engine.feeder import EngineName, Feeder, Progress, open_feeder, shared
from export.engine.runner import Facts, check_fits, read_facts
from export.engine.sampling import Sampler
from export.engine.structure import Structure, structure_words
from export.engine.tokenizer import COMPANIONS, Tokenizer, find_tokenizer, load_tokenizer
from export.engine.tool_calls import ToolCall
from export.manifest import check_beside

__all__ = ["Choosing", "Conversation", "End", "Piece", "Reply", "TokenLogprob", "ToolCall", "open_conversation"]

End = Literal["stop", "length", "context", "tool_calls", "cancelled"]


@dataclass(frozen=True)
class Reply:
    """An answer at its end."""

    text: str
    tool_calls: tuple[ToolCall, ...]
    end: End  # "length" is max_tokens, "context" a full context
    stop_text: str | None  # the stop string that ended it
    prompt_tokens: int
    fed_tokens: int  # of the prompt: the rest lay in the KV cache
    new_tokens: int  # without the one that ended it
    prefill_ms: float
    first_token_ms: float  # from the request on
    decode_ms: float  # from the first token on
    logprobs: tuple[TokenLogprob, ...]


LIKELIEST = Choosing()


class Conversation:
    """One KV cache, which gives one answer at a time; built by `open_conversation`."""

    def __init__(self, feeder: Feeder, tokenizer: Tokenizer, folder: Path, facts: Facts) -> None:
        self.context = facts.context
        self.tokenizer = tokenizer
        self.feeder, self._folder, self._facts = feeder, folder, facts
        self._busy = threading.Lock()
        self._cancelled = threading.Event()
        self._words: Any = None  # of llguidance, made when first needed

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def held(self) -> list[int]:
        """The tokens in the KV cache."""
        return self.feeder.held

    def reply(
        self,
        messages: list[dict[str, Any]],
        choosing: Choosing = LIKELIEST,
        tools: list[dict[str, Any]] | None = None,
        on_piece: OnPiece = lambda piece: None,
    ) -> Reply:
        """Answer OpenAI's messages by the chat template; `on_piece` is called from this thread.

        With `tools` (OpenAI's) calls are taken out of the text. BadInput for what cannot be asked, before anything
        is fed. An exception of `on_piece` ends the answer and comes out here; the conversation can go on.
        """
        if tools and choosing.schema is not None:
            raise BadInput("tools and a schema cannot be given at once: a call of a tool does not follow the schema")
        return self._answer(self._ids(messages, tools), choosing, on_piece, bool(tools))

    def complete(
        self,
        prompt: str | Sequence[int],
        choosing: Choosing = LIKELIEST,
        on_piece: OnPiece = lambda piece: None,
        echo: bool = False,
    ) -> Reply:
        """Go on from a text or ids without chat template; with `echo` the prompt is the beginning of the answer.

        With `echo` and logprobs those of the prompt come too, and it is fed token by token.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return self._answer(ids, choosing, on_piece, False, echo)

    def count(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> int:
        """Tokens of the prompt."""
        return len(self._ids(messages, tools))

    def cancel(self) -> None:
        """End the running answer at its next token or chunk of the prompt; from any thread."""
        self._cancelled.set()

    def reset(self) -> None:
        """Forget all tokens."""
        self.feeder.reset()

    def close(self) -> None:
        """Cancel, and free the model."""
        self.cancel()
        with self._busy:
            self.feeder.close()

    def _ids(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> list[int]:
        return self.tokenizer.encode(chat_prompt(self._folder, messages, tools))

    def _answer(
        self, ids: list[int], choosing: Choosing, on_piece: OnPiece, calls: bool, echo: bool = False
    ) -> Reply:
        choosing.check()
        self._check_ids(ids)
        if not self._busy.acquire(blocking=False):
            raise BadInput("this conversation is answering already")
        try:
            self._cancelled.clear()
            structure = None
            if choosing.schema is not None:
                self._words = self._words or structure_words(self.tokenizer, self._facts.eos_ids)
                structure = Structure(self._words, choosing.schema)
            sampler = Sampler(choosing, ids, self.tokenizer.vocab_size)
            answer = Answer(self.tokenizer, choosing, on_piece, calls)
            if echo:
                answer.echo(ids, self._prompt_logits(ids) if choosing.logprobs is not None else ())
            return self._run(ids, choosing, sampler, structure, answer)
        finally:
            self._busy.release()

    def _check_ids(self, ids: Sequence[int]) -> None:
        size = self.tokenizer.vocab_size
        if not ids:
            raise BadInput("the prompt is empty")
        if strangers := [token for token in ids if not 0 <= token < size]:
            raise BadInput(f"the prompt has token {strangers[0]}, {self.tokenizer.path} has {size}")
        if len(ids) >= self.context:
            raise BadInput(f"the prompt has {len(ids)} tokens, the context is {self.context}")

    def _run(
        self, ids: list[int], choosing: Choosing, sampler: Sampler, structure: Structure | None, answer: Answer
    ) -> Reply:
        begin = time.perf_counter()
        held = min(shared(self.feeder.held, ids), len(ids) - 1)
        logits = self._prefill(ids, held)
        prefilled = first = time.perf_counter()
        new = list[int]()
        end: End = "cancelled"
        while logits is not None and not self._cancelled.is_set():
            if len(new) == choosing.max_tokens:
                end = "length"
                break
            if len(ids) + len(new) == self.context:
                end = "context"
                break
            if new:
                logits = self.feeder.feed([*ids, *new])
            token = self._choose(logits, sampler, structure)
            if token in self._facts.eos_ids:
                end = "stop"
                break
            new.append(token)
            whole = structure is not None and structure.took(token)
            sampler.took(token)
            if len(new) == 1:
                first = time.perf_counter()
            if answer.push(token, logits) or whole:
                end = "stop"
                break
        answer.finish()
        done = time.perf_counter()
        return Reply(
            "".join(answer.texts),
            tuple(answer.tool_calls),
            "tool_calls" if answer.tool_calls and end == "stop" else end,
            answer.stops.found,
            len(ids),
            len(ids) - held,
            len(new),
            1000 * (prefilled - begin),
            1000 * (first - begin),
            1000 * (done - first),
            tuple(answer.logprobs),
        )

    def _prompt_logits(self, ids: list[int]) -> Iterator[np.ndarray]:
        """What the model expects after each token of the prompt but the last."""
        self.feeder.reset()
        for count in range(1, len(ids)):
            if self._cancelled.is_set():
                return
            yield self.feeder.feed(ids[:count])

    def _prefill(self, ids: list[int], held: int) -> np.ndarray | None:
        """Logits of the last token, None where cancelled before."""
        logits = None
        for end in [*range(held + self.feeder.chunk, len(ids), self.feeder.chunk), len(ids)]:
            if self._cancelled.is_set():
                return None
            logits = self.feeder.feed(ids[:end])
        return logits

    def _choose(self, logits: np.ndarray, sampler: Sampler, structure: Structure | None) -> int:
        logits = logits[: self.tokenizer.vocab_size]  # the rest is padding
        if not np.isfinite(logits).all():
            raise BadInput("the model gives logits that are no numbers")
        return sampler.choose(logits, None if structure is None else structure.allowed())


def open_conversation(
    path: Path,
    *,
    engine: EngineName | None = None,
    packed: Path | None = None,
    threads: int = 0,
    context: int | None = None,
    tokenizer: Path | None = None,
    on_progress: Progress | None = None,
) -> Conversation:
    """Load a `.pte` with the tokenizer beside it, or another.

    `engine` None is ours where a C++ compiler is, else the wheel's runtime. Ours keeps packed weights in the folder
    `packed`, which several conversations, also of several processes, then share. `context` lowers the file's.
    """
    if tokenizer is None:
        try:
            tokenizer = find_tokenizer(path.resolve().parent)
        except BadInput as problem:
            raise BadInput(f"{problem}: give a tokenizer with --tokenizer") from None
        check_beside(path, [tokenizer.name, *COMPANIONS])
    facts, words = read_facts(path), load_tokenizer(tokenizer)
    check_fits(path, facts, words)
    if context is not None and not 2 <= context <= facts.context:
        raise BadInput(f"a context of {context} tokens is not within 2 to the {facts.context} of {path}")
    feeder = open_feeder(path, engine, packed, threads, on_progress)
    return Conversation(
        feeder, words, tokenizer.parent, Facts(context or facts.context, facts.vocab_size, facts.eos_ids)
    )

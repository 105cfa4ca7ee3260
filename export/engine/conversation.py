"""A conversation with a `.pte`: turns or a text in, an answer out as it comes, over one KV cache.

What two requests have in common at their beginning is fed once, and a picture or sound is encoded once. Knows nothing
of screens, servers or files of pictures.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from checkpoints.errors import BadInput
from checkpoints.files import folder_of
from export.engine.answer import Answer, OnPiece, Piece, TokenLogprob
from export.engine.chat_template import chat_prompt
from export.engine.choosing import Choosing
from export.engine.feeder import EngineName, Feeder, Progress, open_feeder, shared
from export.engine.media_ids import Encoded, decides
from export.engine.media_prompt import (
    EncodedMedia,
    MediaPrompt,
    OnEncoding,
    check_room,
    check_text,
    encode,
    has_media,
    take_media,
    with_media,
)
from export.engine.runner import Facts, check_fits, read_facts
from export.engine.sampling import Sampler
from export.engine.structure import Structure, structure_words
from export.engine.tokenizer import COMPANIONS, Tokenizer, find_tokenizer, load_tokenizer
from export.engine.tool_calls import ToolCall
from export.manifest import check_beside
from export.media.prompt import Mode
from export.media.settings import TEXT_ONLY

__all__ = [
    "Choosing", "Conversation", "EncodedMedia", "End", "Piece", "Reply", "TokenLogprob", "ToolCall",
    "open_conversation",
]  # fmt: skip

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
    token_ids: tuple[int, ...] = ()  # without the one that ended it
    mode: Mode = "text"
    media: tuple[EncodedMedia, ...] = ()  # of the whole prompt, in its order; encoded before `prefill_ms` begins


class Cancelled(Exception):
    """What is being encoded is not needed any more."""


LIKELIEST = Choosing()


class Conversation:
    """One KV cache, which gives one answer at a time; built by `open_conversation`."""

    def __init__(
        self,
        feeder: Feeder,
        tokenizer: Tokenizer,
        folder: Path,
        facts: Facts,
        name: str = "this file",
        context: int | None = None,
    ) -> None:
        self.context, self.media = context or facts.context, facts.media
        self.name = name
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
        on_encoding: OnEncoding = lambda done, of: None,
    ) -> Reply:
        """Answer OpenAI's messages by the chat template; `on_piece` is called from this thread.

        A content may be a list of parts: {"type": "text", "text": str}, {"type": "image", "image": RGB pixels, uint8
        [height, width, 3]} and {"type": "audio", "audio": Sound of export.media.sound_files}; see
        `export.media.prompt.place` for where they stand in the text. `on_encoding` hears how many crops and pieces of
        sound are encoded, of all. With `tools` (OpenAI's) calls are taken out of the text. BadInput for what cannot
        be asked, before anything is encoded or fed. An exception of `on_piece` ends the answer and comes out here;
        the conversation can go on.
        """
        if tools and choosing.schema is not None:
            raise BadInput("tools and a schema cannot be given at once: a call of a tool does not follow the schema")
        return self._answer(self._prompt(messages, tools), choosing, on_piece, on_encoding, bool(tools))

    def complete(
        self,
        prompt: str | Sequence[int] | Sequence[dict[str, Any]],
        choosing: Choosing = LIKELIEST,
        on_piece: OnPiece = lambda piece: None,
        echo: bool = False,
        on_encoding: OnEncoding = lambda done, of: None,
    ) -> Reply:
        """Go on from a text, ids or parts without chat template; with `echo` the prompt begins the answer.

        With `echo` and logprobs those of the prompt come too, and it is fed token by token.
        """
        return self._answer(self._raw_prompt(prompt), choosing, on_piece, on_encoding, False, echo)

    def count(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> int:
        """Tokens of the prompt."""
        return len(self._prompt(messages, tools).ids)

    def cancel(self) -> None:
        """End the running answer at its next token, chunk of the prompt, crop or piece of sound; from any thread."""
        self._cancelled.set()

    def reset(self) -> None:
        """Forget all tokens, pictures and sounds."""
        self.feeder.reset()

    def close(self) -> None:
        """Cancel, and free the model."""
        self.cancel()
        with self._busy:
            self.feeder.close()

    def _ids(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> list[int]:
        return self._prompt(messages, tools).ids

    def _prompt(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> MediaPrompt:
        if self.media == TEXT_ONLY and not has_media(messages):
            return MediaPrompt(self._text_ids(chat_prompt(self._folder, messages, tools)))
        placed = take_media(messages, self.media, self.name)
        text = chat_prompt(self._folder, placed.messages, tools)
        return with_media(text, placed, self._text_ids, self.media)

    def _raw_prompt(self, prompt: str | Sequence[int] | Sequence[dict[str, Any]]) -> MediaPrompt:
        if not isinstance(prompt, str) and not any(isinstance(one, dict) for one in prompt):
            ids = self._checked(list(prompt))  # type: ignore[arg-type]
            check_text(ids, self.media)
            return MediaPrompt(ids)
        parts = [{"type": "text", "text": prompt}] if isinstance(prompt, str) else list(prompt)
        placed = take_media([{"role": "user", "content": parts}], self.media, self.name)
        return with_media(placed.messages[0]["content"], placed, self._text_ids, self.media)

    def _text_ids(self, text: str) -> list[int]:
        return self._checked(self.tokenizer.encode(text))

    def _checked(self, ids: list[int]) -> list[int]:
        size = self.tokenizer.vocab_size
        if strangers := [token for token in ids if not 0 <= token < size]:
            raise BadInput(f"the prompt has token {strangers[0]}, {self.tokenizer.path} has {size}")
        return ids

    def _answer(
        self,
        prompt: MediaPrompt,
        choosing: Choosing,
        on_piece: OnPiece,
        on_encoding: OnEncoding,
        calls: bool,
        echo: bool = False,
    ) -> Reply:
        choosing.check()
        ids = prompt.ids
        if not ids:
            raise BadInput("the prompt is empty")
        check_room(prompt, self.context, self._facts)
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
            if echo and prompt.items:
                raise BadInput("a prompt with pictures or sound cannot be echoed")
            if echo:
                answer.echo(ids, self._prompt_logits(ids) if choosing.logprobs is not None else ())
            return self._run(prompt, choosing, sampler, structure, answer, on_encoding)
        finally:
            self._busy.release()

    def _run(
        self,
        prompt: MediaPrompt,
        choosing: Choosing,
        sampler: Sampler,
        structure: Structure | None,
        answer: Answer,
        on_encoding: OnEncoding,
    ) -> Reply:
        begin, ids = time.perf_counter(), prompt.ids
        held = min(shared(self.feeder.held, ids), len(ids) - 1) if self.feeder.mode == prompt.mode else 0
        media = self._encode(prompt, held, on_encoding)
        if not self._cancelled.is_set():
            self.feeder.ready(prompt.mode)
        encoded = time.perf_counter()
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
            1000 * (prefilled - encoded),
            1000 * (first - begin),
            1000 * (done - first),
            tuple(answer.logprobs),
            tuple(new),
            prompt.mode,
            media,
        )

    def _encode(self, prompt: MediaPrompt, held: int, on_encoding: OnEncoding) -> tuple[EncodedMedia, ...]:
        """Encode what the KV cache does not hold yet; fewer than all where cancelled."""

        def on_part() -> None:
            if self._cancelled.is_set():
                raise Cancelled

        here = [item for item in prompt.items if item.stop <= held]
        found = [item.told(Encoded(item.first_id, item.tokens, item.parts, True, 0.0, 0.0)) for item in here]
        with suppress(Cancelled):
            found.extend(encode(prompt.items[len(here) :], prompt.mode, self.feeder, on_part, on_encoding))
        return tuple(found)

    def _prompt_logits(self, ids: list[int]) -> Iterator[np.ndarray]:
        """What the model expects after each token of the prompt but the last."""
        self.feeder.reset()
        for count in range(1, len(ids)):
            if self._cancelled.is_set():
                return
            yield self.feeder.feed(ids[:count])

    def _prefill(self, ids: list[int], held: int) -> np.ndarray | None:
        """Logits of the last token, None where cancelled before."""
        logits, chunk = None, self.feeder.chunk
        # The mode follows from the ids: without what decides it, the beginning would be fed as text.
        first = next((at for at, token in enumerate(ids) if token < 0 and decides(token)), 0) + 1
        for end in [*range(max(held + chunk, first), len(ids), chunk), len(ids)]:
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
            tokenizer = find_tokenizer(folder_of(path))
        except BadInput as problem:
            raise BadInput(f"{problem}: give a tokenizer with --tokenizer") from None
        check_beside(path, [tokenizer.name, *COMPANIONS])
    facts, words = read_facts(path), load_tokenizer(tokenizer)
    check_fits(path, facts, words)
    if context is not None and not 2 <= context <= facts.context:
        raise BadInput(f"a context of {context} tokens is not within 2 to the {facts.context} of {path}")
    feeder = open_feeder(path, engine, packed, threads, on_progress, facts.media, facts.context)
    return Conversation(feeder, words, tokenizer.parent, facts, str(path), context)

"""An answer as it comes: tokens in, text that is certain, calls of tools and log probabilities out.

Knows nothing of prompts or of how a token is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from export.engine.choosing import Choosing
from export.engine.generation import Joiner
from export.engine.sampling import likeliest, log_softmax
from export.engine.tokenizer import Tokenizer
from export.engine.tool_calls import ToolCall, ToolCalls
from export.engine.visible import StopText


@dataclass(frozen=True)
class TokenLogprob:
    """How likely the model found a token, in nats: before bias, penalties, temperature and schema.

    NaN for the first token of a prompt that is echoed, which nothing stands before.
    """

    token_id: int
    text: str
    bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()  # the likeliest, likeliest first


@dataclass(frozen=True)
class Piece:
    """What of an answer has newly become certain."""

    text: str = ""  # whole characters, calls of tools taken out
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


OnPiece = Callable[[Piece], object]


class Answer:
    """What has been said so far: ids in, certain text, calls and log probabilities out."""

    def __init__(self, tokenizer: Tokenizer, choosing: Choosing, on_piece: OnPiece, calls: bool) -> None:
        self.texts, self.tool_calls, self.logprobs = list[str](), list[ToolCall](), list[TokenLogprob]()
        self.stops = StopText(choosing.stop)
        self._tokenizer, self._on_piece = tokenizer, on_piece
        self._top = choosing.logprobs
        self._joiner = Joiner(tokenizer.decode)
        self._calls = ToolCalls() if calls else None
        self._waiting = list[tuple[int, TokenLogprob]]()  # where a token's text begins, until that is certain
        self._read = self._certain = 0  # characters, before calls are taken out

    def push(self, token: int, logits: np.ndarray) -> bool:
        """Take a token; whether a stop string has ended the answer."""
        if self._top is not None:
            self._waiting.append((self._read, self._likelihood(token, logits, self._top)))
        self._take(self._joiner.push(token))
        return self.stops.found is not None

    def finish(self) -> None:
        """Let out what was held back."""
        self._take(self._joiner.rest(), final=True)

    def echo(self, ids: Sequence[int], logits: Iterable[np.ndarray]) -> None:
        """Let out the prompt, with its log probabilities where there are the logits after each token but the last."""
        told = list[TokenLogprob]()
        if self._top is not None:
            told = [self._logprob(ids[0], np.full(self._tokenizer.vocab_size, np.nan))]
            told += [self._likelihood(token, row, self._top) for token, row in zip(ids[1:], logits, strict=False)]
        self._tell(self._tokenizer.decode(ids), [], tuple(told))

    def _take(self, new: str, final: bool = False) -> None:
        self._read += len(new)
        text = self.stops.push(new)
        if final:
            text += self.stops.rest()
        self._certain += len(text)
        calls = list[ToolCall]()
        if self._calls is not None:
            text, calls = self._calls.push(text)
            if final:
                rest, more = self._calls.rest()
                text, calls = text + rest, calls + more
        everything = final and self.stops.found is None
        ready = [one for at, one in self._waiting if everything or at < self._certain]
        self._waiting = self._waiting[len(ready) :]
        self._tell(text, calls, tuple(ready))

    def _tell(self, text: str, calls: list[ToolCall], logprobs: tuple[TokenLogprob, ...]) -> None:
        if not (text or calls or logprobs):
            return
        self.texts.append(text)
        self.tool_calls += calls
        self.logprobs += logprobs
        self._on_piece(Piece(text, tuple(calls), logprobs))

    def _likelihood(self, token: int, logits: np.ndarray, top: int) -> TokenLogprob:
        logprobs = log_softmax(logits[: self._tokenizer.vocab_size])
        return self._logprob(
            token, logprobs, tuple(self._logprob(other, logprobs) for other in likeliest(logprobs, top))
        )

    def _logprob(self, token: int, logprobs: np.ndarray, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        spelled = self._tokenizer.token_bytes(token)
        return TokenLogprob(token, spelled.decode(errors="replace"), spelled, float(logprobs[token]), top)

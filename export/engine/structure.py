"""Answers that follow a JSON schema: which tokens may come next, by llguidance.

Knows tokens and a schema; knows nothing of logits.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from checkpoints.errors import BadInput
from export.engine.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

# One space after a colon and a comma, as models write JSON: a weak model would fill the context with them.
WRITTEN = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}


class Structure:
    """Where an answer is in its JSON text."""

    def __init__(self, words: LLTokenizer, schema: Mapping[str, Any] | Literal["json"]) -> None:
        from llguidance import LLMatcher

        asked = {"type": "object"} if schema == "json" else dict(schema)
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(asked), overrides=WRITTEN)  # type: ignore[arg-type]
        except (TypeError, ValueError) as problem:
            raise BadInput(f"the schema is not JSON: {problem}") from None
        wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar, words)
        if wrong:
            raise BadInput(f"the schema cannot be followed: {messages[0]}")
        self._matcher = LLMatcher(words, grammar, log_level=0)
        self._vocab_size = words.vocab_size

    def allowed(self) -> np.ndarray:
        """Bool [V]: the tokens that may come next, stop ids among them where the text may end."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(bool)

    def took(self, token: int) -> bool:
        """Go on by a token; whether the text is whole and nothing can follow."""
        self._matcher.consume_token(token)
        self._check()
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise BadInput(f"the schema is too much to follow: {self._matcher.get_error()}")


def structure_words(tokenizer: Tokenizer, stop_ids: Collection[int]) -> LLTokenizer:
    """The tokens of any tokenizer as llguidance wants them; takes a second for a large one, so keep it."""
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError as problem:
        raise BadInput(f"a schema needs the package llguidance ({problem}): `uv sync --extra structured`") from None

    spelled = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    special = set(tokenizer.special.values())
    tokens = {text: token for token, text in enumerate(spelled) if token not in special}

    class Words:  # the attributes that TokenizerWrapper reads
        def __init__(self) -> None:
            self.eos_token_id, self.bos_token_id = min(stop_ids), None
            self.tokens, self.special_token_ids = spelled, sorted(special)

        def __call__(self, text: bytes) -> list[int]:
            # SentencePiece puts a space in front, which is not in the text that the schema wants next.
            return _longest(text, tokens) if tokenizer.kind == "sentencepiece" else tokenizer.encode(text.decode())

    return LLTokenizer(TokenizerWrapper(Words()), n_vocab=tokenizer.vocab_size, eos_token=sorted(stop_ids))


def _longest(text: bytes, tokens: Mapping[bytes, int]) -> list[int]:
    """Tokens of a text, each the longest that fits."""
    longest, found = max(map(len, tokens)), list[int]()
    while text:
        size = next((size for size in range(longest, 0, -1) if text[:size] in tokens), 0)
        if not size:
            raise BadInput(f"the tokenizer has no token of the byte {text[0]}")
        found.append(tokens[text[:size]])
        text = text[size:]
    return found

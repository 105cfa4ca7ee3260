"""Typed access to one object of a JSON file, with a sentence for each thing that may be wrong with it.

Knows limits that no published model comes near; knows nothing of what the keys mean.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints.errors import BadInput, show

# Far above any published model: a larger number is a damaged file, and would only fail later as a
# huge allocation.
MAX_SIZE = 1 << 24
MAX_LAYERS = 1 << 10
MAX_POSITIONS = 1 << 30


class Reader:
    """Every complaint starts with the object's place and the key, put together by `dot`."""

    def __init__(self, path: Path | str, raw: Mapping[str, Any], dot: str = ": ") -> None:
        self.path, self.raw, self.dot = path, raw, dot

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.raw.get(key) is not None

    def integer(self, key: str, *, low: int = 1, high: int, default: int | None = None) -> int:
        value = self._take(key, default)
        if type(value) is not int:
            raise self._bad(key, "must be an integer", value)
        if not low <= value <= high:
            raise self._bad(key, f"must lie between {low} and {high}", value)
        return value

    def number(self, key: str, *, default: float | None = None) -> float:
        return self._positive(key, self._take(key, default))

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        value = self._take(key, None)
        if not isinstance(value, list):
            raise self._bad(key, "must be a list of numbers", value)
        if len(value) != length:
            place = f"{self.path}{self.dot}{key}"
            raise BadInput(f"{place} has {len(value)} entries, half the rotated elements are {length}")
        return tuple(self._positive(f"{key}[{i}]", entry) for i, entry in enumerate(value))

    def inner(self, key: str) -> "Reader":
        """Access to the object under a key."""
        value = self._take(key, None)
        if not isinstance(value, dict):
            raise self._bad(key, "must be an object", value)
        return Reader(f"{self.path}{self.dot}{key}", value, dot=".")

    def only(self, key: str, wanted: Any) -> None:
        """Raise BadInput where a key is there with another value than the one that can be computed."""
        value = self.raw.get(key, wanted)
        if type(value) is not type(wanted) or value != wanted:
            raise BadInput(f"{self.path}{self.dot}{key} is {show(value)}, only {show(wanted)} can be read")

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.raw.get(key, default)
        if not isinstance(value, bool):
            raise self._bad(key, "must be true or false", value)
        return value

    def token(self, key: str, vocab: int, notes: list[str]) -> int | None:
        """An id that generation needs not: one that no token can have is noted and left out."""
        value = self.raw.get(key)
        if type(value) is int and not 0 <= value < vocab:
            notes.append(f"{self.path}{self.dot}{key} {show(value)} is the id of no token (vocab_size {vocab})")
            return None
        return None if value is None else self._token(key, value, vocab)

    def token_or(self, key: str, default: int, vocab: int) -> int:
        """An id that is needed."""
        return self._token(key, self._take(key, default), vocab)

    def tokens(self, key: str, vocab: int) -> tuple[int, ...]:
        value = self.raw.get(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            return (self._token(key, value, vocab),)
        return tuple(self._token(f"{key}[{i}]", entry, vocab) for i, entry in enumerate(value))

    def _take(self, key: str, default: Any) -> Any:
        if key in self.raw:
            return self.raw[key]
        if default is None:
            raise BadInput(f"{self.path}{self.dot}{key} is missing")
        return default

    def _positive(self, key: str, value: Any) -> float:
        if type(value) not in (int, float):
            raise self._bad(key, "must be a number", value)
        if not 0 < value < 1e30:  # also refuses NaN
            raise self._bad(key, "must be positive and finite", value)
        return float(value)

    def _token(self, key: str, value: Any, vocab: int) -> int:
        if type(value) is not int:
            raise self._bad(key, "must be a token id", value)
        if not 0 <= value < vocab:
            raise BadInput(f"{self.path}{self.dot}{key} is {show(value)}, vocab_size is {vocab}")
        return value

    def _bad(self, key: str, rule: str, value: Any) -> BadInput:
        return BadInput(f"{self.path}{self.dot}{key} {rule}, it is {show(value)}")

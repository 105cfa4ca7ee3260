"""What of an answer may be shown as it comes: text that can no longer become a stop string."""

from __future__ import annotations

from collections.abc import Sequence


def may_begin(text: str, words: Sequence[str]) -> int:
    """Where in `text` the longest end begins that one of `words` begins with, but does not end; else len(text)."""
    longest = max(map(len, words), default=1)
    for at in range(max(0, len(text) - longest + 1), len(text)):
        if any(word.startswith(text[at:]) for word in words):
            return at
    return len(text)


class StopText:
    """Looks for the first of some strings to end in a text that comes in pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.found: str | None = None
        self._kept = ""

    def push(self, text: str) -> str:
        """What is certain now: held back is only an end that may yet become a stop string."""
        if self.found is not None:
            return ""
        self._kept += text
        # The one that ends first, so that it does not matter how the text is cut into pieces.
        ends = [(at + len(stop), at, stop) for stop in self.stops if (at := self._kept.find(stop)) >= 0]
        if ends:
            _, at, self.found = min(ends)
        else:
            at = may_begin(self._kept, self.stops)
        certain, self._kept = self._kept[:at], self._kept[at:]
        return certain

    def rest(self) -> str:
        """What is left where the answer ends before the string is whole."""
        kept, self._kept = self._kept, ""
        return "" if self.found is not None else kept

"""Takes calls of tools out of an answer that comes in pieces, in the spellings that models were trained on.

Phi-4-mini writes `functools[{"name": …, "arguments": {…}}]` or `<|tool_call|>[…]<|/tool_call|>`, others
`<tool_call>{…}</tool_call>`: one object or a list. What begins like a call and is none stays text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from export.engine.visible import may_begin

# How a call begins -> how it ends, which models sometimes leave out.
SPELLINGS = {"<|tool_call|>": "<|/tool_call|>", "<tool_call>": "</tool_call>", "functools": ""}
_PART = re.compile(r'"(?:[^"\\]|\\.)*"|["\[\]{}]', re.DOTALL)  # a whole string, the begin of one, a bracket


@dataclass(frozen=True)
class ToolCall:
    """What the model wants called."""

    name: str
    arguments: str  # JSON text of an object


class ToolCalls:
    """Divides a text that comes in pieces into text to show and calls; any pieces give the same."""

    def __init__(self) -> None:
        self.any = False  # whether a call was found
        self._kept = ""
        self._after_call = False  # white space after a call is no answer

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """What is certain now; what may yet become a call is held back."""
        self._kept += text
        return self._take(final=False)

    def rest(self) -> tuple[str, list[ToolCall]]:
        """What is left at the end: a call without its end is one, half of one is text."""
        return self._take(final=True)

    def _take(self, final: bool) -> tuple[str, list[ToolCall]]:
        shown, calls = "", list[ToolCall]()
        while self._kept:
            marks = [(at, mark) for mark in SPELLINGS if (at := self._kept.find(mark)) >= 0]
            if not marks:
                shown += self._text(len(self._kept) if final else may_begin(self._kept, tuple(SPELLINGS)))
                break
            at, mark = min(marks)
            shown += self._text(at)
            end = _value_end(self._kept, len(mark))
            if end is None and not final:
                break  # not whole yet
            found = _calls(self._kept[len(mark) : end]) if end else []
            if not found:
                shown += self._text(len(mark))
                continue
            assert end is not None
            close = SPELLINGS[mark]
            after = self._kept[end:].lstrip()
            if not final and close != after and close.startswith(after):
                break  # the end may be still to come
            if close and after.startswith(close):
                end = len(self._kept) - len(after) + len(close)
            self._kept = self._kept[end:]
            self._after_call = self.any = True
            calls += found
        return shown, calls

    def _text(self, count: int) -> str:
        text, self._kept = self._kept[:count], self._kept[count:]
        if self._after_call:
            text = text.lstrip()
            self._after_call = not text
        return text


def _value_end(text: str, at: int) -> int | None:
    """Where the list or object ends that begins at `at`; 0 where none begins there, None where it is not whole."""
    while at < len(text) and text[at].isspace():
        at += 1
    if at == len(text):
        return None
    if text[at] not in "[{":
        return 0
    depth = 0
    for part in _PART.finditer(text, at):
        mark = part[0]
        if mark == '"':
            return None
        depth += (mark in ("[", "{")) - (mark in ("]", "}"))
        if depth == 0:
            return part.end()
    return None


def _calls(text: str) -> list[ToolCall]:
    """The calls that a JSON text spells, none where it is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    values = value if isinstance(value, list) else [value]
    calls = [_call(value) for value in values]
    return [call for call in calls if call is not None] if all(calls) else []


def _call(value: Any) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str) or not name:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # JSON within JSON
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None

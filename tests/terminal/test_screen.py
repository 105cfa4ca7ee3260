"""What stands on the screen after an answer has come in pieces is what rich prints of the whole."""

from __future__ import annotations

import io
import random
import re

import pytest
from rich.console import Console
from rich.markdown import Markdown

from export.terminal.screen import LiveAnswer, broken, finished

ANSWER = """Here is a **list** of
lines, one of which is so long that it does not fit on the screen and goes on in the next line.

1. one

2. two

```python
def f():

    return 1
```

- a
- b

And `code`, ~~~ no fence.
"""
CODE = "Text\n\n```\n" + "\n".join(f"line {at}" for at in range(40)) + "\n```\nend"


class Screen:
    """A terminal of `height` lines for what rich writes: what scrolls out at its top stays in `lines`."""

    def __init__(self, height: int) -> None:
        self.height, self.lines, self.row, self.column = height, [""], 0, 0

    def write(self, data: str) -> None:
        for mark in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", data):
            if mark == "\n":
                self.row, self.column = self.row + 1, 0
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif mark == "\r":
                self.column = 0
            elif mark == "\x1b[2K":
                self.lines[self.row] = ""
            elif up := re.fullmatch(r"\x1b\[(\d+)A", mark):
                self.row = max(self.row - int(up[1]), len(self.lines) - self.height, 0)  # no farther than the top
            elif not mark.startswith("\x1b"):
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + mark + line[self.column + len(mark) :]
                self.column += len(mark)
            else:
                assert mark[-1] in "mlh", f"the screen does not know {mark!r}"

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).rstrip()


def shown(pieces: list[str], height: int) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=50, height=height, color_system=None)
    with LiveAnswer(console, every=0) as answer:
        for piece in pieces:
            answer.add(piece)
    screen = Screen(height)
    screen.write(out.getvalue())
    return screen.text()


def printed(text: str) -> str:
    """Blocks one after another with an empty line between, without anything live."""
    blocks, texts = list[str](), list[str]()
    at = 0
    while at < len(text):
        after = re.search(r"\n[ \t]*\n", text[at:])
        end = at + after.end() if after else len(text)
        while end < len(text) and text[at:end].count("```") % 2:
            after = re.search(r"\n[ \t]*\n", text[end:])
            end = end + after.end() if after else len(text)
        blocks.append(text[at:end])
        at = end
    for block in blocks:
        out = io.StringIO()
        Console(file=out, width=50, color_system=None).print(Markdown(broken(block)))
        lines = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
        texts.append(lines.strip("\n"))
    return "\n\n".join(texts)


@pytest.mark.parametrize("answer", [ANSWER, CODE, "short", "", "a\nb\n"], ids=["all", "code", "short", "none", "two"])
@pytest.mark.parametrize("height", [6, 12, 60])
def test_the_screen_at_the_end(answer: str, height: int) -> None:
    for seed in range(4):
        rng, pieces, rest = random.Random(seed), [], answer
        while rest:
            size = rng.randrange(1, 4 + 20 * (seed % 2))
            pieces.append(rest[:size])
            rest = rest[size:]
        assert shown(pieces, height) == printed(answer)


def test_lines_stay_lines_and_code_is_not_touched() -> None:
    assert broken("a\nb\n\nc") == "a  \nb  \n\nc"
    assert broken("```\na\n\nb\n```\nc\n") == "```\na\n\nb\n```\nc  \n"


def test_blocks_end_at_empty_lines_outside_of_code() -> None:
    assert finished("one\n\ntwo\n\n") == len("one\n\n")
    assert finished("```\n\n") == finished("no end\n") == finished("") == 0
    assert finished("~~~\n```\n\n~~~\n\nx\n\n") == len("~~~\n```\n\n~~~\n\n")


def test_an_exception_leaves_the_terminal_as_it_was() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=50, height=9, color_system=None)
    with pytest.raises(KeyboardInterrupt), LiveAnswer(console) as answer:
        answer.add("half an ")
        raise KeyboardInterrupt
    assert out.getvalue().rstrip().endswith("half an")
    assert out.getvalue().count("\x1b[?25h") == 1, "the cursor is back"

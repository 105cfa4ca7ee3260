"""An answer in Markdown on the screen while it comes.

Finished blocks are printed once and for all; only the unfinished last one is drawn again, and of that no more lines
than the screen has. So nothing flickers, and long answers scroll.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)", re.DOTALL)


class LiveAnswer:
    """A context in which `add` shows text; afterwards all of it stands on the screen.

    Drawn by `add` itself, at most once in `every` seconds: rich 15's thread that would draw mixes its output with
    what is printed meanwhile, and erases lines of it.
    """

    def __init__(self, console: Console, every: float = 1 / 12) -> None:
        self._console, self._every, self._drawn = console, every, 0.0
        self._text = ""  # of the unfinished block
        self._gap = False  # an empty line stands between blocks
        self._live = Live(
            console=console, transient=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )

    def __enter__(self) -> LiveAnswer:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        self._print(self._text)

    def encoding(self, done: int, of: int) -> None:
        """Show, until the answer begins, how far the encoding of pictures and sound is."""
        self._live.update(Text(f"encoding, {done} of {of}", style="dim"), refresh=True)

    def add(self, text: str) -> None:
        """Show more of the answer."""
        self._text += text
        while end := finished(self._text):
            block, self._text = self._text[:end], self._text[end:]
            self._live.update(_Lines(self._text, True, self._most()))  # drawn below what is printed next
            self._print(block)
        self._live.update(_Lines(self._text, self._gap, self._most()))
        if time.monotonic() - self._drawn >= self._every:
            self._live.refresh()
            self._drawn = time.monotonic()

    def _most(self) -> int:
        return max(1, self._console.height - 2)

    def _print(self, block: str) -> None:
        if block.strip():
            self._console.print(_Lines(block, self._gap), end="")
            self._gap = True


class _Lines:
    """A block of Markdown, or its last lines, after an empty line where there is a gap."""

    def __init__(self, text: str, gap: bool, most: int = 0) -> None:
        self._text, self._gap, self._most = text, gap, most

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(Markdown(broken(self._text)), options, pad=False)
        while lines and _empty(lines[0]):  # rich has them around lists and code
            lines.pop(0)
        while lines and _empty(lines[-1]):
            lines.pop()
        if lines and self._gap:
            lines.insert(0, [])
        for line in lines[-self._most :]:
            yield from line
            yield Segment.line()


def _empty(line: list[Segment]) -> bool:
    return not any(segment.text.strip() for segment in line)


def finished(text: str) -> int:
    """Where the first block of a Markdown text ends: after the first empty line outside of code; 0 for no end yet."""
    at = 0
    for line, code in _lines(text):
        at += len(line)
        if not code and not line.strip() and line.endswith("\n"):
            return at
    return 0


def broken(text: str) -> str:
    """Markdown whose lines end where those of the text end, as models mean it."""
    return "".join(
        line if code or not line.endswith("\n") or not line.strip() else f"{line[:-1].rstrip()}  \n"
        for line, code in _lines(text)
    )


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it belongs to a fenced block of code."""
    fence = ""
    for line in text.splitlines(keepends=True):
        mark = FENCE.match(line)
        code = bool(fence or mark)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence) and not mark[2].strip():
            fence = ""
        yield line, code

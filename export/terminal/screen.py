"""An answer in Markdown on the screen while it comes.

Finished blocks are printed once and for all; only the unfinished last one is drawn again, and of that no more lines
than the screen has. So nothing flickers, and long answers scroll.
"""

from __future__ import annotations

import re
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")


class LiveAnswer:
    """A context in which `add` shows text; afterwards all of it stands on the screen."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""  # of unfinished blocks
        self._live = Live(console=console, transient=True, refresh_per_second=12, redirect_stdout=False)
        self._live._redirect_stderr = False

    def __enter__(self) -> LiveAnswer:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        if self._text.strip():
            self._console.print(Markdown(self._text))

    def add(self, text: str) -> None:
        """Show more of the answer."""
        self._text += text
        end = finished(self._text)
        if self._text[:end].strip():
            self._console.print(Markdown(self._text[:end]))
        self._text = self._text[end:]
        self._live.update(_Last(self._text))


class _Last:
    """The last lines of a block, as many as the screen has."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(Markdown(self._text), options, pad=False)
        for line in lines[-max(1, console.height - 1) :]:
            yield from line
            yield Segment.line()


def finished(text: str) -> int:
    """Where the unfinished last block of a Markdown text begins: after the last empty line outside of a fence."""
    at, end, fence = 0, 0, ""
    for line in text.splitlines(keepends=True):
        at += len(line)
        if mark := FENCE.match(line):
            if not fence:
                fence = mark[1]
            elif mark[1].startswith(fence) and not line.strip(" `~\n"):
                fence = ""
        if not fence and not line.strip() and line.endswith("\n"):
            end = at
    return end

"""What the commands of a chat print."""

from __future__ import annotations

from rich.console import Console

from export.terminal.commands import obey
from export.terminal.state import State


def told(text: str, state: State) -> str:
    """What a command prints."""
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        obey(text, state, console)
    return capture.get()

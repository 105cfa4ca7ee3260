"""The line that is typed: edited, completed, remembered; Alt-Enter or an open ``` begins another line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from checkpoints.cache import cache_folder
from checkpoints.errors import BadInput

try:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter, WordCompleter
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.styles import Style
except ImportError as problem:
    raise BadInput(
        f"a chat in a terminal needs the package prompt-toolkit ({problem}): `uv sync --extra chat`"
    ) from None

from export.terminal.commands import COMMANDS
from export.terminal.state import State


class Prompt:
    """Reads turns from a terminal; what was typed is kept in the user's cache for the arrow keys."""

    def __init__(self, state: State, **streams: Any) -> None:
        self._session: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            key_bindings=_keys(),
            history=FileHistory(str(history_file())),
            completer=_Completer(),
            complete_while_typing=False,
            bottom_toolbar=state.status,
            prompt_continuation=lambda width, line, wrapped: "  ",
            style=Style.from_dict({"bottom-toolbar": "noreverse fg:ansibrightblack"}),
            **streams,
        )

    def read(self) -> str:
        """A turn; KeyboardInterrupt for Ctrl-C, EOFError for Ctrl-D on an empty line."""
        return self._session.prompt()


class _Completer(Completer):
    """Completes commands, and paths after those that take a file."""

    def __init__(self) -> None:
        self._commands = WordCompleter([f"/{name}" for name in COMMANDS], sentence=True)
        self._paths = PathCompleter(expanduser=True)
        self._with_file = {f"/{name}" for name, (arguments, *_) in COMMANDS.items() if "FILE" in arguments}

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        command, space, rest = document.text_before_cursor.partition(" ")
        if space and command in self._with_file:
            yield from self._paths.get_completions(Document(rest), event)
        else:
            yield from self._commands.get_completions(document, event)


def history_file() -> Path:
    """What was typed, readable for its owner alone."""
    path = cache_folder() / "chat_history"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    return path


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.text.count("```") % 2:  # a block of code is open
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def newline(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys

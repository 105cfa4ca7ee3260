"""The loop of the chat: a turn in, an answer out as it comes, in a terminal or through a pipe."""

from __future__ import annotations

import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.markup import escape

from checkpoints.errors import BadInput
from export.engine.conversation import Choosing, Conversation, Piece
from export.media.prompt import Kind
from export.terminal.commands import Leave, obey
from export.terminal.screen import LiveAnswer
from export.terminal.state import State

ATTACHING: dict[str, Kind] = {"/image": "image", "/audio": "audio"}  # the commands that a pipe has, too


def talk(conversation: Conversation, name: str, system: str | None, choosing: Choosing) -> None:
    """Until the input ends. In a terminal Ctrl-C ends the answer and Ctrl-D the talk; a pipe's lines are turns.

    In a pipe too, `/image FILE` and `/audio FILE` go with the line after them, which may be empty or missing.
    """
    state = State(conversation, name, system, choosing)
    if _in_terminal():
        _terminal(state)
    else:
        _pipe(state)


def check_terminal() -> None:
    """Raise BadInput where a terminal needs what is not installed: before the model is loaded."""
    if _in_terminal():
        import export.terminal.prompt  # noqa: F401


def _in_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _pipe(state: State) -> None:
    def show(piece: Piece) -> None:
        sys.stdout.write(piece.text)
        sys.stdout.flush()

    def answer(text: str) -> None:
        reply = state.ask(text, show)
        sys.stdout.write("\n")
        sys.stdout.flush()
        if note := state.note(reply):
            print(note, file=sys.stderr)

    for line in sys.stdin:
        command, _, rest = line.strip().partition(" ")
        if rest and command in ATTACHING:
            state.attach(ATTACHING[command], rest.strip())
        elif line.strip() or state.attached:
            answer(line.strip())
    if state.attached:
        answer("")


def _terminal(state: State) -> None:
    from export.terminal.prompt import Prompt  # needs the extra

    console, prompt = Console(highlight=False), Prompt(state)
    console.print(
        f"[bold]{escape(state.name)}[/], context {state.conversation.context} tokens. /help lists commands."
    )
    with _on_interrupt(lambda: None):  # between an answer and the prompt Ctrl-C is nobody's, and ends nothing
        while True:
            try:
                text = prompt.read()
            except KeyboardInterrupt:  # what was typed is gone, as in a shell
                continue
            except EOFError:
                return
            try:
                if text.startswith("/"):
                    obey(text, state, console)
                elif text.strip() or state.attached:
                    _answer(text.strip(), state, console)
            except Leave:
                return
            except BadInput as problem:
                console.print(" ".join(str(problem).split()), style="red", markup=False)


def _answer(text: str, state: State, console: Console) -> None:
    with _no_echo(), LiveAnswer(console) as shown, _on_interrupt(state.conversation.cancel):
        reply = state.ask(text, lambda piece: shown.add(piece.text), shown.encoding)
    if note := state.note(reply):
        console.print(note + (": /reset begins anew" if reply.end == "context" else ""), style="yellow")


@contextmanager
def _no_echo() -> Iterator[None]:
    """Keys pressed meanwhile are not shown: they would move the cursor where lines are drawn again."""
    if not sys.stdin.isatty():
        yield
        return
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    try:
        termios.tcsetattr(stdin, termios.TCSADRAIN, [*before[:3], before[3] & ~termios.ECHO, *before[4:]])
        yield
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


@contextmanager
def _on_interrupt(work: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C does this, and does not end the program."""

    def act(number: int, frame: FrameType | None) -> None:
        work()

    before = signal.signal(signal.SIGINT, act)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

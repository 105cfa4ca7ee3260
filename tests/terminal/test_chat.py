"""The chat in a real terminal (a pty) and through a pipe, and its commands."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from checkpoints.cache import CACHE
from checkpoints.errors import BadInput
from export.chat import main
from export.engine.conversation import Choosing, Conversation, open_conversation
from export.terminal.commands import COMMANDS, SETTABLE, Leave
from export.terminal.state import State
from export.terminal.talk import _answer, talk
from tests.terminal.printed import told
from tests.tools import need

FRANCE, PARIS = "What is the capital of France?", "The capital of France is Paris."
# Tokens come slowly, so that the keys of the test are pressed while an answer comes.
SLOW = """
import time
from export.engine.feeder import WheelFeeder
from export.chat import command
feed = WheelFeeder.feed
WheelFeeder.feed = lambda self, ids: (time.sleep(0.15), feed(self, ids))[1]
command()
"""


@pytest.fixture(scope="module")
def conversation(tiny_pte: Path) -> Iterator[Conversation]:
    with open_conversation(tiny_pte, engine="wheel") as opened:
        yield opened


@pytest.fixture
def state(conversation: Conversation) -> State:
    conversation.reset()
    return State(conversation, "tiny.pte", None, Choosing())


class Terminal:
    """A program on a pty, and what it has written since it was last asked."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (30, 100))

        def own_terminal() -> None:
            os.setsid()
            os.close(os.open(os.ttyname(slave), os.O_RDWR))  # Ctrl-C is a signal only in its own terminal

        self.process = subprocess.Popen(
            arguments, stdin=slave, stdout=slave, stderr=slave, env=environment, preexec_fn=own_terminal
        )
        os.close(slave)
        self.written = ""

    def until(self, words: str, seconds: float = 90) -> str:
        """What was written up to these words, without colours and movements of the cursor."""
        end = time.monotonic() + seconds
        while words not in self.written:
            ready, _, _ = select.select([self.master], [], [], 0.2)
            if ready:
                try:
                    data = os.read(self.master, 65536).decode(errors="replace")
                except OSError:  # the other end is closed
                    data = ""
                if "\x1b[6n" in data:  # where is the cursor?
                    self.type("\x1b[1;1R")
                self.written += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", data)
            assert time.monotonic() < end and self.process.poll() is None, f"no {words!r} in {self.written!r}"
        before, _, self.written = self.written.partition(words)
        return before

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())


def test_in_a_terminal(tiny_pte: Path, tmp_path: Path) -> None:
    try:
        import prompt_toolkit  # noqa: F401
    except ImportError:
        need("chat", ["prompt-toolkit"], "uv sync --extra")
    environment = os.environ | {CACHE: str(tmp_path), "TERM": "xterm-256color", "PYTHONPATH": os.getcwd()}
    terminal = Terminal([sys.executable, "-c", SLOW, str(tiny_pte), "--engine", "wheel"], environment)
    try:
        terminal.until("/help lists commands")
        terminal.until("context 0 of 256")
        terminal.type(f"{FRANCE}\r")
        terminal.until("The capital")
        terminal.until("tokens/s")
        terminal.type(f"{FRANCE}\r")
        terminal.until("The capital")  # streams: 1.5 s are still to come
        terminal.type("\x03")
        assert "^C" not in terminal.until("(stopped)"), (
            "echoed keys would move the cursor while lines are drawn again"
        )
        terminal.type("half a thought\x03")
        terminal.type("/stats\r")
        terminal.until("ended by cancelled")
        terminal.type("/reset\r")
        terminal.until("a new conversation")
        terminal.until("context 0 of 256")
        terminal.type("What is the capital\x1b\rof France?\r")  # Alt-Enter
        terminal.until("Paris")
        terminal.until("tokens/s")
        terminal.type("\x04")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)
    typed = (tmp_path / "chat_history").read_text()
    assert FRANCE in typed and "+What is the capital\n+of France?" in typed
    assert (tmp_path / "chat_history").stat().st_mode & 0o77 == 0, "what was typed is nobody else's business"


def test_a_pipe(tiny_pte: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "export.chat", str(tiny_pte), "--engine", "wheel"],
        input=f"{FRANCE}\n\nWhat is the capital of Italy?\n", capture_output=True, text=True, timeout=120,
        env=os.environ | {CACHE: str(tmp_path)},
    )  # fmt: skip
    assert (ran.stdout, ran.returncode) == (f"{PARIS}\nThe capital of Italy is Rome.\n", 0), ran.stderr
    assert ran.stderr == "" and not any(tmp_path.iterdir())


def test_a_pipe_is_told_of_cut_answers(
    state: State, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{FRANCE}\n"))
    talk(state.conversation, "tiny.pte", None, Choosing(max_tokens=2))
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("The capital\n", "(cut at max_tokens 2)\n")


def test_interrupts_end_the_answer_alone(state: State) -> None:
    feed, calls = state.conversation.feeder.feed, list[int]()

    def interrupted(ids: list[int]) -> object:
        calls.append(len(ids))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return feed(ids)

    console, before = Console(width=100, color_system=None), signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch, console.capture() as capture:
        patch.setattr(state.conversation.feeder, "feed", interrupted)
        _answer(FRANCE, state, console)
    shown = [line.rstrip() for line in capture.get().split("\n")]
    assert shown[-2] == "(stopped)" and PARIS.startswith(shown[0]) and shown[0]
    assert len(calls) == 3 and signal.getsignal(signal.SIGINT) is before
    assert [turn["content"] for turn in state.turns] == [FRANCE, shown[0]], "what was said is said"


def test_turns_follow_each_other(state: State) -> None:
    state.system = "Be brief."
    state.ask(FRANCE, lambda piece: None)
    state.ask("What is the capital of Italy?", lambda piece: None)
    assert [turn["role"] for turn in state.messages()] == ["system", "user", "assistant", "user", "assistant"]
    assert state.last is not None and state.last.fed_tokens < state.last.prompt_tokens - 10
    with pytest.raises(BadInput, match="the context is 256"):
        state.ask("word " * 300, lambda piece: None)
    assert len(state.turns) == 4, "a turn without an answer is forgotten"


def test_saved_and_loaded(state: State, tmp_path: Path) -> None:
    told("/system Be brief.", state)
    state.ask(FRANCE, lambda piece: None)
    assert "3 turns" in told(f"/save {tmp_path}/talk.json", state)
    messages = json.loads((tmp_path / "talk.json").read_text())
    assert messages == state.messages() and [message["role"] for message in messages] == [
        "system",
        "user",
        "assistant",
    ]
    other = State(state.conversation, "x", None, Choosing())
    assert "3 turns" in told(f"/load {tmp_path}/talk.json", other)
    assert (other.messages(), other.system) == (messages, "Be brief.")
    (tmp_path / "bad.json").write_text('[{"role": "user"}]')
    with pytest.raises(BadInput, match=r"bad.json: messages\[0\] must have a string 'content'"):
        told(f"/load {tmp_path}/bad.json", other)
    assert other.messages() == messages
    for command, words in [
        ("/load", "needs the name of a file"),
        ("/save /no/where/x", "/no/where/x cannot be written"),
    ]:
        with pytest.raises(BadInput, match=words):
            told(command, other)


def test_settings(state: State) -> None:
    told("/set temperature 0.7", state)
    told("/set max_tokens 5", state)
    told(r"/set stop \n\n", state)
    told("/set schema json", state)
    assert state.choosing == Choosing(temperature=0.7, max_tokens=5, stop=("\n\n",), schema="json")
    for name in ("temperature", "max_tokens", "stop", "schema"):
        told(f"/set {name} off", state)
    assert state.choosing == Choosing()
    listed = told("/set", state)
    assert all(name in listed for name in SETTABLE)
    for command, words in [
        ("/set temperature hot", "temperature 'hot' is no number"),
        ("/set temperature -1", "temperature -1.0 is not within 0 to 100"),
        ("/set heat 1", "there is no heat to set"),
        ("/set schema /no/file", "/no/file does not exist"),
        ("/nothing", "there is no /nothing, /help lists commands"),
    ]:
        with pytest.raises(BadInput, match=words):
            told(command, state)
    assert state.choosing == Choosing()


def test_other_commands(state: State) -> None:
    assert all(f"/{name}" in told("/help", state) for name in COMMANDS)
    assert "no system text" in told("/system", state)
    assert "[b]x[/b]" in told("/system [b]x[/b]", state)
    told("/system off", state)
    assert state.system is None
    state.ask(FRANCE, lambda piece: None)
    assert "ended by stop" in told("/stats", state)
    told("/reset", state)
    assert (state.turns, state.conversation.held) == ([], [])
    with pytest.raises(Leave):
        told("/exit", state)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--temperature", "-1"], "temperature -1.0 is not within"),
        (["--engine", "wheel", "--packed", "x"], "packed weights are kept by our engine only"),
        (["--context", "1"], "a context of 1 tokens is not within 2 to the 256"),
        (["--schema", "/no/file"], "/no/file does not exist"),
        (["--tokenizer", "/no/file"], "/no/file cannot be read"),
    ],
    ids=str,
)
def test_flags_that_cannot_be_used(flags: list[str], words: str, tiny_pte: Path) -> None:
    with pytest.raises(BadInput, match=words):
        main([str(tiny_pte), *flags])


def test_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    monkeypatch.delitem(sys.modules, "export.terminal.prompt", raising=False)
    with pytest.raises(BadInput, match="uv sync --extra chat"):
        import export.terminal.prompt  # noqa: F401

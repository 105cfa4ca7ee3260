"""Pictures and sound in the chat: what goes with which turn, in a terminal's commands and through a pipe."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from checkpoints.cache import CACHE
from checkpoints.errors import BadInput
from export.engine.conversation import Choosing, Conversation, Reply, open_conversation
from export.terminal.state import State
from export.terminal.talk import _answer, talk
from tests.terminal.printed import told
from tests.tools import need

need("media", [name for name in ("PIL", "soundfile", "soxr") if find_spec(name) is None], "uv sync --extra")

import soundfile  # noqa: E402
from PIL import Image  # noqa: E402

rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 255, (90, 120, 3), dtype=np.uint8)
SAMPLES = rng.normal(0, 0.1, 8000).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "my files"
    folder.mkdir()
    Image.fromarray(PIXELS).save(folder / "a b.png")
    Image.new("RGB", (9000, 4)).save(folder / "narrow.png")
    soundfile.write(folder / "q.wav", SAMPLES, 16000)
    (folder / "text.png").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def conversation(multimodal_pte: Path) -> Iterator[Conversation]:
    with open_conversation(multimodal_pte, engine="wheel") as opened:
        yield opened


@pytest.fixture
def state(conversation: Conversation) -> State:
    conversation.reset()
    return State(conversation, "multimodal.pte", None, Choosing(max_tokens=3))


def ask(state: State, text: str) -> Reply:
    return state.ask(text, lambda piece: None)


def expected(conversation: Conversation, *parts: dict[str, Any]) -> str:
    """The answer to one turn of parts, from nothing."""
    conversation.reset()
    return conversation.reply([{"role": "user", "content": list(parts)}], Choosing(max_tokens=3)).text


def test_turns_with_pictures_and_sound(state: State, files: Path) -> None:
    shown = told(f"/image {files}/a b.png", state)
    assert shown == "picture 1, <|image_1|>, goes with what you say next: a b.png\n"
    assert "1 attached" in state.status()
    first = ask(state, "What is it?")
    assert (first.mode, len(first.media)) == ("vision", 1) and "attached" not in state.status()
    shown = told("/stats", state)
    assert re.search(r"mode +vision ", shown), shown
    assert re.search(r"picture 1 +477 tokens, 2 crops, prepared in [0-9,]+ ms, encoded in [0-9,]+ ms", shown), shown
    second = ask(state, "And its colour?")
    assert second.fed_tokens < 40 and "encoded before" in told("/stats", state)
    told(f"/audio {files}/q.wav", state)
    third = ask(state, "")
    assert [one.kind for one in third.media] == ["image", "audio"] and third.mode == "vision"
    assert "picture 2, <|image_2|>" in told(f"/image {files}/a b.png", state)
    told("/reset", state)
    assert (state.turns, state.attached) == ([], [])
    assert ask(state, "Hello").mode == "text"
    told(f"/audio {files}/q.wav", state)
    fifth = ask(state, "What?")
    assert (fifth.mode, fifth.fed_tokens) == ("speech", fifth.prompt_tokens), "another adapter: all is fed anew"
    texts = [turn["content"] for turn in state.turns if turn["role"] == "user"]
    assert texts[0] == "Hello" and [part["type"] for part in texts[1]] == ["audio", "text"]


def test_names_of_files(state: State, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(files))
    escaped = str(files / "a b.png").replace(" ", "\\ ")
    for typed in ("~/a b.png", f"'{files}/a b.png'", f'"{files}/a b.png"', escaped):
        assert "goes with what you say next: a b.png" in told(f"/image {typed}", state)
    assert len(state.attached) == 4
    assert "no picture goes" in told("/image off", state) and not state.attached


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/image", "/image needs the name of a file"),
        ("/image /no/where.png", "/no/where.png does not exist or is not a file"),
        ("/audio /no/where 'x", "/no/where 'x does not exist or is not a file"),
        ("/image {}/text.png", "text.png is not a picture that is known here"),
        ("/audio {}/a b.png", "a b.png is no sound that is known here"),
        ("/image {}/narrow.png", "picture 1 is 9000 x 4 pixels: too narrow"),
    ],
)
def test_files_that_cannot_be_used(state: State, files: Path, command: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        told(command.format(files), state)
    assert not state.attached


def test_what_was_not_answered_can_be_asked_again(state: State, files: Path) -> None:
    told(f"/image {files}/a b.png", state)
    with pytest.raises(BadInput, match="the prompt says <|image_7|>"):
        ask(state, "What is <|image_7|>?")
    assert len(state.attached) == 1 and not state.turns
    feeder = state.conversation.feeder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeder, "picture", lambda pixels, on_part: (state.conversation.cancel(), on_part()))
        assert ask(state, "What?").end == "cancelled"
    assert len(state.attached) == 1 and not state.turns
    assert ask(state, "What is <|image_1|>?").mode == "vision" and not state.attached


def test_encoding_is_shown(state: State, files: Path) -> None:
    told(f"/image {files}/a b.png", state)
    console = Console(width=80, force_terminal=True, color_system=None, file=io.StringIO())
    _answer("What?", state, console)
    assert "encoding, 0 of 2" in console.file.getvalue()  # type: ignore[attr-defined]


def test_saved_and_loaded(state: State, files: Path, tmp_path: Path) -> None:
    told("/system Be brief.", state)
    told(f"/image {files}/a b.png", state)
    told(f"/audio {files}/q.wav", state)
    ask(state, "What?")
    fed = [token for token in state.conversation.held if token < 0]
    told(f"/save {tmp_path}/talk.json", state)
    parts = json.loads((tmp_path / "talk.json").read_text())[1]["content"]
    assert parts[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert parts[1]["input_audio"]["format"] == "wav" and parts[2] == {"type": "text", "text": "What?"}
    other = State(state.conversation, "x", None, Choosing(max_tokens=3))
    assert "3 turns" in told(f"/load {tmp_path}/talk.json", other)
    ask(other, "And?")
    assert [token for token in state.conversation.held if token < 0] == fed, "the same pixels and samples"
    told(f"/save {tmp_path}/again.json", other)
    assert json.loads((tmp_path / "again.json").read_text())[1]["content"] == parts
    for change, words in [
        ({"image_url": {"url": "https://a/b.png"}, "type": "image_url"}, "a picture elsewhere: only data URLs"),
        ({"image_url": {"url": "data:image/png;base64,?"}, "type": "image_url"}, "image_url that is not base64"),
        ({"input_audio": {"data": 1}, "type": "input_audio"}, "input_audio without its data"),
        ({"input_audio": "x", "type": "input_audio"}, "input_audio without its data"),
        ({"image_url": {"url": "data:image/png;base64,AAAA"}, "type": "image_url"}, "picture.png is not a picture"),
        ({"type": "video"}, "part 0 is .*video.* not a text, an image or an audio"),
    ]:
        (tmp_path / "bad.json").write_text(json.dumps([{"role": "user", "content": [change]}]))
        with pytest.raises(BadInput, match=words):
            told(f"/load {tmp_path}/bad.json", other)
    assert len(other.turns) == 4


def test_a_file_of_text_takes_neither(tiny_pte: Path, files: Path) -> None:
    with open_conversation(tiny_pte, engine="wheel") as opened:
        for command, kind in ((f"/image {files}/a b.png", "pictures"), (f"/audio {files}/q.wav", "sound")):
            with pytest.raises(BadInput, match=f"tiny.pte takes no {kind}"):
                told(command, State(opened, "tiny.pte", None, Choosing()))


def test_a_pipe(
    conversation: Conversation, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files go with the next line, which may be empty, or with the end of the input."""
    image = {"type": "image", "image": PIXELS}
    wanted = expected(conversation, image, {"type": "text", "text": "What is it?"}), expected(conversation, image)
    for lines, text in (
        (f"/image {files}/a b.png\nWhat is it?\n", wanted[0]),
        (f"\n/image {files}/a b.png", wanted[1]),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        talk(conversation, "multimodal.pte", None, Choosing(max_tokens=3))
        shown = capsys.readouterr()
        assert (shown.out, shown.err) == (f"{text}\n", "(cut at max_tokens 3)\n")


def test_a_pipe_with_a_file_that_is_none(multimodal_pte: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "export.chat", str(multimodal_pte), "--engine", "wheel"],
        input="/image /no/where.png\nWhat?\n", capture_output=True, text=True, timeout=120,
        env=os.environ | {CACHE: str(tmp_path)},
    )  # fmt: skip
    assert (ran.stdout, ran.returncode) == ("", 2)
    assert ran.stderr == "error: /no/where.png does not exist or is not a file\n"


def test_paths_are_completed(files: Path) -> None:
    if find_spec("prompt_toolkit") is None:
        need("chat", ["prompt-toolkit"], "uv sync --extra")
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    from export.terminal.prompt import _Completer

    def completed(text: str) -> list[str]:
        return [one.text for one in _Completer().get_completions(Document(text), CompleteEvent())]

    assert completed("/im") == ["/image"]
    assert completed(f"/image {files}/a") == [" b.png"]
    assert completed(f"/load {files}/q") == [".wav"]
    assert completed("/system /et") == []

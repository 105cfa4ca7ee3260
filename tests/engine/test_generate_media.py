"""export.generate with pictures and sound: the conversation's answers, in the order of the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints.errors import BadInput
from export.engine.conversation import Choosing, Conversation, open_conversation
from export.generate import generate, main
from tests.engine.native import need_compiler
from tests.tools import need

need("media", [name for name in ("PIL", "soundfile", "soxr") if find_spec(name) is None], "uv sync --extra")

import soundfile  # noqa: E402
from PIL import Image  # noqa: E402

from export.media.sound_files import Sound  # noqa: E402

ROOT = Path(__file__).parents[2]
rng = np.random.default_rng(0)
WIDE, SQUARE = (rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((300, 640), (90, 90)))
SAID = Sound((rng.integers(-9000, 9000, 24000) / 32768).astype(np.float32), 16000)
PARTS: dict[str, dict[str, Any]] = {
    "wide.png": {"type": "image", "image": WIDE},
    "square.png": {"type": "image", "image": SQUARE},
    "said.wav": {"type": "audio", "audio": SAID},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name in ("wide.png", "square.png"):
        Image.fromarray(PARTS[name]["image"]).save(folder / name)
    soundfile.write(folder / "said.wav", SAID.samples, SAID.rate)
    (folder / "bad.png").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def talk(multimodal_pte: Path) -> Iterator[Conversation]:
    with open_conversation(multimodal_pte, engine="wheel") as opened:
        yield opened


def flags(files: Path, *names: str) -> list[str]:
    return [word for name in names for word in (f"--{PARTS[name]['type']}", str(files / name))]


@pytest.mark.parametrize("engine", ["runner", "ours"])
@pytest.mark.parametrize(
    ("names", "prompt", "mode"),
    [
        (["wide.png"], "What?", "vision"),
        (["said.wav", "wide.png", "square.png"], "What?", "vision"),
        (["said.wav"], "Who says <|audio_1|>?", "speech"),
    ],
    ids=["picture", "order", "placed"],
)
def test_answers_are_the_conversations(
    names: list[str], prompt: str, mode: str, engine: str, talk: Conversation, multimodal_pte: Path, files: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if engine == "ours":
        need_compiler()
    content = [*(PARTS[name] for name in names), {"type": "text", "text": prompt}]
    messages = [{"role": "system", "content": "Hi."}, {"role": "user", "content": content}]
    wanted = talk.reply(messages, Choosing(max_tokens=4))
    given = [str(multimodal_pte), prompt, *flags(files, *names), "--max-new-tokens", "4", "--engine", engine]
    assert main([*given, "--system", "Hi.", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["text"], tuple(found["token_ids"])) == (wanted.text, wanted.token_ids)
    stats = found["stats"]
    assert (stats["prompt_tokens"], stats["mode"]) == (wanted.prompt_tokens, mode)
    assert [(one["kind"], one["number"], one["tokens"], one["parts"]) for one in stats["media"]] == [
        (one.kind, one.number, one.tokens, one.parts) for one in wanted.media
    ]
    assert all(one["encode_ms"] > 0 and not one["reused"] for one in stats["media"])
    assert stats["first_token_ms"] >= round(sum(one["encode_ms"] for one in stats["media"]))


def test_without_chat_template(talk: Conversation, multimodal_pte: Path, files: Path) -> None:
    raw = generate(
        multimodal_pte, "see <|image_1|>?", raw=True, max_new_tokens=4, media=[("image", files / "square.png")]
    )
    parts = [PARTS["square.png"], {"type": "text", "text": "see <|image_1|>?"}]
    assert raw.token_ids == talk.complete(parts, Choosing(max_tokens=4)).token_ids
    assert len(raw.token_ids) == 4 and not raw.ended


def test_the_prompt_may_come_last_or_not_at_all(
    multimodal_pte: Path, files: Path, talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["What?"], []):
        assert (
            main([str(multimodal_pte), *flags(files, "square.png"), *words, "--max-new-tokens", "3", "--json"]) == 0
        )
        content = [PARTS["square.png"], *({"type": "text", "text": word} for word in words)]
        wanted = talk.reply([{"role": "user", "content": content}], Choosing(max_tokens=3))
        found = json.loads(capsys.readouterr().out)
        assert (tuple(found["token_ids"]), found["stats"]["prompt_tokens"]) == (
            wanted.token_ids,
            wanted.prompt_tokens,
        )
    with pytest.raises(SystemExit) as left:
        main([str(multimodal_pte)])
    assert left.value.code == 2 and "arguments are required: prompt" in capsys.readouterr().err


def test_what_people_see(multimodal_pte: Path, files: Path) -> None:
    given = [str(multimodal_pte), "What?", *flags(files, "said.wav", "wide.png"), "--max-new-tokens", "2"]
    line = [sys.executable, "-m", "export.generate", *given]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = [re.sub(r"[0-9,.]+ (ms|MB|tokens/s)", r"N \1", one) for one in done.stderr.splitlines()]
    assert shown[:3] == [
        "sound 1   19 tokens, 1 piece, prepared in N ms, encoded in N ms",
        "picture 1 768 tokens, 3 crops, prepared in N ms, encoded in N ms",
        "prompt    794 tokens in mode vision, N tokens/s, first token after N ms",
    ]
    assert [one.split()[0] for one in shown[3:]] == ["answer", "loading", "memory"]


@pytest.mark.parametrize(
    ("media", "prompt", "words"),
    [
        ([("image", "no.png")], "?", "no.png does not exist or is not a file"),
        ([("image", "bad.png")], "?", "bad.png is not a picture that is known here"),
        ([("audio", "bad.png")], "?", "bad.png is no sound that is known here"),
        ([("image", "wide.png")], "see <|image_2|>", r"the prompt says <\|image_2\|>, 1 image is given"),
        ([("image", "wide.png")] * 6, "?", r"tokens \(6 pictures: 4608, text: 4\), the context is 4096: export"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(media: Any, prompt: str, words: str, multimodal_pte: Path, files: Path) -> None:
    for engine in ("runner", "ours"):
        with pytest.raises(BadInput, match=words):
            generate(multimodal_pte, prompt, media=[(kind, files / name) for kind, name in media], engine=engine)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_a_file_of_text(kind: str, tiny_pte: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, before anything is read; and needs nothing of the extra for what it does take."""
    for name in [name for name in sys.modules if name.startswith("export.media.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("PIL", "soundfile", "soxr"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BadInput, match=r"tiny.pte takes no (pictures|sound): it was exported without the modality"):
        main([str(tiny_pte), "What?", f"--{kind}", "/no/where"])
    assert generate(tiny_pte, "What is the capital of France?").text == "The capital of France is Paris."


@pytest.mark.parametrize(("name", "package"), [("wide.png", "PIL"), ("said.wav", "soundfile")])
def test_the_line_that_installs_it(
    name: str, package: str, multimodal_pte: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("export.media.picture_files", "export.media.sound_files"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadInput, match="uv sync --extra media"):
        main([str(multimodal_pte), "What?", *flags(files, name)])

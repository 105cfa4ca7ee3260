"""phi4mm-tiny, quantized as phones have it, answers right about pictures and clips that it was not trained on."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from checkpoints.source import resolve
from export.engine.conversation import open_conversation
from export.pte import export_pte
from tests.engine.native import need_compiler
from tests.tools import need

need("media", [name for name in ("PIL", "soundfile", "soxr") if find_spec(name) is None], "uv sync --extra")

EXAMPLES = resolve("phi4mm-tiny").folder / "examples"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phi4mm-tiny") / "phi4mm-tiny.pte"
    return export_pte("phi4mm-tiny", out=out, verify=False).path


@pytest.mark.parametrize("engine", ["ours", "wheel"])
def test_answers_are_right(engine: Any, file: Path) -> None:
    from export.media.picture_files import read_picture
    from export.media.sound_files import read_sound

    if engine == "ours":
        need_compiler()
    wrong = []
    with open_conversation(file, engine=engine) as talk:
        assert talk.media.audio is not None
        for example in json.loads((EXAMPLES / "examples.json").read_text())["examples"]:
            parts: list[dict[str, Any]] = [{"type": "text", "text": example["question"]}]
            if "audio" in example:
                parts.insert(0, {"type": "audio", "audio": read_sound(EXAMPLES / example["audio"], talk.media.audio)})
            if "image" in example:
                parts.insert(0, {"type": "image", "image": read_picture(EXAMPLES / example["image"])})
            reply = talk.reply([{"role": "user", "content": parts}])
            assert reply.mode == ("vision" if "image" in example else "speech")
            if reply.text != example["answer"]:
                wrong.append((example, reply.text))
    assert not wrong

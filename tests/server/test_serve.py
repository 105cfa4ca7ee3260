"""The door: what it refuses before it listens, and what its flags do."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from checkpoints.errors import BadInput
from export.serve import serve
from tests.server.running import HTTP, serving


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            {"host": "0.0.0.0"},
            "--host 0.0.0.0 lets other machines in, and all of them are answered without --api-key",
        ),
        ({"host": "::"}, "--host :: lets other machines in"),
        ({"host": "nowhere.invalid", "api_key": ["k"]}, "--host nowhere.invalid is no address of this machine"),
        ({"port": 70000}, "--port 70000 is not within 0 to 65535"),
        ({"parallel": 0}, "--parallel must be at least 1, it is 0"),
        ({"max_queue": -1}, "--max-queue -1 is below 0"),
        ({"api_key": [""]}, "--api-key must be printable ASCII"),
        ({"api_key": ["ö"]}, "--api-key must be printable ASCII"),
        ({"served_model_name": ["a", "b"], "port": 0}, "--served-model-name is given 2 times for 1 files"),
        ({"served_model_name": [""], "port": 0}, "the name of .*tiny.pte is empty"),
        ({"max_model_len": 513, "port": 0}, "a context of 513 tokens is not within 2 to the 512"),
        ({"engine": "wheel", "packed": "x", "port": 0}, "packed weights"),
    ],
)
def test_refusals(served_pte: Path, flags: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        serve([served_pte], **flags)


def test_files_that_are_none(served_pte: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.pte does not exist"):
        serve([tmp_path / "none.pte"])
    (tmp_path / "text.pte").write_text("no program, and longer than its head")
    with pytest.raises(BadInput, match=r"text\.pte is not an ExecuTorch program"):
        serve([served_pte, tmp_path / "text.pte"])
    with pytest.raises(BadInput, match="would both be called tiny: --served-model-name"):
        serve([served_pte, served_pte], port=0)


def test_a_port_in_use(served_pte: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = [sys.executable, "-m", "export.serve", str(served_pte), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: another program listens at 127.0.0.1:{port} already: --port takes another")


def test_two_models_and_a_shorter_context(served_pte: Path, packed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "other.pte"
    shutil.copytree(served_pte.parent, other.parent)
    (other.parent / "tiny.pte").rename(other)
    (other.parent / "tiny.json").unlink()
    with serving(served_pte, other, "--packed", packed, "--max-model-len", "40", "--engine", "ours") as server:
        models = list(server.client.models.list())
        assert [(model.id, model.max_model_len) for model in models] == [("tiny", 40), ("other", 40)]  # type: ignore[attr-defined]
        asked: Any = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
        for name in ("tiny", "other"):
            found = server.client.chat.completions.create(model=name, **asked)
            assert found.model == name and found.choices[0].message.content == "The capital of France is Paris."
        with pytest.raises(openai.BadRequestError, match="the prompt has 40 tokens, the context of other is 40"):
            server.client.completions.create(model="other", prompt=[65] * 40)
        unnamed = HTTP.post(f"{server.url}/v1/chat/completions", json=asked)
        assert unnamed.status_code == 400 and "it is one of tiny, other" in unnamed.json()["error"]["message"]


def test_the_wheels_runtime(served_pte: Path) -> None:
    """Where no C++ compiler is."""
    with serving(served_pte, "--engine", "wheel") as server:
        asked: Any = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
        found = server.client.chat.completions.create(model="tiny", **asked)
        assert found.choices[0].message.content == "The capital of France is Paris."

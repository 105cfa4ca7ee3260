"""resolve_file, with the real hub client in a process of its own against a small hub on the loopback interface."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoints.errors import BadInput
from export.engine.tokenizer import COMPANIONS, TOKENIZERS
from export.generate import generate
from export.ptefile.find import _beside, resolve_file
from tests.hub import COMMIT, READER, Hub, Repo, client_environment, serving

REPO = "someone/tiny-pte"
COMMAND = """
import sys
from checkpoints.errors import run
from export.ptefile.find import resolve_file
run(lambda names: print(resolve_file(names[0])), sys.argv[1:])
"""
QUESTION = "What is the capital of France?"


@pytest.fixture
def files(tiny_pte: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in tiny_pte.parent.iterdir()}
    return found | {"README.md": b"x", "model.safetensors": b"x", "quantized/config.json": b"{}"}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    with serving({REPO: Repo(files)}) as server:
        yield server


def ask(home: Path, name: str, endpoint: str = "http://127.0.0.1:9", **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMMAND, name]
    return subprocess.run(
        command, env=client_environment(home, endpoint, **env), capture_output=True, text=True, timeout=60
    )


def found(result: subprocess.CompletedProcess[str]) -> Path:
    assert result.returncode == 0, result.stderr
    return Path(result.stdout.strip())


def refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for part in parts:
        assert part in last


def test_download_run_and_offline(hub: Hub, tiny_pte: Path, tmp_path: Path) -> None:
    path = found(ask(tmp_path, f"hf:{REPO}", hub.endpoint))
    assert path.name == "tiny.pte" and COMMIT in path.parts
    assert {file.name for file in path.parent.iterdir()} == {file.name for file in tiny_pte.parent.iterdir()}
    assert generate(path, QUESTION).text == generate(tiny_pte, QUESTION).text

    hub.asked.clear()
    for name in (f"hf:{REPO}/tiny.pte", f"hf:{REPO}@{COMMIT}"):
        assert found(ask(tmp_path, name, hub.endpoint)) == path
    assert not [line for line in hub.asked if "/resolve/" in line]
    for name in (f"hf:{REPO}", f"hf:{REPO}@main/tiny.pte", f"hf:{REPO}@{COMMIT}"):
        assert found(ask(tmp_path, name)) == path
    refused(ask(tmp_path, f"hf:{REPO}@v2"), f"{REPO}@v2 is not in the local cache", "give a file that you have")


def test_a_command_takes_it(hub: Hub, tmp_path: Path) -> None:
    environment = client_environment(tmp_path, hub.endpoint)
    for door, *rest in (["inspect", "--json"], ["generate", QUESTION, "--json"]):
        command = [sys.executable, "-m", f"export.{door}", f"hf:{REPO}", *rest]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert "Paris" in told["text"] if door == "generate" else told["file"].endswith("tiny.pte")


def test_several_files_and_none(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.repos["someone/two"] = Repo({"a.pte": b"x", "b/c.pte": files["tiny.pte"], "b/tokenizer.json": b"{}"})
    refused(ask(tmp_path, "hf:someone/two", hub.endpoint), "a.pte, b/c.pte: name one, such as hf:someone/two/a.pte")
    refused(
        ask(tmp_path, "hf:someone/two/d.pte", hub.endpoint), "someone/two@main has no d.pte, it has a.pte, b/c.pte"
    )
    path = found(ask(tmp_path, "hf:someone/two/b/c.pte", hub.endpoint))
    assert sorted(file.name for file in path.parent.iterdir()) == ["c.pte", "tokenizer.json"]
    hub.repos["someone/none"] = Repo({"model.safetensors": b"x"})
    refused(ask(tmp_path, "hf:someone/none", hub.endpoint), "has no .pte", "export.pte --checkpoint someone/none")
    refused(ask(tmp_path, "hf:someone/none/x.bin", hub.endpoint), "x.bin does not end in .pte")


def test_the_hub_says_no(hub: Hub, tmp_path: Path) -> None:
    refused(ask(tmp_path, "hf:someone/else", hub.endpoint), "the hub has no someone/else@main, or it is private")
    refused(ask(tmp_path, f"hf:{REPO}@v9", hub.endpoint), f"the hub has no revision {REPO}@v9")
    hub.gated = True
    refused(ask(tmp_path, f"hf:{REPO}", hub.endpoint), f"{REPO}@main is gated", "hf auth login")
    hub.gated, hub.repos[REPO].private = False, True
    refused(ask(tmp_path, f"hf:{REPO}", hub.endpoint), "or it is private and you are not logged in")
    found(ask(tmp_path, f"hf:{REPO}", hub.endpoint, HF_TOKEN=READER))


def test_a_file_that_is_not_its_manifests(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    whole = files["tiny.pte"]
    path = found(ask(tmp_path, f"hf:{REPO}", hub.endpoint))
    path.resolve().write_bytes(whole[:-1] + b"\1")  # damaged in the cache
    refused(ask(tmp_path, f"hf:{REPO}", hub.endpoint), "was damaged", "run again")
    assert found(ask(tmp_path, f"hf:{REPO}", hub.endpoint)).read_bytes() == whole

    hub.repos[REPO].add("main", {"tiny.pte": whole + b"\0"})
    refused(ask(tmp_path, f"hf:{REPO}", hub.endpoint), "is not its manifest's", "must do so anew")
    manifest = json.loads(files["tiny.json"])
    manifest["file"]["sha256"] = "../../x"
    hub.repos[REPO].add("main", {"tiny.json": json.dumps(manifest).encode(), "more": b""})
    refused(ask(tmp_path, f"hf:{REPO}", hub.endpoint), "tiny.json", "file.sha256 is '../../x'")


def test_what_lies_beside_is_fetched() -> None:
    from fnmatch import fnmatch

    for name in (*TOKENIZERS, *COMPANIONS, "x.tiktoken", "file.json"):
        assert any(fnmatch(name, pattern) for pattern in _beside()), name


def test_names_on_this_disk(tmp_path: Path) -> None:
    assert resolve_file("some/where.pte") == Path("some/where.pte")
    assert resolve_file(tmp_path) == tmp_path
    for name in ("hf:", "hf:a", "hf:a/b@", "hf:a--b/c", "hf:a/b/../c.pte", "hf: a/b"):
        with pytest.raises(BadInput, match="is not of the form hf:USER/NAME"):
            resolve_file(name)

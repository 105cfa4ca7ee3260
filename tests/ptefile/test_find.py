"""resolve_file, with the real hub client against a small hub on the loopback interface."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from checkpoints.errors import BadInput
from checkpoints.files import folder_of, input_sha256
from export.bench.plan import make_plan
from export.engine.tokenizer import COMPANIONS, TOKENIZERS
from export.evaluate import evaluate
from export.generate import generate
from export.inspect import inspect
from export.ptefile.find import _beside, resolve_file
from export.verify import verify
from tests.hub import COMMIT, READER, Hub, Repo, client_environment, serving, use_hub

REPO = "someone/tiny-pte"
OFFLINE = "http://127.0.0.1:9"  # refuses connections
QUESTION = "What is the capital of France?"


@pytest.fixture
def files(tiny_pte: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in tiny_pte.parent.iterdir()}
    return found | {"README.md": b"x", "model.safetensors": b"x", "quantized/config.json": b"{}"}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    with serving({REPO: Repo(files)}) as server:
        yield server


Ask = Callable[..., Path]


@pytest.fixture
def ask(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """resolve_file with that hub, or another endpoint, and the client's cache in the test's folder."""

    def run(name: str, endpoint: str = hub.endpoint, token: str | None = None) -> Path:
        use_hub(monkeypatch, tmp_path, endpoint, token)
        return resolve_file(name)

    return run


def refused(ask: Ask, name: str, *parts: str, **how: str) -> None:
    with pytest.raises(BadInput) as problem:
        ask(name, **how)
    for part in parts:
        assert part in str(problem.value)


def test_download_run_and_offline(ask: Ask, hub: Hub, tiny_pte: Path) -> None:
    path = ask(f"hf:{REPO}")
    assert path.name == "tiny.pte" and COMMIT in path.parts
    assert {file.name for file in path.parent.iterdir()} == {file.name for file in tiny_pte.parent.iterdir()}
    assert generate(path, QUESTION).text == generate(tiny_pte, QUESTION).text

    hub.asked.clear()
    for name in (f"hf:{REPO}/tiny.pte", f"hf:{REPO}@{COMMIT}"):
        assert ask(name) == path
    assert not [line for line in hub.asked if "/resolve/" in line]
    for name in (f"hf:{REPO}", f"hf:{REPO}@main/tiny.pte", f"hf:{REPO}@{COMMIT}"):
        assert ask(name, OFFLINE) == path
    ways = "give a file that you have"
    refused(ask, f"hf:{REPO}@v2", f"{REPO}@v2 is not in the local cache", ways, endpoint=OFFLINE)


def test_a_command_takes_it(hub: Hub, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "export.generate", f"hf:{REPO}", QUESTION, "--json"]
    environment = client_environment(tmp_path, hub.endpoint)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Paris" in json.loads(done.stdout)["text"]
    command[3] = "hf:no one"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: 'hf:no one' is not of the form hf:USER/NAME")


def test_every_command_takes_it(ask: Ask, tiny_pte: Path) -> None:
    path = ask(f"hf:{REPO}")
    assert inspect(f"hf:{REPO}").path == path
    assert make_plan(pte=f"hf:{REPO}", prompt_tokens=[8]).tokenizer == path.parent / "tokenizer.json"
    assert verify(f"hf:{REPO}", "phi4-tiny", short=True).passed
    found = evaluate([f"hf:{REPO}", str(tiny_pte)], window=16, limit=1)
    assert found.models[0].quality == found.models[1].quality


def test_several_files_and_none(ask: Ask, hub: Hub, files: dict[str, bytes]) -> None:
    hub.repos["someone/two"] = Repo({"a.pte": b"x", "b/c.pte": files["tiny.pte"], "b/tokenizer.json": b"{}"})
    refused(ask, "hf:someone/two", "a.pte, b/c.pte: name one, such as hf:someone/two/a.pte")
    refused(ask, "hf:someone/two/d.pte", "someone/two@main has no d.pte, it has a.pte, b/c.pte")
    path = ask("hf:someone/two/b/c.pte")
    assert sorted(file.name for file in path.parent.iterdir()) == ["c.pte", "tokenizer.json"]
    hub.repos["someone/none"] = Repo({"model.safetensors": b"x"})
    refused(ask, "hf:someone/none", "has no .pte", "export.pte --checkpoint someone/none")
    refused(ask, "hf:someone/none/x.bin", "x.bin does not end in .pte")


def test_the_hub_says_no(ask: Ask, hub: Hub) -> None:
    refused(ask, "hf:someone/else", "the hub has no someone/else@main, or it is private")
    refused(ask, f"hf:{REPO}@v9", f"the hub has no revision {REPO}@v9")
    hub.gated = True
    refused(ask, f"hf:{REPO}", f"{REPO}@main is gated", "hf auth login")
    hub.gated, hub.repos[REPO].private = False, True
    refused(ask, f"hf:{REPO}", "or it is private and you are not logged in")
    assert ask(f"hf:{REPO}", token=READER).is_file()


def test_a_file_that_is_not_its_manifests(ask: Ask, hub: Hub, files: dict[str, bytes]) -> None:
    whole = files["tiny.pte"]
    path = ask(f"hf:{REPO}")
    path.resolve().write_bytes(whole[:-1] + b"\1")  # damaged in the cache
    refused(ask, f"hf:{REPO}", "was damaged", "run again")
    assert ask(f"hf:{REPO}").read_bytes() == whole

    hub.repos[REPO].add("main", {"tiny.pte": whole + b"\0"})
    refused(ask, f"hf:{REPO}", "is not its manifest's", "must do so anew")
    manifest = json.loads(files["tiny.json"])
    manifest["file"]["sha256"] = "../../x"
    hub.repos[REPO].add("main", {"tiny.json": json.dumps(manifest).encode(), "more": b""})
    refused(ask, f"hf:{REPO}", "tiny.json", "file.sha256 is '../../x'")


def test_neighbours_of_a_link(tmp_path: Path) -> None:
    """Both layouts of the hub's cache, and a link of a person's."""
    store, blobs, snapshot = (
        tmp_path / name for name in ("blobs/ab", "models--a--b/blobs", "models--a--b/snapshots/c")
    )
    for folder in (store, blobs, snapshot):
        folder.mkdir(parents=True)
    (store / ("ab" * 32)).write_bytes(b"x")
    (blobs / ("0" * 64)).symlink_to(Path("../../blobs/ab") / ("ab" * 32))
    (blobs / ("1" * 64)).write_bytes(b"y")
    for digest in ("0" * 64, "1" * 64):
        link = snapshot / f"{digest[0]}.pte"
        link.symlink_to(Path("../../blobs") / digest)
        assert link.is_file() and folder_of(link) == snapshot and input_sha256(link) == digest
    (tmp_path / "own.pte").symlink_to(store / ("ab" * 32))
    assert folder_of(tmp_path / "own.pte") == store


def test_what_lies_beside_is_fetched() -> None:
    for name in (*TOKENIZERS, *COMPANIONS, "x.tiktoken", "file.json"):
        assert any(fnmatch(name, pattern) for pattern in _beside()), name


def test_names_on_this_disk(tmp_path: Path) -> None:
    assert resolve_file("some/where.pte") == Path("some/where.pte")
    assert resolve_file(tmp_path) == tmp_path
    for name in ("hf:", "hf:a", "hf:a/b@", "hf:a--b/c", "hf:a/b/../c.pte", "hf: a/b"):
        with pytest.raises(BadInput, match="is not of the form hf:USER/NAME"):
            resolve_file(name)

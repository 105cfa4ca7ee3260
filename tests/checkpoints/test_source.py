"""resolve, with the real hub client in a process of its own against a small hub on the loopback interface."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import checkpoints
from checkpoints.errors import BadInput
from checkpoints.source import DEFAULT, MULTIMODAL, PINNED, resolve
from tests.hub import COMMIT, Hub, Repo, client_environment, serving

REPO = "someone/tiny"
COMMAND = """
import sys
from checkpoints.errors import run
from checkpoints.source import resolve

def main(argv):
    source = resolve(*argv)
    print(source.folder, source.name, source.revision, source.kind, sep="|")

run(main, [arg or None for arg in sys.argv[1:]])
"""


@pytest.fixture
def hub(tiny_folder: Path) -> Iterator[Hub]:
    files = {file.name: file.read_bytes() for file in tiny_folder.iterdir()}
    files |= {"LICENSE": b"MIT", "chat_template.jinja": b"{{ x }}"}
    files |= {
        "modeling_phi3.py": b"raise SystemExit",
        "pytorch_model.bin": b"\x80",
        "onnx/config.json": b"{}",
    }
    with serving({REPO: Repo(files), DEFAULT: Repo(files, PINNED[DEFAULT])}) as server:
        yield server


def ask(home: Path, *args: str, port: int = 9, **env: str) -> subprocess.CompletedProcess[str]:
    """Run resolve(*args) with a hub at `port` (9 refuses connections) and the client's cache under `home`."""
    command = [sys.executable, "-c", COMMAND, *args]
    clean = client_environment(home, f"http://127.0.0.1:{port}", **env)
    return subprocess.run(command, env=clean, capture_output=True, text=True, timeout=60)


def refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 2, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in last


def test_download_then_cache_then_offline(hub: Hub, tmp_path: Path) -> None:
    first = ask(tmp_path, REPO, port=hub.server_port)
    assert first.returncode == 0, first.stderr
    folder, name, revision, kind = first.stdout.strip().split("|")
    assert (name, revision, kind) == (REPO, COMMIT, "hub")
    found = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
    unwanted = ("modeling_phi3.py", "pytorch_model.bin", "onnx/config.json")
    assert found == {name: data for name, data in hub.repos[REPO].files.items() if name not in unwanted}
    assert not any(f"GET /{REPO}/resolve/{COMMIT}/{name}" in hub.asked for name in unwanted)

    hub.asked.clear()
    second = ask(tmp_path, REPO, port=hub.server_port)
    assert second.stdout == first.stdout
    assert not [line for line in hub.asked if "/resolve/" in line]

    for offline in (ask(tmp_path, REPO), ask(tmp_path, REPO, COMMIT, HF_HUB_OFFLINE="1")):
        assert (offline.returncode, offline.stdout) == (0, first.stdout)


def test_other_ways_to_write_a_hub_id(hub: Hub, tmp_path: Path) -> None:
    port = hub.server_port
    plain = ask(tmp_path, REPO, port=port).stdout
    for name in (f"hf:{REPO}", f"hf:{REPO}@{COMMIT}"):
        assert ask(tmp_path, name, port=port).stdout == plain
    files = hub.repos[REPO].files
    hub.repos["someone/kept"] = Repo({"README.md": b"x", **{f"quantized/{name}": files[name] for name in files}})
    found = ask(tmp_path, "hf:someone/kept/quantized", port=port)
    folder, name, revision, kind = found.stdout.strip().split("|")
    assert (name, revision, kind) == ("hf:someone/kept/quantized", COMMIT, "hub")
    assert Path(folder).name == "quantized" and Path(folder, "config.json").is_file()
    assert not Path(folder, "onnx").exists() and not Path(folder, "..", "README.md").exists()
    refused(ask(tmp_path, "hf:someone/kept/nowhere", port=port), "someone/kept@main has no checkpoint in a folder")
    refused(ask(tmp_path, f"hf:{REPO}@v1", "v2", port=port), "names the revision v1, --revision v2")
    refused(ask(tmp_path, f"hf:{REPO}/a.pte", port=port), "is a .pte, --checkpoint takes")
    refused(ask(tmp_path, "hf:nobody", port=port), "is not of the form hf:USER/NAME")


def test_the_default_is_asked_for_at_its_pin(hub: Hub, tmp_path: Path) -> None:
    result = ask(tmp_path, "", port=hub.server_port)
    assert result.stdout.strip().split("|")[1:] == [DEFAULT, PINNED[DEFAULT], "hub"]
    assert len(PINNED[DEFAULT]) == 40


def test_adapters_in_folders_are_fetched_for_the_model_that_has_them_there(hub: Hub, tmp_path: Path) -> None:
    folders = {
        "vision-lora/adapter_config.json": b"{}",
        "vision-lora/adapter_model.safetensors": b"A",
        "x/y.json": b"",
    }
    files = hub.repos[REPO].files | folders
    hub.repos[MULTIMODAL] = Repo(files, PINNED[MULTIMODAL])

    def fetched(home: Path) -> set[str]:
        result = ask(home, MULTIMODAL, port=hub.server_port)
        assert result.returncode == 0, result.stderr
        assert result.stdout.split("|")[2] == PINNED[MULTIMODAL]
        again = ask(home, MULTIMODAL)
        assert (again.returncode, again.stdout) == (0, result.stdout)
        folder = Path(result.stdout.split("|")[0])
        return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} & folders.keys()

    assert fetched(tmp_path / "phi3") == set()
    files["config.json"] = json.dumps({"model_type": "phi4mm"}).encode()
    assert fetched(tmp_path / "main") == set()  # they are in its shards
    files["config.json"] = json.dumps({"model_type": "phi4_multimodal"}).encode()
    assert fetched(tmp_path / "native") == folders.keys() - {"x/y.json"}
    refused(ask(tmp_path / "none", MULTIMODAL), f"{MULTIMODAL}@{PINNED[MULTIMODAL]} is not in the local cache")
    next((tmp_path / "native").rglob("vision-lora/adapter_model.safetensors")).unlink()
    refused(ask(tmp_path / "native", MULTIMODAL), f"{MULTIMODAL}@{PINNED[MULTIMODAL]} is only partly in the local")


def test_a_broken_connection_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    name = "model-00001-of-00003.safetensors"
    hub.repos[REPO].files[name] = os.urandom(24 << 20)  # the client keeps pieces of 10 MB
    hub.cut = {name}
    result = ask(tmp_path, REPO, port=hub.server_port)
    assert result.returncode == 0, result.stderr
    assert (Path(result.stdout.split("|")[0]) / name).read_bytes() == hub.repos[REPO].files[name]
    assert hub.ranges == [f"bytes={10 << 20}-"]


def test_a_partial_download_keeps_whole_files(hub: Hub, tmp_path: Path) -> None:
    name = "model-00003-of-00003.safetensors"
    del hub.repos[REPO].files[name]
    ask(tmp_path, REPO, port=hub.server_port)
    snapshot = next((tmp_path / "hub").glob("models--*/snapshots/*"))
    next((tmp_path / "hub").glob("models--*/trees/*")).unlink()
    (snapshot / "model-00002-of-00003.safetensors").resolve().unlink()
    hub.repos[REPO].files[name] = b"late"
    hub.asked.clear()
    assert ask(tmp_path, REPO, port=hub.server_port).returncode == 0
    fetched = sorted(line.rpartition("/")[2] for line in hub.asked if line.startswith(f"GET /{REPO}"))
    assert fetched == ["model-00002-of-00003.safetensors", name]
    (snapshot / name).unlink()
    refused(ask(tmp_path, REPO), f"{REPO}@main is only partly in the local cache")


def test_nothing_cached_and_no_network(tmp_path: Path) -> None:
    ways = ("--checkpoint DIR", "--checkpoint phi4-tiny")
    for result in (ask(tmp_path, ""), ask(tmp_path, "", HF_HUB_OFFLINE="1")):
        refused(result, f"{DEFAULT}@{PINNED[DEFAULT]} is not in the local cache", *ways)
        assert len(result.stderr.strip().splitlines()) == 1  # no retries were told of
        assert result.stdout == ""


def test_the_hub_says_no(hub: Hub, tmp_path: Path) -> None:
    port = hub.server_port
    refused(ask(tmp_path, "someone/else", port=port), "the hub has no someone/else@main", "--checkpoint phi4-tiny")
    refused(ask(tmp_path, REPO, "v9", port=port), f"the hub has no revision {REPO}@v9")
    hub.gated = True
    refused(ask(tmp_path, REPO, port=port), f"{REPO}@main is gated", "hf auth login")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "nowhere",
        "./nowhere/x",
        "a b/c",
        "/nowhere/at/all",
        "a/b/c",
        "a--b/c",
        "~x/y",
        "x" * 5000,
        "a\0/b",
    ],
)
def test_neither_a_folder_nor_a_hub_id(name: str) -> None:
    with pytest.raises(BadInput, match="is neither an existing folder nor a hub id"):
        resolve(name)


def test_local_folders(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = resolve(str(tiny))
    assert (source.folder, source.name, source.revision, source.kind) == (tiny, "tiny", None, "folder")
    monkeypatch.chdir(tiny.parent)
    (tiny.parent / REPO).mkdir(parents=True)
    assert resolve(REPO).kind == "folder"
    with pytest.raises(BadInput, match="is a file"):
        resolve(str(tiny / "config.json"))
    with pytest.raises(BadInput, match="revision main"):
        resolve(str(tiny), "main")


def test_embedded() -> None:
    source = resolve("phi4-tiny")
    assert (source.kind, source.revision) == ("embedded", None)
    assert source.folder == Path(checkpoints.__file__).parent / "phi4-tiny"

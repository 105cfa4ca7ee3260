"""resolve, with the real hub client in a process of its own against a small hub on the loopback interface."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import checkpoints
from checkpoints.errors import BadInput
from checkpoints.source import DEFAULT, MULTIMODAL, PINNED, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
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


class Hub(ThreadingHTTPServer):
    """The parts of the hub's interface that a download uses, for one repository."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.repos = {REPO: COMMIT, DEFAULT: PINNED[DEFAULT]}
        self.gated = False
        self.cut: set[str] = set()  # files of which the next download breaks off half way
        self.asked: list[str] = []
        self.ranges: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        api, _, rest = path.removeprefix("/api/models/").partition("/revision/")
        if rest:
            if api not in self.server.repos:
                return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            commit = self.server.repos[api]
            if rest not in ("main", commit):
                return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return self.answer(200, json.dumps({"id": api, "sha": commit}).encode())
        if "/tree/" in path:
            files = self.server.files.items()
            tree = [{"type": "file", "path": k, "size": len(v), "oid": git_id(v)} for k, v in files]
            return self.answer(200, json.dumps(tree).encode())
        _, _, rest = path.partition("/resolve/")
        commit, _, name = rest.partition("/")
        if self.server.gated:
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        data = self.server.files[name]
        self.answer(200, data, {"X-Repo-Commit": commit, "ETag": f'"{git_id(data)}"'}, name)

    def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None, name: str = "") -> None:
        start = 0
        if wanted := self.headers.get("Range"):
            self.server.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            status = 206
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if name in self.server.cut:
            self.server.cut.remove(name)
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        else:
            self.wfile.write(data[start:])


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def hub(tiny_folder: Path) -> Iterator[Hub]:
    files = {file.name: file.read_bytes() for file in tiny_folder.iterdir()}
    files |= {"LICENSE": b"MIT", "chat_template.jinja": b"{{ x }}"}
    files |= {
        "modeling_phi3.py": b"raise SystemExit",
        "pytorch_model.bin": b"\x80",
        "onnx/config.json": b"{}",
    }
    server = Hub(files)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def ask(home: Path, *args: str, port: int = 9, **env: str) -> subprocess.CompletedProcess[str]:
    """Run resolve(*args) with a hub at `port` (9 refuses connections) and the client's cache under `home`."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    clean |= {"HF_HOME": str(home), "HF_ENDPOINT": f"http://127.0.0.1:{port}", "NO_PROXY": "127.0.0.1"}
    clean |= {"HF_HUB_DISABLE_TELEMETRY": "1", "COLUMNS": "200"} | env
    command = [sys.executable, "-c", COMMAND, *args]
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
    assert found == {name: data for name, data in hub.files.items() if name not in unwanted}
    assert not any(f"GET /{REPO}/resolve/{COMMIT}/{name}" in hub.asked for name in unwanted)

    hub.asked.clear()
    second = ask(tmp_path, REPO, port=hub.server_port)
    assert second.stdout == first.stdout
    assert not [line for line in hub.asked if "/resolve/" in line]

    for offline in (ask(tmp_path, REPO), ask(tmp_path, REPO, COMMIT, HF_HUB_OFFLINE="1")):
        assert (offline.returncode, offline.stdout) == (0, first.stdout)


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
    hub.files |= folders
    hub.repos[MULTIMODAL] = PINNED[MULTIMODAL]

    def fetched(home: Path) -> set[str]:
        result = ask(home, MULTIMODAL, port=hub.server_port)
        assert result.returncode == 0, result.stderr
        assert result.stdout.split("|")[2] == PINNED[MULTIMODAL]
        again = ask(home, MULTIMODAL)
        assert (again.returncode, again.stdout) == (0, result.stdout)
        folder = Path(result.stdout.split("|")[0])
        return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} & folders.keys()

    assert fetched(tmp_path / "phi3") == set()
    hub.files["config.json"] = json.dumps({"model_type": "phi4mm"}).encode()
    assert fetched(tmp_path / "main") == set()  # they are in its shards
    hub.files["config.json"] = json.dumps({"model_type": "phi4_multimodal"}).encode()
    assert fetched(tmp_path / "native") == folders.keys() - {"x/y.json"}
    refused(ask(tmp_path / "none", MULTIMODAL), f"{MULTIMODAL}@{PINNED[MULTIMODAL]} is not in the local cache")
    next((tmp_path / "native").rglob("vision-lora/adapter_model.safetensors")).unlink()
    refused(ask(tmp_path / "native", MULTIMODAL), f"{MULTIMODAL}@{PINNED[MULTIMODAL]} is only partly in the local")


def test_a_broken_connection_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    name = "model-00001-of-00003.safetensors"
    hub.files[name] = os.urandom(24 << 20)  # the client keeps pieces of 10 MB
    hub.cut = {name}
    result = ask(tmp_path, REPO, port=hub.server_port)
    assert result.returncode == 0, result.stderr
    assert (Path(result.stdout.split("|")[0]) / name).read_bytes() == hub.files[name]
    assert hub.ranges == [f"bytes={10 << 20}-"]


def test_a_partial_download_keeps_whole_files(hub: Hub, tmp_path: Path) -> None:
    name = "model-00003-of-00003.safetensors"
    del hub.files[name]
    ask(tmp_path, REPO, port=hub.server_port)
    snapshot = next((tmp_path / "hub").glob("models--*/snapshots/*"))
    next((tmp_path / "hub").glob("models--*/trees/*")).unlink()
    (snapshot / "model-00002-of-00003.safetensors").resolve().unlink()
    hub.files[name] = b"late"
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

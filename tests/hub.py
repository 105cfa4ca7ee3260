"""A small hub on the loopback interface, as far as the real client's downloads and uploads use one."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import pytest
from huggingface_hub import ModelCard, constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".pte", ".safetensors")  # by LFS, as a new repository's .gitattributes say
WRITER, READER = "hf_writer", "hf_reader"  # tokens


@dataclass
class Repo:
    """One repository: branches, the files of each commit, and the large contents that were sent, committed or not."""

    files: dict[str, bytes] = field(default_factory=dict)  # of main
    commit: str = COMMIT
    private: bool = False

    def __post_init__(self) -> None:
        self.branches = {"main": self.commit}
        self.trees = {self.commit: self.files}
        self.stored: dict[str, bytes] = {}

    def tree(self, revision: str) -> dict[str, bytes]:
        return self.trees[self.branches.get(revision, revision)]

    def add(self, revision: str, files: Mapping[str, bytes], gone: Collection[str] = ()) -> str:
        """A commit on top of a branch."""
        tree = {name: data for name, data in (self.tree(revision) | files).items() if name not in gone}
        commit = hashlib.sha1(repr((self.branches, sorted(tree))).encode()).hexdigest()
        self.trees[commit], self.branches[revision] = tree, commit
        return commit


class Hub(ThreadingHTTPServer):
    """The repositories, what was asked for, and what is to go wrong."""

    daemon_threads = True

    def __init__(self, repos: dict[str, Repo]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos = repos
        self.gated = False
        self.cut: set[str] = set()  # files of which the next download breaks off half way
        self.stall: set[str] = set()  # sha256 of contents that are never taken; `stalled` is set when one is sent
        self.stalled = threading.Event()
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.sent: list[str] = []  # sha256 of the contents that were sent

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(repos: dict[str, Repo]) -> Iterator[Hub]:
    server = Hub(repos)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def client_environment(home: Path, endpoint: str = "http://127.0.0.1:9", **more: str) -> dict[str, str]:
    """For a process whose client asks this hub (port 9 refuses connections) and keeps its cache under `home`."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    clean |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    return clean | {"HF_HUB_DISABLE_TELEMETRY": "1", "COLUMNS": "200", "POCKETPHI_CACHE": str(home / "own")} | more


def use_hub(monkeypatch: pytest.MonkeyPatch, home: Path, endpoint: str, token: str | None = None) -> None:
    """The same for this process, whose client read its environment when it was imported."""
    for name, value in {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("POCKETPHI_CACHE", str(home / "own"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.server.asked.append(f"{self.command} {path}")
        if path.startswith("/api/models/"):
            name, kind, rest = self.parts(path.removeprefix("/api/models/"))
            if (repo := self.allowed(name)) is None:
                return
            if rest not in repo.branches and rest not in repo.trees:
                return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            if kind == "tree":
                return self.say([self.entry(path, data) for path, data in repo.tree(rest).items()])
            return self.say(self.info(name, repo, rest, "blobs" in parse_qs(query)))
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        commit, _, file = unquote(rest).partition("/")
        if (repo := self.allowed(name)) is None:
            return
        if self.server.gated:
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        data = repo.tree(commit)[file]
        headers = {"X-Repo-Commit": repo.branches.get(commit, commit), "ETag": f'"{git_id(data)}"'}
        if file.endswith(LARGE):
            headers |= {"X-Linked-ETag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
        self.answer(200, data, headers, file)

    def do_POST(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"POST {path}")
        body = self.body()
        if path == "/api/validate-yaml":
            ModelCard(json.loads(body)["content"])  # raises where the metadata cannot be read
            return self.say({"errors": [], "warnings": []})
        if not self.may_write():
            return
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            name = path.removeprefix("/").removesuffix(".git/info/lfs/objects/batch")
            return self.say({"objects": [self.place(name, item) for item in json.loads(body)["objects"]]})
        name, kind, rest = self.parts(path.removeprefix("/api/models/"))
        if (repo := self.allowed(name)) is None:
            return
        if kind == "branch":
            repo.branches[rest] = repo.branches["main"]
            return self.say({})
        tree = repo.tree(rest)
        if kind == "preupload":
            return self.say({"files": [self.mode(item["path"], tree) for item in json.loads(body)["files"]]})
        assert kind == "commit", path
        files, gone = dict[str, bytes](), set[str]()
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = repo.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                gone.add(value["path"])
            else:
                assert line["key"] == "header", line
        commit = repo.add(rest, files, gone)
        self.say({"commitUrl": f"{self.server.endpoint}/{name}/commit/{commit}", "commitOid": commit})

    def do_PUT(self) -> None:
        self.server.asked.append(f"PUT {self.path}")
        name, _, oid = self.path.removeprefix("/put/").rpartition("/")
        if oid in self.server.stall:
            self.server.stalled.set()
            threading.Event().wait(30)
        data = self.body()
        if sha256(data) != oid:
            return self.answer(400, b"another content than its sha256")
        self.server.sent.append(oid)
        self.server.repos[name].stored[oid] = data
        self.say({})

    # ---- parts of the answers

    def parts(self, rest: str) -> tuple[str, str, str]:
        """user/name, revision, main."""
        user, name, *kind = rest.split("/", 3)
        return f"{user}/{name}", *([unquote(part) for part in kind] + ["", "main"][len(kind) :])  # type: ignore[return-value]

    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def allowed(self, name: str) -> Repo | None:
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and self.token() not in (WRITER, READER)):
            self.answer(404 if self.token() else 401, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def may_write(self) -> bool:
        if self.token() == WRITER:
            return True
        if self.token() == READER:
            self.answer(403, b"", {"X-Error-Message": "you must use a write token"})
        else:
            self.answer(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        return False

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        url = json.dumps({"url": f"{self.server.endpoint}/{name}"}).encode()
        if name in self.server.repos:
            return self.answer(409, url)
        attributes = "".join(f"*{suffix} filter=lfs\n" for suffix in LARGE).encode()
        self.server.repos[name] = Repo({".gitattributes": attributes}, private=asked.get("visibility") == "private")
        self.answer(200, url)

    def place(self, name: str, item: dict[str, Any]) -> dict[str, Any]:
        if item["oid"] in self.server.repos[name].stored:
            return item
        return item | {"actions": {"upload": {"href": f"{self.server.endpoint}/put/{name}/{item['oid']}"}}}

    def mode(self, path: str, tree: Mapping[str, bytes]) -> dict[str, Any]:
        large, data = path.endswith(LARGE), tree.get(path)
        oid = None if data is None else sha256(data) if large else git_id(data)
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def entry(self, path: str, data: bytes) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_id(data)}
        if path.endswith(LARGE):
            found["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 130}
        return found

    def info(self, name: str, repo: Repo, revision: str, blobs: bool) -> dict[str, Any]:
        tree, siblings = repo.tree(revision), []
        for path, data in tree.items():
            sibling: dict[str, Any] = {"rfilename": path}
            if blobs:
                sibling |= {"size": len(data), "blobId": git_id(data)}
                if path.endswith(LARGE):
                    sibling["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 130}
            siblings.append(sibling)
        commit = repo.branches.get(revision, revision)
        found: dict[str, Any] = {"id": name, "sha": commit, "private": repo.private, "siblings": siblings}
        if "README.md" in tree:
            found["cardData"] = ModelCard(tree["README.md"].decode(), ignore_metadata_errors=True).data.to_dict()
        return found

    # ---- bytes

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def say(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

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

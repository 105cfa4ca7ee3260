"""Phones to plug in, an adb server of this worker's own, files to measure, and the command to measure them with."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from checkpoints.errors import run
from export.bench.command import main
from tests.phone.device import Phone, adb, missing_tools
from tests.tools import need

ROOT = Path(__file__).parents[2]
QUICK = ["--prompt-tokens", "16,24", "--new-tokens", "8", "--repeats", "2", "--warmups", "1", "--cooldown", "0"]


@dataclass(frozen=True)
class Ran:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="session")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A server that no other worker and no phone of the developer's is connected to."""
    need("phone", missing_tools())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
        home = {"HOME": str(tmp_path_factory.mktemp("home"))}  # where the server makes its key
        subprocess.run(["adb", "start-server"], env=os.environ | home, check=True, capture_output=True)
        yield
        adb("kill-server")


@pytest.fixture
def new_phone(adb_server: None, tmp_path: Path) -> Iterator[Callable[..., Phone]]:
    """Makes phones, with the app installed, that are gone after the test."""
    phones: list[Phone] = []

    def make(**options: Any) -> Phone:
        phones.append(Phone(tmp_path / f"phone{len(phones)}", **options))
        phones[-1].install()
        return phones[-1]

    yield make
    for phone in phones:
        phone.close()


@pytest.fixture
def phone(new_phone: Callable[..., Phone]) -> Phone:
    return new_phone()


@pytest.fixture
def pte(tmp_path: Path) -> Path:
    """Begins like a program and is none: what happens on the phone is the stand-in's business. Tokenizer beside."""
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copyfile(ROOT / "checkpoints/phi4-tiny/tokenizer.json", folder / "tokenizer.json")
    path = folder / "model.pte"
    path.write_bytes(b"\x1c\0\0\0ET12" + os.urandom(1 << 20))
    return path


@pytest.fixture
def bench(pte: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`python -m export.bench android`, quick, into tmp_path/out."""

    def call(*arguments: object, kind: str = "android", file: Path = pte) -> Ran:
        line = [kind, "--pte", str(file), *QUICK, "--out", str(tmp_path / "out"), *map(str, arguments)]
        with pytest.raises(SystemExit) as ended:
            run(main, line)
        out, err = capfd.readouterr()
        return Ran(int(ended.value.code or 0), out, err)

    return call


def start(*arguments: object, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """The command as a process, for what cannot be done to a function."""
    line = [sys.executable, "-m", "export.bench", *map(str, arguments)]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)

"""The C++ engine in a program of its own: under the sanitizers, and on a phone's CPU."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import distribution, version
from pathlib import Path

import pytest

from checkpoints.cache import cached_folder
from export.engine.native import CPP as ENGINE
from export.engine.session import Session
from export.verification.arm64.toolchain import command, link, missing
from tests.engine.native import greedy, need_cmake, only
from tests.tools import need

CPP = Path(__file__).parent / "cpp"


def driver(sanitizers: str) -> Path:
    """The folder of the driver with these sanitizers, compiled unless it is in the cache."""
    packages = Path(str(distribution("executorch").locate_file("")))

    def build(folder: Path) -> None:
        command = ["cmake", "-S", str(CPP), "-B", str(folder), "-G", "Ninja", f"-DPOCKETPHI_SANITIZE={sanitizers}"]
        command += [
            f"-Dexecutorch_DIR={packages}/executorch/share/cmake",
            f"-DTORCH_INCLUDE={packages}/torch/include",
        ]
        for line in (command, ["ninja", "-C", str(folder), "-j", "2"]):
            made = subprocess.run(line, capture_output=True, text=True)
            assert made.returncode == 0, made.stdout + made.stderr

    name = f"engine-{sanitizers.replace(',', '-')}-{version('executorch')}"
    return cached_folder(name, [str(packages).encode(), *driver_parts()], build)


def driver_parts() -> list[bytes]:
    """What a driver is made from."""
    files = [path for folder in (CPP, ENGINE) for path in sorted(folder.iterdir()) if path.is_file()]
    return [path.read_bytes() for path in files]


def watched(build: Path) -> dict[str, str]:
    """The environment of a driver with sanitizers."""
    # ThreadSanitizer sees no atomics in libraries that were compiled without it, and takes their work for races.
    return {"LD_LIBRARY_PATH": str(build), "TSAN_OPTIONS": "ignore_noninstrumented_modules=1"}


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_no_sanitizer_complains(sanitizers: str, tiny_pte: Path, tmp_path: Path) -> None:
    need_cmake()
    build = driver(sanitizers)
    run_driver([str(build / "driver")], tiny_pte, tmp_path, watched(build))


@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76"])
def test_emulated_arm64_answers_alike(cpu: str, tiny_pte: Path, tmp_path: Path) -> None:
    need("arm64", missing())
    define = f'-DPOCKETPHI_EXECUTORCH_VERSION="{version("executorch")}"'
    sources = [define, "-ffp-contract=off", f"-I{ENGINE}", *sorted(ENGINE.glob("*.cpp")), CPP / "driver.cpp"]
    name = f"engine-arm64-{version('executorch')}"
    build = cached_folder(name, driver_parts(), lambda folder: link(folder / "driver", *sources))
    run_driver(command(cpu, build / "driver"), tiny_pte, tmp_path, {})
    assert "-arm64_" in only(tmp_path / "alone", ".packed").name


def run_driver(start: list[str], model: Path, folder: Path, environment: dict[str, str]) -> None:
    """Both ways of driver.cpp, and the answer it prints: that of the Python runtime on this machine."""
    for mode in ("alone", "together"):
        line = [*start, mode, str(model), str(folder / mode), str(folder / "session")]
        ran = subprocess.run(line, capture_output=True, text=True, env=os.environ | environment)
        assert ran.returncode == 0, ran.stderr[-4000:]
        if mode == "alone":
            prompt = [72, 101, 108, 108, 111, 32, 119, 111, 114]
            assert [int(word) for word in ran.stdout.split()] == greedy(Session(model), prompt, 4)

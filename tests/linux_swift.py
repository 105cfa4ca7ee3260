"""Linux Swift in the trixie folder of tests/install_tools, with the iOS app's package and the engine built there.

The package's tests and programs find the wheel's libraries, and stubs for what those want of torch and Python.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from importlib.metadata import distribution, version
from pathlib import Path

import pytest

from export.engine.native import FLAGS
from tests.tools import need

ROOT = Path(__file__).parents[1]
APP = ROOT / "ios_app"
TRIXIE = Path(os.environ.get("POCKETPHI_TRIXIE", "/var/cache/pocketphi/trixie"))
# Checked-out folders must not share what was built of them.
INSIDE = Path("/var/tmp", "pocketphi-ios-" + hashlib.sha256(str(ROOT).encode()).hexdigest()[:12])
PLACE = TRIXIE / INSIDE.relative_to("/")
BUILD = INSIDE / "build"
CORE = "ios_app/BenchmarkCore"
ENGINE = "export/engine/cpp"
STUBS = (ROOT / "export/verification/arm64/torch_stub.cpp", ROOT / "tests/engine/swift/python_stub.cpp")
SITE = Path(str(distribution("executorch").locate_file("")))
PACKAGES = INSIDE / "packages"  # SITE, in the trixie folder
WHEEL = PACKAGES / "executorch"
PARTS = (WHEEL / "lib", WHEEL / "extension/llm/custom_ops", WHEEL / "extension/llm/runner")
LIBRARIES = ("", "_kernels_optimized", "_kernels_quantized", "_backend_xnnpack", "_threadpool")  # of libexecutorch
# What executorch.xcframework carries of the C++ headers, by upstream's scripts/build_apple_frameworks.sh: those of
# extension/module and extension/tensor and all that their targets export, which lies in runtime.
CARRIED = ("extension/module", "extension/tensor", "runtime")
C10 = "runtime/core/portable_type/c10"  # its folders lie beside `executorch` there


def inside(command: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in the trixie folder; what is mounted for it goes with its mount namespace."""
    enter = (
        'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && mount --bind -o ro "$2" "$0$3" && '
        'exec chroot "$0" /usr/bin/env -i HOME=/root LC_ALL=C.UTF-8 PATH=/usr/bin:/bin:/usr/libexec/swift/bin '
        f'LD_LIBRARY_PATH={INSIDE}/engine:{":".join(map(str, PARTS))} bash -c "$1"'
    )
    line = ["bash", "-c", enter, str(TRIXIE), command, str(SITE), str(PACKAGES)]
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", *line],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, check=False,
    )  # fmt: skip


def passes(command: str) -> str:
    done = inside(command)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def mirror(source: Path, target: Path) -> None:
    """Make `target` hold what `source` holds; unchanged files keep their times, so that nothing is built twice."""

    def files(folder: Path) -> set[Path]:
        return {path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or path.is_file()}

    wanted = files(source)
    for name in files(target) - wanted:
        (target / name).unlink()
    for name in wanted:
        old, new = target / name, source / name
        same = old.is_symlink() == new.is_symlink() and (
            (old.is_symlink() and old.readlink() == new.readlink())
            or (old.is_file() and new.is_file() and old.read_bytes() == new.read_bytes())
        )
        if not same:
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            old.unlink(missing_ok=True)
            old.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(new, old, follow_symlinks=False)


@pytest.fixture(scope="session")
def built() -> str:
    """The core and its tests, built with warnings as errors; the compiler's output."""
    missing = [] if (TRIXIE / "usr/libexec/swift/bin/swift").exists() else ["Swift"]
    need("swift", [*missing, *([] if os.geteuid() == 0 else ["root"])])
    (PLACE / "packages").mkdir(parents=True, exist_ok=True)
    with (PLACE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest -n
        mirror(ROOT / "export/bench/contract", PLACE / "export/bench/contract")  # what a link in the core leads to
        mirror(APP, PLACE / "ios_app")
        build_engine()
        return passes(
            f"cd {INSIDE}/{CORE} && swift build --scratch-path {BUILD} --build-tests -Xswiftc -warnings-as-errors "
            f"-Xlinker -L{INSIDE}/engine -Xlinker -lpocketphi -Xlinker --allow-shlib-undefined"
        )


def build_engine() -> None:
    """The engine and its tokenizer as a library: an iPhone's headers, the wheel's code."""
    mirror(ROOT / ENGINE, PLACE / ENGINE)
    include = SITE / "executorch/include/executorch"
    for name in CARRIED:
        mirror(include / name, PLACE / "headers/executorch" / name)
    for name in ("c10", "torch"):
        mirror(include / C10 / name, PLACE / "headers" / name)
    files = [path for name in (ENGINE, "headers", "ios_app/Headers") for path in (PLACE / name).rglob("*")]
    made_of = hashlib.sha256(Path(__file__).read_bytes())
    for path in (*sorted(files), *STUBS):
        made_of.update(path.read_bytes() if path.is_file() else b"")
    folder = PLACE / "engine"
    if (folder / "made_of").is_file() and (folder / "made_of").read_text() == made_of.hexdigest():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for stub in STUBS:
        shutil.copyfile(stub, folder / stub.name)
    torch = f"-isystem {PACKAGES}/torch/include -isystem {PACKAGES}/torch/include/torch/csrc/api/include"
    (binding,) = (SITE / "executorch/extension/pybindings").glob("_C.*.so")
    includes = f"-isystem {INSIDE}/headers -isystem {INSIDE}/ios_app/Headers -I{INSIDE}/{ENGINE}"
    release = f"-DPOCKETPHI_EXECUTORCH_VERSION='\"{version('executorch')}\"'"
    lazy = "-Wl,--no-as-needed,--allow-shlib-undefined,-z,lazy"
    linked = " ".join([f"-lexecutorch{part}" for part in LIBRARIES] + [f"{part}/*.so" for part in PARTS[1:]])
    sources = f"{INSIDE}/{ENGINE}/*.cpp {INSIDE}/{ENGINE}/tokenizer/*.cpp"
    others = f"libtorch_cpu.so libtorch_python.so libc10.so {binding.name}"
    passes(
        f"cd {INSIDE}/engine && clang++ -std=c++20 -w -shared -fPIC {torch} *_stub.cpp -o libtorch.so && "
        f"for name in {others}; do ln -s libtorch.so $name; done && "
        f"clang++ {' '.join(FLAGS)} -DC10_USING_CUSTOM_GENERATED_MACROS {release} {includes} "
        f"{sources} -shared -o libpocketphi.so {lazy} -L{PARTS[0]} {linked}"
    )
    (folder / "made_of").write_text(made_of.hexdigest())


def swift_test(which: str, environment: str = "") -> int:
    """How many tests of a target passed; none may have been left out."""
    output = passes(
        f"cd {INSIDE}/{CORE} && {environment} swift test --scratch-path {BUILD} --skip-build --filter {which} 2>&1"
    )
    found = re.search(r"Test run with (\d+) tests passed", output)
    wrong = [line for line in output.splitlines() if "✘" in line]
    assert found and "skipped" not in output, "\n".join(wrong) or output[-3000:]
    return int(found[1])

"""What runs arm64 code here: qemu-user, executorch's aarch64 wheel, and our C++ runner between them.

`tests/install_tools arm64` brings qemu, a cross compiler and the unpacked wheel, of the version installed here. The
runner is compiled on first use and kept in a cache. Knows nothing of what the runner is told.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import distribution, version
from pathlib import Path

from checkpoints.cache import CACHE, cached_folder
from checkpoints.errors import BadInput
from export.engine.compiler import run_compiler

SYSTEM = "/var/cache/pocketphi"  # where the wheel is unless CACHE says otherwise
COMPILER = "aarch64-linux-gnu-g++"
HERE = Path(__file__).parent
# In executorch 1.5.1 the operators of attention come in a library that also wants torch and the Python binding: by
# these names it finds our stub. Wheels have no headers of some parts and no CMake package, so flags are spelled out.
STUB = ("libtorch.so", "libtorch_cpu.so", "libc10.so", "_C.cpython-311-aarch64-linux-gnu.so")
LIBRARIES = ("", "_kernels_optimized", "_kernels_quantized", "_backend_xnnpack", "_threadpool")  # of libexecutorch
DEFINES = ("-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED")


def missing() -> list[str]:
    """What `tests/install_tools arm64` would bring and is not here."""
    found = {"qemu-aarch64": _qemu(), COMPILER: shutil.which(COMPILER), str(_wheel()): _wheel().is_dir()}
    return [name for name, there in found.items() if not there]


def check_cpus(cpus: Sequence[str]) -> None:
    """Raise BadInput unless qemu emulates each of these CPUs and all that `command` needs is here."""
    if absent := missing():
        raise BadInput(f"emulating arm64 needs {', '.join(absent)}: run tests/install_tools arm64")
    listed = subprocess.run([_qemu(), "-cpu", "help"], capture_output=True, text=True).stdout
    known = [line.split()[0] for line in listed.splitlines() if line.startswith(" ")]
    for cpu in cpus:
        if cpu not in known:
            raise BadInput(f"--cpu {cpu or '(empty)'} is none of the CPUs that qemu emulates: {', '.join(known)}")


def command(cpu: str, program: Path | None = None) -> list[str]:
    """How to start run.cpp, or another program that `link` made, on a CPU that `check_cpus` accepts.

    What the program is told is still to be added.
    """
    runner = _runner()
    libc = Path(_compile("-print-file-name=libc.so.6").strip()).resolve()
    found = ":".join(map(str, (runner, *_library_folders())))
    qemu = [_qemu(), "-cpu", cpu, "-L", str(libc.parent.parent), "-E", f"LD_LIBRARY_PATH={found}"]
    return [*qemu, str(program or runner / "run")]


def link(out: Path, *sources: str | Path) -> None:
    """Compile a program against the wheel; `sources` may have flags among them."""
    executorch = Path(str(distribution("executorch").locate_file("executorch/include")))
    includes = [f"-I{executorch}", f"-I{executorch}/executorch/runtime/core/portable_type/c10"]
    libraries = [f"-L{place}" for place in _library_folders()] + [f"-lexecutorch{part}" for part in LIBRARIES]
    lazy = "-Wl,--no-as-needed,--allow-shlib-undefined,-z,lazy"
    _compile("-std=c++17", *DEFINES, *includes, *sources, "-o", out, lazy, *libraries, "-lcustom_ops_aot_lib")


def _qemu() -> str:
    return shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64") or ""


def _wheel() -> Path:
    return Path(os.environ.get(CACHE) or SYSTEM, f"executorch-{version('executorch')}-aarch64")


def _library_folders() -> tuple[Path, Path]:
    package = _wheel() / "executorch"
    return package / "lib", package / "extension" / "llm" / "custom_ops"


def _runner() -> Path:
    """The folder of `run` and the stub: compiled here unless it is there, or another process is at it."""
    parts = [(HERE / name).read_bytes() for name in ("run.cpp", "torch_stub.cpp", "toolchain.py")]
    return cached_folder(f"arm64-runner-{version('executorch')}", [version("torch").encode(), *parts], _build)


def _build(folder: Path) -> None:
    torch = Path(str(distribution("torch").locate_file("torch/include")))
    includes = [f"-I{torch}", f"-I{torch}/torch/csrc/api/include"]
    first, *others = STUB
    _compile("-std=c++20", "-shared", "-fPIC", *includes, HERE / "torch_stub.cpp", "-o", folder / first)
    for name in others:
        (folder / name).symlink_to(first)
    link(folder / "run", HERE / "run.cpp")


def _compile(*arguments: str | Path) -> str:
    return run_compiler(COMPILER, "-O1", "-w", *arguments)

"""The code is formatted, linted and typed as pyproject.toml says, the C++ linted as .clang-tidy says."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distribution
from os import cpu_count
from pathlib import Path

import pytest

from export.engine.native import CPP, compile_flags
from tests.engine.native import need_compiler

ROOT = Path(__file__).parents[1]
TIDY = Path(sys.executable).parent / "clang-tidy"


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ids=["lint", "format", "types"],
)
def test_clean(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def tidy(source: Path) -> str:
    """What clang-tidy finds in a source and our headers; empty where it finds nothing."""
    line = [
        str(TIDY),
        "--quiet",
        str(source),
        "--",
        *compile_flags(),
        *(f"-I{CPP}{part}" for part in ("", "/tokenizer")),
    ]
    line += [f"-isystem{distribution('pytorch_tokenizers').locate_file('pytorch_tokenizers/include')}"]
    if javac := shutil.which("javac"):
        include = Path(javac).resolve().parents[1] / "include"
        line += [f"-isystem{include}", f"-isystem{include}/linux"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_cpp_is_tidy(tmp_path: Path) -> None:
    need_compiler()  # for the headers of its standard library
    broken = tmp_path / "broken.cpp"
    broken.write_text("int main() { int* lost = new int(1); delete lost; return *lost; }\n")
    (tmp_path / ".clang-tidy").write_text((ROOT / ".clang-tidy").read_text())
    with ThreadPoolExecutor(cpu_count()) as pool:
        sources = [path for path in sorted(CPP.rglob("*.cpp")) if path.name != "jni.cpp" or shutil.which("javac")]
        found = list(pool.map(tidy, [broken, *sources]))
    assert "clang-analyzer-cplusplus.NewDelete" in found[0], found[0]
    assert not any(found[1:]), "\n".join(found[1:])

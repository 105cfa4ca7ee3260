"""The Android app's way to the C++ engine: JNI, on this machine's Java virtual machine with the real engine.

NativeEngineChecks.kt does the asking, with pictures and sound MediaEngineChecks.kt, under -Xcheck:jni; what must come
out is `export.generate`'s, or the wheel's runtime's. Also the way into ExecuTorch's build for Android, with a
stand-in for that build.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from importlib.metadata import distribution, version
from pathlib import Path

from checkpoints.cache import cached_folder
from export.engine.generation import Request, answer
from export.engine.native import CPP
from tests.engine.media_turns import make_turns
from tests.engine.native import need_cmake
from tests.tools import need

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent / "jni"
PACKAGES = Path(str(distribution("executorch").locate_file("")))
CHECKS = 13
MEDIA_CHECKS = 7


def need_java() -> None:
    need_cmake()
    need("android", [tool for tool in ("mvn", "javac", "aapt2") if shutil.which(tool) is None])


def build(source: Path, name: str, *defines: str) -> Path:
    """The folder of a CMake project, built unless it is in the cache."""
    files = sorted(path for folder in (source, CPP) for path in folder.rglob("*") if path.is_file())

    def make(folder: Path) -> None:
        configure = ["cmake", "-S", str(source), "-B", str(folder), "-G", "Ninja", *defines]
        jdk = Path(str(shutil.which("javac"))).resolve().parents[1] / "include"
        headers = {"CXXFLAGS": f"-isystem{jdk} -isystem{jdk}/linux"}
        for line in (configure, ["ninja", "-C", str(folder), "-j", "2"]):
            made = subprocess.run(line, capture_output=True, text=True, env=os.environ | headers)
            assert made.returncode == 0, made.stdout + made.stderr

    return cached_folder(name, [str(PACKAGES).encode(), *(path.read_bytes() for path in files)], make)


def library() -> Path:
    python = Path(str(sysconfig.get_config_var("LIBDIR")), str(sysconfig.get_config_var("INSTSONAME")))
    defines = [f"-Dexecutorch_DIR={PACKAGES}/executorch/share/cmake", f"-DTORCH_LIB={PACKAGES}/torch/lib"]
    need("phone", [] if python.is_file() else [f"Python's own library {python}"])
    return build(HERE, f"jni-{version('executorch')}", *defines, f"-DPYTHON={python}") / "libpocketphi_jni.so"


def classes(folder: Path) -> str:
    """A class path with the app's classes and the tests'."""
    pom = str(ROOT / "android_app/verify/pom.xml")
    command = ["mvn", "-B", "-ntp", "-f", pom, f"-Dout={folder}", "test-compile", "dependency:build-classpath"]
    done = subprocess.run([*command, f"-Dmdep.outputFile={folder}/path"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    jars = [jar for jar in (folder / "path").read_text().split(":") if Path(jar).name.startswith(JARS)]
    return ":".join([f"{folder}/classes", f"{folder}/test-classes", *jars])


JARS = ("junit-", "hamcrest-core-", "kotlin-stdlib-")


def test_the_real_engine_answers_a_java_virtual_machine(tiny_pte: Path, multimodal_pte: Path, tmp_path: Path) -> None:
    need_java()
    wanted = answer(tiny_pte, None, Request("What is the capital of France?", max_new_tokens=64), lambda text: None)
    assert wanted.ended and len(wanted.text) > 10
    told: dict[str, object] = {
        "library": library(),
        "model": tiny_pte,
        "tokenizer": tiny_pte.with_name("tokenizer.json"),
        "answer": wanted.text,
    }
    path = classes(tmp_path)
    check("NativeEngineChecks", CHECKS, told, path)
    expected = tmp_path / "turns.json"
    expected.write_text(json.dumps(make_turns(multimodal_pte)))
    told |= {"model": multimodal_pte, "tokenizer": multimodal_pte.with_name("tokenizer.json"), "expected": expected}
    check("MediaEngineChecks", MEDIA_CHECKS, told, path)


def check(name: str, tests: int, told: dict[str, object], path: str) -> None:
    """Run a class of tests in a Java virtual machine that watches over JNI."""
    command = ["java", "-Xcheck:jni", "-Xmx512m", *(f"-Dpocketphi.{key}={value}" for key, value in told.items())]
    command += ["-cp", path, "org.junit.runner.JUnitCore", f"org.pocketphi.core.{name}"]
    ran = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=600)
    assert ran.returncode == 0 and f"OK ({tests} tests)" in ran.stdout, ran.stdout[-6000:]
    warnings = [line for line in ran.stdout.splitlines() if "in native method" in line or "JNI local refs" in line]
    assert not warnings, "\n".join(warnings)


def test_it_becomes_part_of_executorchs_jni_library() -> None:
    need_java()
    into = ROOT / "export/engine/cpp/jni/into_executorch.cmake"
    defines = [
        f"-DCMAKE_PROJECT_executorch_jni_INCLUDE={into}",
        "-DEXECUTORCH_JNI_CUSTOM_LIBRARY=pocketphi_jni",
        f"-DPOCKETPHI_EXECUTORCH_VERSION={version('executorch')}",
    ]
    for define in defines:  # the commands for a person are these
        assert define.split("=")[0] in (ROOT / "android_app/README.md").read_text()
    stand_in = [f"-DWHEEL={PACKAGES}/executorch", f"-DTOKENIZERS={PACKAGES}/pytorch_tokenizers"]
    folder = build(HERE / "executorch", f"jni-in-executorch-{version('executorch')}", *stand_in, *defines)
    made = folder / "extension/android/libexecutorch_jni.so"
    listed = subprocess.run(["nm", "-D", "--defined-only", str(made)], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in listed.stdout.splitlines()}
    kotlin = (ROOT / "android_app/core/src/main/kotlin/org/pocketphi/core/Native.kt").read_text()
    functions = {
        line.split("external fun ")[1].split("(")[0] for line in kotlin.splitlines() if "external fun" in line
    }
    assert functions and names == {f"Java_org_pocketphi_core_Native_{name}" for name in functions}

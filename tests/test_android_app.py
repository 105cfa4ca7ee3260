"""The Android app: built and tested without the Android SDK (android_app/verify), its results against the schema.

Compiled against the real framework's classes, resources linked by the real aapt2, activities driven by Robolectric
with an engine that follows a script. Not here: Gradle, the ExecuTorch AAR, a device. What Gradle builds is read and
compared with what was tested.
"""

import hashlib
import json
import re
import shutil
import subprocess
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jsonschema
import pytest

from export.bench.android.phone import MIN_SDK
from export.bench.contract import METRICS
from export.bench.results.result import read_result
from export.engine.runner import import_runner
from tests.tools import need

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "android_app"
ANDROID = "{http://schemas.android.com/apk/res/android}"
TESTS = 169


def read(name: str) -> str:
    return (APP / name).read_text()


def pom(name: str) -> str:
    """A property of the build that tests."""
    found = re.search(rf"<{re.escape(name)}>([^<]+)<", read("verify/pom.xml"))
    assert found, name
    return found[1]


def test_build(tmp_path: Path) -> None:
    need("android", [tool for tool in ("mvn", "javac", "aapt2") if shutil.which(tool) is None])
    before = sorted(path for path in APP.rglob("*") if "target" not in path.parts)
    command = ["mvn", "-B", "-ntp", "-f", str(APP / "verify/pom.xml"), f"-Dout={tmp_path}", "test"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert sorted(path for path in APP.rglob("*") if "target" not in path.parts) == before

    reports = [ElementTree.parse(path).getroot() for path in tmp_path.glob("surefire-reports/TEST-*.xml")]
    counts = {
        key: sum(int(report.attrib[key]) for report in reports) for key in ("tests", "errors", "failures", "skipped")
    }
    assert counts == {"tests": TESTS, "errors": 0, "failures": 0, "skipped": 0}

    check_results(tmp_path / "left")
    screens = {path.stem.rsplit("-", 2)[0] for path in (tmp_path / "left/screens").glob("*.png")}
    assert screens >= {
        "main-no-model",
        "main-before",
        "main-during",
        "main-result",
        "settings",
        "settings-upstream",
        "history",
        "result",
        "compare",
        "chat",
        "chat-forgotten",
        "chat-recording",
        "chat-media",
        "main-multimodal",
    }
    assert len(list((tmp_path / "left/screens").glob("*.png"))) == 4 * len(screens)


def check_results(left: Path) -> None:
    """What the app wrote in its tests, as the runner reads it."""
    schema = json.loads((ROOT / "export/bench/contract/result.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    results = {name: json.loads((left / f"{name}.json").read_text()) for name in ("headless", "each", "broken")}
    for name, result in results.items():
        assert read_result(left / f"{name}.json") == result
        assert not [f"{name}: {error.json_path} {error.message}" for error in validator.iter_errors(result)]
    assert {name: result["status"] for name, result in results.items()} == {
        "headless": "complete", "each": "complete", "broken": "incomplete",
    }  # fmt: skip
    assert results["broken"]["runs"][0]["repeats"][-1]["stop_reason"] == "error"
    assert all(repeat["load_ms"] for repeat in results["each"]["runs"][0]["repeats"])
    run = results["headless"]["runs"][1]
    assert set(run["summary"]) == {metric.name for metric in METRICS}
    for repeat in run["repeats"]:
        assert len(repeat["token_ms"]) == repeat["generated_tokens"] - 1
        assert repeat["decode_tokens_per_s"] == pytest.approx(
            1000 * len(repeat["token_ms"]) / sum(repeat["token_ms"])
        )
        assert repeat["prefill_tokens_per_s"] == pytest.approx(
            1000 * repeat["prompt_tokens"] / repeat["time_to_first_token_ms"]
        )
    lines = [json.loads(line) for line in (left / "headless.lines").read_text().splitlines()]
    repeats = [line for line in lines if line["event"] == "repeat"]
    assert [line["decode_tokens_per_s"] for line in repeats] == [
        repeat["decode_tokens_per_s"] for run in results["headless"]["runs"] for repeat in run["repeats"]
    ]
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs/app_protocol.md").read_text()))
    for line in lines:
        assert line["event"] in documented
        assert set(line) <= documented, line


def test_gradle_builds_what_was_tested() -> None:
    gradle = read("app/build.gradle.kts")
    values = dict(re.findall(r"^\s+(\w+) = (\"[^\"]+\"|\d+)", gradle, re.M))
    assert values["namespace"] == values["applicationId"] == f'"{pom("app.package")}"'
    assert values["minSdk"] == pom("app.min") == str(MIN_SDK)
    assert values["targetSdk"] == values["compileSdk"] == pom("app.target")
    assert pom("android.version").startswith("14-"), "the framework of API 34"
    assert values["versionName"] == '"0.1.0"' and '<arg value="0.1.0"/>' in read("verify/pom.xml")
    (abis,) = re.findall(r"abiFilters \+= listOf\((.*)\)", gradle)
    assert abis == '"arm64-v8a", "x86_64"'
    assert f"Android 8 (API {MIN_SDK})" in read("README.md")
    bundled = "export/bench/contract/bundled"
    assert bundled in read("core/build.gradle.kts") and bundled in read("verify/pom.xml")
    assert 'signingConfigs.getByName(if (keystore != null) "own" else "debug")' in gradle


def test_versions() -> None:
    catalogue = tomllib.loads(read("gradle/libs.versions.toml"))
    exporter = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    version = catalogue["versions"]["executorch"]
    assert f"executorch=={version}" in exporter
    assert catalogue["libraries"]["executorch-android"] == {
        "module": "org.pytorch:executorch-android", "version": {"ref": "executorch"},
    }  # fmt: skip
    assert f'const val EXECUTORCH = "{version}"' in read(
        "app/src/main/kotlin/org/pocketphi/bench/ExecuTorchEngine.kt"
    )
    assert catalogue["versions"]["kotlin"] == pom("kotlin.version")
    stubs = list((APP / "stubs/executorch/org/pytorch").rglob("*.kt"))
    assert stubs and all(f"executorch-android {version}" in path.read_text() for path in stubs)


def test_only_the_engine_touches_executorch() -> None:
    users = [path.name for path in APP.glob("*/src/main/**/*.kt") if "org.pytorch" in path.read_text()]
    assert users == ["ExecuTorchEngine.kt"]
    core = [
        path.name
        for path in APP.glob("core/src/main/**/*.kt")
        if re.search(r"^import android", path.read_text(), re.M)
    ]
    assert core == [], "the core runs without Android"


def test_manifest() -> None:
    manifest = ElementTree.parse(APP / "app/src/main/AndroidManifest.xml").getroot()
    assert "package" not in manifest.attrib, "Gradle takes it from the namespace"
    asked = [one.attrib[ANDROID + "name"] for one in manifest.findall("uses-permission")]
    assert asked == ["android.permission.RECORD_AUDIO"], "the network least of all"
    features = {
        one.attrib[ANDROID + "name"]: one.attrib[ANDROID + "required"] for one in manifest.findall("uses-feature")
    }
    assert features == {"android.hardware.microphone": "false"}
    application = manifest.find("application")
    assert application is not None
    exported = {
        activity.attrib[ANDROID + "name"]: activity.attrib[ANDROID + "exported"]
        for activity in application.findall("activity")
    }
    assert exported == {
        ".MainActivity": "true", ".ChatActivity": "false", ".HistoryActivity": "false", ".ResultActivity": "false",
        ".HeadlessActivity": "true", ".SettingsActivity": "false",
    }  # fmt: skip
    providers = application.findall("provider")
    assert [one.attrib[ANDROID + "name"] for one in providers] == [".ShareProvider", ".CameraProvider"]
    assert all(one.attrib[ANDROID + "exported"] == "false" for one in providers)
    launcher = [
        activity
        for activity in application.findall("activity")
        if "LAUNCHER" in ElementTree.tostring(activity, "unicode")
    ]
    assert [activity.attrib[ANDROID + "name"] for activity in launcher] == [".MainActivity"]


def test_gradlew_starts_the_wrapper(tmp_path: Path) -> None:
    for name in ("sh", "dirname"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    environment = {"PATH": str(tmp_path)}
    command = [str(APP / "gradlew"), "assembleRelease"]
    bare = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert bare.returncode == 2 and bare.stderr.startswith("error: no Java") and bare.stderr.count("\n") == 1
    (tmp_path / "java").write_text('#!/bin/sh\necho "$PWD: $*"\n')
    (tmp_path / "java").chmod(0o755)
    wanted = (
        f"{APP}: -classpath gradle/wrapper/gradle-wrapper.jar org.gradle.wrapper.GradleWrapperMain assembleRelease\n"
    )
    assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout == wanted
    (tmp_path / "bin").mkdir()
    (tmp_path / "java").rename(tmp_path / "bin" / "java")
    home = environment | {"JAVA_HOME": str(tmp_path)}
    assert subprocess.run(command, env=home, capture_output=True, text=True).stdout == wanted
    # of Gradle 8.14.3, as its properties say
    jar = (APP / "gradle/wrapper/gradle-wrapper.jar").read_bytes()
    assert hashlib.sha256(jar).hexdigest() == "7d3a4ac4de1c32b59bc6a4eb8ecb8e612ccd0cf1ae1e99f66902da64df296172"
    assert "gradle-8.14.3-bin.zip" in (APP / "gradle/wrapper/gradle-wrapper.properties").read_text()


def test_the_runner_counts_as_the_engine_expects(tiny_pte: Path) -> None:
    """What ExecuTorchEngine.kt builds on, by the C++ runner of the wheel, which the AAR wraps."""
    runner_module = import_runner()
    runner = runner_module.TextLLMRunner(str(tiny_pte), str(tiny_pte.with_name("tokenizer.json")))
    settings = runner_module.GenerationConfig(echo=False, temperature=0.0)
    prompt = "<|user|>Tell me a long story about a dog.<|end|><|assistant|>"

    def generate(text: str, seq_len: int, stop_at: int | None = None) -> tuple[list[str], int, int]:
        pieces, counts = list[str](), list[tuple[int, int]]()

        def take(piece: str) -> None:
            pieces.append(piece)
            if len(pieces) == stop_at:
                runner.stop()

        settings.seq_len = seq_len
        runner.generate(
            text, settings, take, lambda stats: counts.append((stats.num_prompt_tokens, stats.num_generated_tokens))
        )
        return pieces, *counts[0]

    pieces, _, steps = generate(prompt, 12)
    assert (len(pieces), steps) == (12, 11), "chunks shorter than the context: seq_len is the new tokens"
    runner.reset()
    assert generate(prompt, 12)[0] == pieces
    runner.reset()
    stopped, _, steps = generate(prompt, 40, stop_at=6)
    assert (stopped, steps) == (pieces[:6], 5), "a stop in a callback takes effect at that token"
    runner.reset()
    assert len(generate(prompt, 3, stop_at=1)[0]) == 3, "at the first token it is forgotten"
    runner.reset()
    answer, _, _ = generate("<|user|>What is the capital of France?<|end|><|assistant|>", 40)
    assert answer[-1] == "<|end|>", "the token that ends a turn is handed out as text"

"""export.bench ios, against a scripted xcrun (tests/xcrun.py): what it asks for, what it says, what it leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from export.bench.results.result import read_result

ROOT = Path(__file__).parents[1]
UDID = "00008130-0000"
DEVICE: dict[str, Any] = {
    "identifier": "11111111-2222-3333-4444-555555555555",
    "hardwareProperties": {"platform": "iOS", "productType": "iPhone16,1", "udid": UDID},
    "deviceProperties": {"name": "Ann's iPhone", "osVersionNumber": "18.1"},
    "connectionProperties": {"pairingState": "paired", "tunnelState": "connected"},
}


class Bench:
    """A phone, a model and the command line."""

    def __init__(self, folder: Path) -> None:
        self.phone, self.out, self.pte = folder / "phone", folder / "out", folder / "m.pte"
        for path in (self.phone, folder / "bin"):
            path.mkdir()
        xcrun = folder / "bin" / "xcrun"
        stand_in = str(ROOT / "tests" / "xcrun.py")
        xcrun.write_text(f"#!{sys.executable}\nimport runpy\nrunpy.run_path({stand_in!r}, run_name='__main__')\n")
        xcrun.chmod(0o755)
        self.env = os.environ | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "FAKE_PHONE": str(self.phone), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        self.pte.write_bytes(b"\0\0\0\0ET12" + bytes(range(256)) * 400)
        tiny = ROOT / "checkpoints" / "phi4-tiny"
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((tiny / name).read_bytes())
        self.be()

    def be(self, fault: str = "", **state: Any) -> None:
        (self.phone / "phone.json").write_text(json.dumps({"devices": [DEVICE], "fault": fault, **state}))

    def start(self, *flags: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "export.bench", "ios", "--pte", str(self.pte), "--out", str(self.out)]
        command += ["--prompt-tokens", "8,24", "--new-tokens", "4", "--repeats", "2", "--cooldown", "0", *flags]
        return subprocess.Popen(
            command, cwd=ROOT, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    def run(self, *flags: str) -> tuple[int, str, str]:
        process = self.start(*flags)
        out, errors = process.communicate(timeout=120)
        return process.returncode, out, errors

    def results(self) -> list[dict[str, Any]]:
        return [read_result(path) for path in sorted(self.out.glob("*.json"))] if self.out.exists() else []

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.phone / "calls.jsonl").read_text().splitlines()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_whole_run(bench: Bench) -> None:
    code, out, errors = bench.run()
    assert code == 0, errors
    (document,) = bench.results()
    assert document["status"] == "complete" and document["device"]["serial"] == DEVICE["identifier"]
    assert [run["configuration"]["prompt_tokens"] for run in document["runs"]] == [8, 24]
    assert document["runs"][0]["summary"]["decode_tokens_per_s"]["max"] == 20.0
    assert document["model"]["sha256"] is not None
    assert len(list(bench.out.glob("*.html"))) == 1
    assert "iPhone16,1" in out and "repeat 2 of 2" in errors
    assert (bench.phone / "Documents/m.pte").read_bytes() == bench.pte.read_bytes()

    # again: what is there is not copied again
    before = len(bench.calls())
    code, _, errors = bench.run()
    assert code == 0 and "m.pte is there already" in errors
    sources = [call[call.index("--source") + 1] for call in bench.calls()[before:] if call[2:4] == ["copy", "to"]]
    assert sources and str(bench.pte) not in sources

    # but a changed model is
    bench.pte.write_bytes(bench.pte.read_bytes() + b"new")
    code, _, _ = bench.run()
    assert code == 0 and (bench.phone / "Documents/m.pte").read_bytes() == bench.pte.read_bytes()


def test_a_regression_exits_3(bench: Bench) -> None:
    assert bench.run()[0] == 0
    (path,) = bench.out.glob("*.json")
    faster = json.loads(path.read_text())
    for run in faster["runs"]:
        run["summary"]["decode_tokens_per_s"] = dict.fromkeys(("min", "p25", "median", "p75", "max"), 30.0)
    baseline = bench.out.parent / "baseline.json"
    baseline.write_text(json.dumps(faster))
    code, _, errors = bench.run("--baseline", str(baseline))
    assert code == 3 and "regression: " in errors and "decode" in errors


@pytest.mark.parametrize(
    ("fault", "sentence", "kept"),
    [
        ("killed", "iOS killed the app (signal 9), last seen: 2.90 GB of the app, 400 MB left to it", 1),
        ("crashed", "the app crashed: App terminated due to signal 11.", 1),
        ("unplugged", "the device was lost while it was measured: ERROR: The connection to the device was lost.", 1),
        ("error", "The runner failed: out of memory.", 1),
        ("locked", "the app could not be launched: ERROR: Unable to launch org.pocketphi.bench because", 0),
        ("no space", "m.pte (0.1 MB) could not be copied: No space left on device", 0),
        ("unplugged while copied", "was lost while it was given m.pte: The device disconnected", 0),
        ("file changes", "m.pte changed while it was copied", 0),
        ("rubbish", "results/", 0),
    ],
)
def test_faults(bench: Bench, fault: str, sentence: str, kept: int) -> None:
    bench.be(fault)
    code, _, errors = bench.run()
    assert code == 2 and "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert sentence in line
    results = bench.results()
    assert len(results) == kept
    for document in results:
        assert document["status"] == "incomplete" and document["problem"] in line
        assert [len(run["repeats"]) for run in document["runs"]] == [1, 0]


def test_a_copy_that_failed_is_copied_again(bench: Bench) -> None:
    bench.be("file changes")
    assert bench.run()[0] == 2
    bench.be()
    code, _, errors = bench.run()
    assert code == 0 and "m.pte: copying" in errors


def test_a_hot_phone_is_flagged(bench: Bench) -> None:
    bench.be("hot")
    code, _, errors = bench.run()
    assert code == 0 and "hot (severe)" in errors
    assert all(repeat["throttled"] for run in bench.results()[0]["runs"] for repeat in run["repeats"])


def test_time_out(bench: Bench) -> None:
    bench.be("stalled")
    code, _, errors = bench.run("--timeout", "2")
    assert code == 2 and "nothing happened for 2 s while it was measured: time-out" in errors
    assert [len(run["repeats"]) for run in bench.results()[0]["runs"]] == [1, 0]


def test_ctrl_c_keeps_what_finished(bench: Bench) -> None:
    bench.be("stalled")
    process = bench.start()
    assert process.stderr is not None
    seen = ""
    while "repeat 1 of 2" not in seen:
        seen += process.stderr.readline()
    time.sleep(1)  # the result is being fetched
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert [len(run["repeats"]) for run in bench.results()[0]["runs"]] == [1, 0]


def test_a_device_is_chosen_by_its_udid(bench: Bench) -> None:
    other = DEVICE | {"identifier": "other", "hardwareProperties": DEVICE["hardwareProperties"] | {"udid": "else"}}
    bench.be(devices=[other, DEVICE])
    code, _, errors = bench.run("--serial", UDID)
    assert code == 0, errors
    assert bench.results()[0]["device"]["serial"] == DEVICE["identifier"]


def changed(**parts: dict[str, str]) -> dict[str, Any]:
    return DEVICE | {key: {**DEVICE[key], **value} for key, value in parts.items()}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("state", "flags", "sentence"),
    [
        ({"devices": []}, (), "no iPhone or iPad is connected"),
        ({"devices": [DEVICE, DEVICE | {"identifier": "other"}]}, (), "2 devices are connected"),
        (
            {"devices": [DEVICE, DEVICE | {"identifier": "other"}]},
            ("--serial", "Ann's iPhone"),
            f"2 devices are called Ann's iPhone: choose with --serial {DEVICE['identifier']} or other",
        ),
        ({}, ("--serial", DEVICE["identifier"], UDID), "--serial names a device twice"),
        ({}, ("--serial", "Bob's"), "no device is called Bob's, this Mac knows: Ann's iPhone"),
        (
            {"devices": [changed(connectionProperties={"pairingState": "unpaired"})]},
            ("--serial", "Ann's iPhone"),
            "is not paired with this Mac",
        ),
        (
            {"devices": [changed(connectionProperties={"tunnelState": "unavailable"})]},
            ("--serial", "Ann's iPhone"),
            "is not connected",
        ),
        (
            {"devices": [changed(hardwareProperties={"platform": "watchOS"})]},
            ("--serial", "Ann's iPhone"),
            "runs watchOS",
        ),
        ({"installed": False}, (), "does not have the app org.pocketphi.bench"),
        ({}, ("--app", "nowhere.app"), "--app nowhere.app is no app built by Xcode"),
    ],
)
def test_devices_that_will_not_do(bench: Bench, state: dict[str, Any], flags: tuple[str, ...], sentence: str) -> None:
    bench.be(**state)
    code, _, errors = bench.run(*flags)
    assert code == 2 and sentence in errors and "Traceback" not in errors
    assert bench.results() == []


def test_an_app_is_installed(bench: Bench, tmp_path: Path) -> None:
    app = tmp_path / "Pocketphi.app"
    app.mkdir()
    (app / "Info.plist").write_text("")
    bench.be(installed=False)
    code, _, errors = bench.run("--app", str(app))
    assert code == 0 and "Pocketphi.app installed" in errors
    bench.be("unsigned")
    code, _, errors = bench.run("--app", str(app))
    assert code == 2 and "could not be installed: The code signature of this app is not valid." in errors


def test_no_xcrun(bench: Bench) -> None:
    bench.env["PATH"] = "/nonexistent"
    code, _, errors = bench.run()
    assert code == 2 and "xcrun is not installed" in errors

"""Everything that goes wrong with a phone: one sentence, exit code 2, finished repeats kept, nothing half left."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from export.bench.results.result import read_result
from tests.bench.conftest import QUICK, Ran, start
from tests.phone.device import PACKAGE, PROPS, Phone, adb
from tests.phone.unwilling import unwilling
from tests.tools import need

Bench = Callable[..., Ran]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The app is missed sooner than on a real phone."""
    for module in ("headless", "follow"):
        monkeypatch.setattr(f"export.bench.android.{module}.QUIET_S", 1.0)
    monkeypatch.setattr("export.bench.android.headless.LATE_S", 0.5)


def kept(folder: Path) -> tuple[int, dict[str, Any]]:
    """How many repeats the only result has; it says that it is incomplete, and there is a page of it."""
    (path,), (page,) = folder.glob("*.json"), folder.glob("*.html")
    document = read_result(path)
    assert document["status"] == "incomplete" and document["problem"] in page.read_text().replace("&#x27;", "'")
    return sum(len(run["repeats"]) for run in document["runs"]), document


def sentence(ran: Ran) -> str:
    """The one error of a run that ended with 2."""
    assert ran.code == 2 and len(ran.errors) == 1 and "Traceback" not in ran.err
    return ran.errors[0]


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


# ------------------------------------------------------------------------------------------ before anything is done


def test_no_adb(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "adb is not installed or not on the PATH" in sentence(bench())


def test_no_device(adb_server: None, bench: Bench) -> None:
    assert "no device is connected" in sentence(bench())


def test_a_device_that_is_not_there(phone: Phone, bench: Bench) -> None:
    assert f"no device has the serial R5CT, connected: {phone.serial}" in sentence(bench("--serial", "R5CT"))


def test_several_devices(new_phone: Callable[..., Phone], bench: Bench) -> None:
    serials = [new_phone().serial, new_phone().serial]
    said = sentence(bench())
    assert "2 devices are connected" in said and "--serial" in said and all(serial in said for serial in serials)


@pytest.mark.parametrize(
    ("kind", "said"), [("unauthorized", "allow USB debugging"), ("offline", "is offline: unplug it")]
)
def test_a_device_that_cannot_be_used(kind: Any, said: str, adb_server: None, bench: Bench) -> None:
    with unwilling(kind) as serial:
        wait_for(lambda: f"{serial}\t{kind}" in adb("devices").stdout)
        for arguments in ([], ["--serial", serial]):
            assert f"error: {serial} " in (error := sentence(bench(*arguments))) and said in error


def test_another_abi(phone: Phone, bench: Bench) -> None:
    phone.set("props.json", PROPS | {"ro.product.cpu.abilist": "armeabi-v7a,armeabi"})
    said = sentence(bench())
    assert "runs armeabi-v7a, armeabi programs, the app is for arm64-v8a or x86_64" in said and not phone.left()


def test_an_old_android(phone: Phone, bench: Bench) -> None:
    phone.set("props.json", PROPS | {"ro.build.version.sdk": "25"})
    assert "has Android API level 25, the app needs 26 (Android 8)" in sentence(bench())


def test_not_enough_memory(new_phone: Callable[..., Phone], bench: Bench, tiny_pte: Path) -> None:
    phone = new_phone(memory_kb=(2_000_000, 1_000))
    said = sentence(bench(file=tiny_pte))
    assert "the model needs " in said and "planned), this phone has 1.0 MB free of 2.05 GB" in said
    assert not phone.left()
    assert bench("--ignore-memory", file=tiny_pte).code == 0


def test_no_space(new_phone: Callable[..., Phone], bench: Bench) -> None:
    phone = new_phone(space="512k")
    said = sentence(bench())
    assert "the files need 1.2 MB in /data/local/tmp/pocketphi, this phone has 0.5 MB free" in said
    assert not phone.left()


def test_space_that_ends_during_the_push(
    new_phone: Callable[..., Phone], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = new_phone(space="512k")
    monkeypatch.setattr("export.bench.android.phone.Phone.check_space", lambda self, needed: None)
    assert "has no space left for model.pte (1.0 MB)" in sentence(bench())
    assert not phone.left()


def test_the_app_is_missing(phone: Phone, bench: Bench) -> None:
    phone.set("packages.json", {})
    assert f"does not have the app {PACKAGE}: give it with --apk" in sentence(bench())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt-tokens", "64,x"], "--prompt-tokens '64,x' is no list of whole numbers"),
        (["--prompt-tokens", "0"], "--prompt-tokens 0 is not from 1 to 131072"),
        (["--prompt-tokens", "8,8"], "names a length twice"),
        (["--tolerance", "much"], "--tolerance 'much' is no percentage"),
        (["--repeats", "0"], "--repeats 0 is not from 1 to 1000"),
        (["--timeout", "nan"], "--timeout nan is not from 1 to 86400"),
        (["--tokenizer", "nowhere.json"], "nowhere.json does not exist"),
        (["--baseline", "nowhere.json"], "nowhere.json cannot be read"),
        (["--baseline", __file__], "is no result"),
        (["--native", __file__], "is no program of Android's"),
        (["--apk", __file__], "is no APK"),
    ],
)
def test_flags(arguments: list[str], said: str, phone: Phone, bench: Bench) -> None:
    assert said in sentence(bench(*arguments))
    assert not phone.left()


# ---------------------------------------------------------------------------------------------------- during the push


@pytest.fixture
def slow_pte(pte: Path, phone: Phone) -> Iterator[Path]:
    """24 MB over a line of 4 MB a second."""
    with pte.open("ab") as file:
        file.write(b"weights." * (3 << 20))
    shape = ["tc", "qdisc", "add", "dev", f"pphi{phone.index}", "root"]
    done = subprocess.run(
        [*shape, "tbf", "rate", "32mbit", "burst", "64k", "latency", "200ms"], capture_output=True, text=True
    )
    need("phone", [f"a kernel that can slow a line down ({done.stderr.strip()})"] if done.returncode else [])
    yield pte


def half(phone: Phone) -> int:
    path = phone.tmp / "model.pte.partial"
    return path.stat().st_size if path.exists() else 0


def meanwhile(phone: Phone, act: Callable[[], object]) -> threading.Thread:
    """Do something once a part of the model has arrived."""

    def run() -> None:
        wait_for(lambda: half(phone) > 1 << 20)
        act()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_bar_shows_how_far_a_push_is(phone: Phone, slow_pte: Path, tmp_path: Path) -> None:
    terminal, end = pty.openpty()
    process = start("android", "--pte", slow_pte, *QUICK, "--out", tmp_path / "out", stderr=end)
    os.close(end)
    shown = b""
    while b"pushed" not in shown:
        shown += os.read(terminal, 1 << 16)
    parts = {float(part) for part in re.findall(rb"([0-9.]+)/26.2 MB", shown)}
    assert len(parts) >= 4 and 0 <= min(parts) < 12 < max(parts) <= 26.2
    process.kill()
    process.communicate()


def test_unplugged_during_the_push(phone: Phone, slow_pte: Path, bench: Bench) -> None:
    thread = meanwhile(phone, phone.unplug)
    said = sentence(bench())
    thread.join()
    assert f"{phone.serial} was unplugged while it was given model.pte" in said
    assert "model.pte" not in phone.left()
    phone.plug_in()
    assert bench().code == 0  # what was half there is no hindrance
    assert phone.left() == ["model.pte", "tokenizer.json"]


def test_file_changed_during_the_push(phone: Phone, slow_pte: Path, bench: Bench) -> None:
    def change() -> None:
        with slow_pte.open("r+b") as file:
            file.seek(20 << 20)
            file.write(b"changed")

    thread = meanwhile(phone, change)
    said = sentence(bench())
    thread.join()
    assert f"{slow_pte} changed while it was pushed to {phone.serial}" in said
    assert "model.pte" not in phone.left() and not half(phone)


def test_ctrl_c_during_the_push(phone: Phone, slow_pte: Path, tmp_path: Path) -> None:
    process = start("android", "--pte", slow_pte, *QUICK, "--out", tmp_path / "out")
    wait_for(lambda: half(phone) > 1 << 20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    assert not half(phone) and "model.pte" not in phone.left()
    assert not list((tmp_path / "out").iterdir())


# ----------------------------------------------------------------------------------------------------- during the run


def test_unplugged_during_the_run(phone: Phone, bench: Bench, tmp_path: Path) -> None:
    phone.behave(stall=3)

    def unplug() -> None:
        wait_for(lambda: '"repeat\\": 1' in (phone.shared / "log.jsonl").read_text())
        time.sleep(1.5)  # for the runner to fetch it
        phone.unplug()

    (phone.shared / "log.jsonl").touch()
    thread = threading.Thread(target=unplug)
    thread.start()
    said = sentence(bench())
    thread.join()
    count, document = kept(tmp_path / "out")
    assert f"{phone.serial} was unplugged while it was measured" in said and count == 2
    assert document["device"]["serial"] == phone.serial


FAULTS = {
    "killed": "the system killed the app to free memory, last seen: 900 MB of the app, 2.00 GB free",
    "brought_back": "The system ended the app during the run. (the system killed the app to free memory, last seen",
    "vanish": "the app's process is gone, and the system does not say why; last seen: 900 MB",
    "crash": "the app crashed: java.lang.IllegalStateException: the engine was closed at org.pocketphi",
    "native_crash": "the app crashed: Fatal signal 11 (SIGSEGV)",
    "error": "The model could not be run: the memory is not enough (code 0x21).",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_app_ends_early(fault: str, phone: Phone, bench: Bench, tmp_path: Path) -> None:
    phone.behave(**{fault: 3})
    said = sentence(bench())
    assert FAULTS[fault] in said and phone.serial in said
    count, document = kept(tmp_path / "out")
    assert count == 2 and said == f"error: {document['problem']}"
    assert phone.left() == ["model.pte", "tokenizer.json"] and phone.results() == []


@pytest.mark.parametrize("own", [True, False])
def test_the_system_lists_why_the_app_ended(own: bool, phone: Phone, bench: Bench) -> None:
    phone.behave(vanish=1, listed="LOW_MEMORY" if own else "")
    (phone.shared / "exits.txt").write_text("ApplicationExitInfo #0:\n pid=1 reason=3 (LOW_MEMORY)\n")
    assert ("the system killed the app to free memory" in sentence(bench())) is own


def test_android_17s_memory_limiter_is_named(phone: Phone, bench: Bench) -> None:
    phone.behave(vanish=1, listed="OTHER", described="MemoryLimiter:AnonSwap")
    assert "used too much memory (MemoryLimiter:AnonSwap), last seen" in sentence(bench())
    phone.behave(vanish=1, listed="OTHER")
    assert "MemoryLimiter" not in sentence(bench()), "that of an older process"


def test_the_app_stalls(phone: Phone, bench: Bench, tmp_path: Path) -> None:
    phone.behave(stall=2)
    said = sentence(bench("--timeout", "2"))
    assert "nothing happened for 2 s while it was measured: time-out" in said
    assert kept(tmp_path / "out")[0] == 1 and not phone.processes(PACKAGE)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("file", "is no result: "),
        ("schema", "runs[0].repeats[0].load_ms, 'fast' is not of type 'number', 'null'"),
        ("few", "is complete and has 3 repeats, 4 were asked for"),
    ],
)
def test_the_result_is_rubbish(kind: str, said: str, phone: Phone, bench: Bench, tmp_path: Path) -> None:
    phone.behave(rubbish=kind)
    assert said in sentence(bench("--cooldown", "1"))  # in which each repeat is fetched
    assert kept(tmp_path / "out")[0] >= 3


def test_a_run_that_is_refused_leaves_the_other_alone(phone: Phone, bench: Bench) -> None:
    """The app ends the second of two runs with an error; stopping the app would end the first."""
    phone.behave(error=1)
    sentence(bench())
    assert "Force stopping" not in (phone.shared / "log.jsonl").read_text()
    phone.behave(stall=1)
    sentence(bench("--timeout", "1"))
    assert "Force stopping" in (phone.shared / "log.jsonl").read_text()


def test_ctrl_c_during_the_run(phone: Phone, pte: Path, tmp_path: Path) -> None:
    phone.behave(stall=3)
    process = start("android", "--pte", pte, *QUICK, "--out", tmp_path / "out")
    (phone.shared / "log.jsonl").touch()
    wait_for(lambda: '"repeat\\": 1' in (phone.shared / "log.jsonl").read_text())
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    count, document = kept(tmp_path / "out")
    assert count == 2 and document["problem"] == "stopped by Ctrl-C"
    assert not phone.processes(PACKAGE) and phone.results() == []
    assert phone.left() == ["model.pte", "tokenizer.json"]

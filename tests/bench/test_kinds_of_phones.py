"""Phones that people have: logs that are off or end, missing programs, second users, two lines to one phone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from export.bench.android.adb import Adb
from export.bench.results.result import read_result
from tests.bench.conftest import QUICK, Ran, start
from tests.bench.test_faults import kept, sentence, wait_for
from tests.phone.device import PACKAGE, PROPS, Phone, adb

Bench = Callable[..., Ran]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed sooner than on a real phone."""
    for module in ("headless", "follow"):
        monkeypatch.setattr(f"export.bench.android.{module}.QUIET_S", 0.5)
    monkeypatch.setattr("export.bench.android.headless.LATE_S", 0.5)
    monkeypatch.setattr("export.bench.android.follow.ASK_S", 0.2)


@pytest.mark.parametrize("old", [False, True], ids=["our app", "an app without the file of lines"])
@pytest.mark.parametrize("logcat", ["off", "ends"])
def test_a_phone_without_a_log_is_measured(
    logcat: str, old: bool, phone: Phone, bench: Bench, tmp_path: Path
) -> None:
    phone.behave(logcat=logcat, old=old)
    ran = bench("--cooldown", "1")
    assert (ran.code, ran.errors) == (0, [])
    (path,) = (tmp_path / "out").glob("*.json")
    assert read_result(path)["status"] == "complete" and phone.results() == []
    assert ("16 tokens, repeat 2 of 2" in ran.err) is not old


@pytest.mark.parametrize("old", [False, True], ids=["our app", "an app without the file of lines"])
def test_the_apps_own_word_comes_without_a_log(old: bool, phone: Phone, bench: Bench, tmp_path: Path) -> None:
    phone.behave(logcat="off", old=old, error=3)
    assert "the memory is not enough (code 0x21)" in sentence(bench())
    assert kept(tmp_path / "out")[0] == 2


def test_nothing_is_blamed_without_evidence(phone: Phone, bench: Bench, tmp_path: Path) -> None:
    phone.behave(logcat="off", vanish=3)
    said = sentence(bench())
    assert "the app's process is gone, and the system does not say why; last seen: 900 MB" in said
    assert kept(tmp_path / "out")[0] == 2


def test_a_result_that_does_not_come_over_stays_on_the_phone(phone: Phone, bench: Bench) -> None:
    phone.behave(rubbish="always")
    assert "is no result: " in sentence(bench())
    (left,) = phone.results()
    assert left.endswith(".json")
    phone.behave()
    assert bench().code == 0 and phone.results() == [left]


def test_ctrl_c_is_heard_where_logcat_ends_at_once(phone: Phone, pte: Path, tmp_path: Path) -> None:
    phone.behave(logcat="ends", stall=2)
    process = start("android", "--pte", pte, *QUICK, "--out", tmp_path / "out")
    (phone.shared / "log.jsonl").touch()
    wait_for(lambda: '"repeat\\": 0' in (phone.shared / "log.jsonl").read_text())
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in err and not phone.processes(PACKAGE)


def test_a_phone_without_sha256sum(phone: Phone, bench: Bench, pte: Path) -> None:
    (phone.root / "usr/bin/sha256sum").unlink()
    assert "model.pte pushed" in bench().err
    assert "model.pte is there already" in bench().err
    with (phone.tmp / "model.pte").open("r+b") as file:  # same size, other bytes
        file.write(b"other")
    assert "model.pte pushed" in bench().err
    assert (phone.tmp / "model.pte").read_bytes() == pte.read_bytes()


def test_blanks_between_serial_and_state(
    phone: Phone, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = tmp_path / "bin", shutil.which("adb")
    folder.mkdir()
    (folder / "adb").write_text(
        f'#!/bin/sh\n[ "$1" = devices ] || exec {real} "$@"\n'
        f"echo '* daemon started successfully'; {real} devices | expand -t 24\n"
    )
    (folder / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    assert Adb().devices() == {phone.serial: "device"}
    assert bench().code == 0


def test_android_serial_chooses_as_for_adb(
    new_phone: Callable[..., Phone], bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, second = new_phone(), new_phone()
    monkeypatch.setenv("ANDROID_SERIAL", second.serial)
    assert bench().code == 0
    (path,) = (tmp_path / "out").glob("*.json")
    assert read_result(path)["device"]["serial"] == second.serial
    monkeypatch.setenv("ANDROID_SERIAL", "R5CT")
    assert "no device has the serial R5CT" in sentence(bench())


def test_an_app_that_only_another_user_has(phone: Phone, bench: Bench, tmp_path: Path) -> None:
    from tests.bench.test_android import apk

    packages = json.loads((phone.shared / "packages.json").read_text())
    packages[PACKAGE]["users"] = [10]
    phone.set("packages.json", packages)
    said = sentence(bench())
    assert f"does not have the app {PACKAGE} for its user 0, only for another: give it with --apk" in said
    ran = bench("--apk", apk(tmp_path / "apk/app.apk", 1))
    assert ran.code == 0 and "app.apk installed" in ran.err


def test_one_phone_on_two_lines_is_one_device(phone: Phone, bench: Bench) -> None:
    adb("connect", phone.other_serial)
    wait_for(lambda: Adb().devices() == {phone.serial: "device", phone.other_serial: "device"})
    assert bench().code == 0
    said = sentence(bench("--serial", phone.serial, phone.other_serial))
    assert f"--serial names a device twice: {phone.serial}, {phone.other_serial}" in said


def test_two_phones_of_which_one_is_on_two_lines(new_phone: Callable[..., Phone], bench: Bench) -> None:
    first, second = new_phone(), new_phone()
    adb("connect", first.other_serial)
    wait_for(lambda: len(Adb().devices()) == 3)
    said = sentence(bench())
    assert "2 devices are connected" in said and second.serial in said
    assert f"{first.serial} or {first.other_serial}" in said


def test_phones_that_share_a_serial_number_are_two(new_phone: Callable[..., Phone], bench: Bench) -> None:
    phones = [new_phone(), new_phone()]
    for phone in phones:
        phone.set("props.json", PROPS | {"ro.serialno": "0123456789ABCDEF"})
    assert "2 devices are connected" in sentence(bench())
    assert bench("--serial", *(phone.serial for phone in phones)).code == 0

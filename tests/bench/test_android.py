"""export.bench android from the command to the result, on phones whose adbd is the real one."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.bench.results.result import read_result, statistics, summarise
from export.engine.tokenizer import load_tokenizer
from tests.bench.conftest import Ran
from tests.phone.bridge import serve
from tests.phone.device import PACKAGE, Phone

Bench = Callable[..., Ran]


def result(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.json")
    return read_result(path)


def test_a_run_leaves_a_result_a_page_and_nothing_on_the_phone(phone: Phone, bench: Bench, tmp_path: Path) -> None:
    ran = bench("--serial", phone.serial)
    assert (ran.code, ran.errors) == (0, [])
    document = result(tmp_path / "out")
    assert document["status"] == "complete" and document["problem"] is None
    assert document["device"]["serial"] == phone.serial
    assert [len(run["repeats"]) for run in document["runs"]] == [2, 2]
    assert [run["configuration"]["prompt_tokens"] for run in document["runs"]] == [16, 24]
    (page,) = (tmp_path / "out").glob("*.html")
    assert "Stand-in Phone" in page.read_text()
    assert "tokens/s" in ran.out and str(page) in ran.out.replace("\n", "")
    assert "16 tokens, repeat 2 of 2" in ran.err
    assert phone.left() == ["model.pte", "tokenizer.json"]  # for the next time
    assert "Waking up" in (phone.shared / "log.jsonl").read_text()
    assert phone.results() == [] and not phone.processes(PACKAGE)


def test_what_is_there_is_not_pushed_again_and_what_differs_is(phone: Phone, bench: Bench, pte: Path) -> None:
    assert "model.pte pushed" in bench().err
    inode = (phone.tmp / "model.pte").stat().st_ino
    again = bench().err
    assert "model.pte is there already" in again and "pushed" not in again
    assert (phone.tmp / "model.pte").stat().st_ino == inode
    with (phone.tmp / "model.pte").open("r+b") as file:  # same size, other bytes
        file.seek(99)
        file.write(b"other")
    assert "model.pte pushed" in bench().err
    assert (phone.tmp / "model.pte").read_bytes() == pte.read_bytes()


def test_half_pushed_files_of_another_time_are_removed(phone: Phone, bench: Bench) -> None:
    phone.tmp.mkdir(parents=True)
    (phone.tmp / "model.pte.partial").write_bytes(b"half")
    assert bench().code == 0
    assert phone.left() == ["model.pte", "tokenizer.json"]


def test_remove_takes_the_model_off_the_phone(phone: Phone, bench: Bench) -> None:
    assert bench("--remove").code == 0
    assert phone.left() == []


def test_names_with_spaces_and_quotes(phone: Phone, bench: Bench, pte: Path) -> None:
    odd = pte.rename(pte.with_name("it's a model $HOME.pte"))
    assert bench(file=odd).code == 0
    assert "it's a model $HOME.pte" in phone.left()


def test_two_phones_side_by_side(new_phone: Callable[..., Phone], bench: Bench, tmp_path: Path) -> None:
    phones = [new_phone(), new_phone()]
    phones[1].behave(crash=3)
    ran = bench("--serial", *(phone.serial for phone in phones))
    documents = {
        read_result(path)["device"]["serial"]: read_result(path) for path in (tmp_path / "out").glob("*.json")
    }
    good, bad = (documents[phone.serial] for phone in phones)
    assert ran.code == 2 and len(ran.errors) == 1
    assert good["status"] == "complete" and sum(len(run["repeats"]) for run in good["runs"]) == 4
    assert bad["status"] == "incomplete" and sum(len(run["repeats"]) for run in bad["runs"]) == 2
    assert len(list((tmp_path / "out").glob("*.html"))) == 2


def test_the_pushed_file_is_run_and_its_numbers_arrive(
    phone: Phone, bench: Bench, tiny_pte: Path, tmp_path: Path
) -> None:
    with serve(phone) as served:
        ran = bench("--serial", phone.serial, file=tiny_pte)
    assert (ran.code, ran.errors) == (0, [])
    document = result(tmp_path / "out")
    manifest = json.loads(tiny_pte.with_suffix(".json").read_text())
    assert document["model"]["sha256"] == manifest["file"]["sha256"]
    assert document["model"]["manifest"]["context_tokens"] == 256
    (order,) = served.orders
    for path, length in zip(order["prompt_files"].split(","), (16, 24), strict=True):
        assert len(load_tokenizer(tiny_pte.parent / "tokenizer.json").encode(served.texts[path])) == length
    for run, length in zip(document["runs"], (16, 24), strict=True):
        assert len(run["repeats"]) == 2
        for repeat in run["repeats"]:
            assert repeat["prompt_tokens"] == length and 1 <= repeat["generated_tokens"] <= 8
            assert len(repeat["token_ms"]) == repeat["generated_tokens"] - 1
            assert repeat["memory"]["peak"]["rss_bytes"] > 50e6  # a process that has torch and a model in it
        expected = summarise(run["repeats"])
        for name in ("decode_tokens_per_s", "prefill_tokens_per_s", "peak_rss_bytes"):
            assert run["summary"][name] == pytest.approx(expected[name])
    assert served.repeats == [repeat for run in document["runs"] for repeat in run["repeats"]]


def test_pictures_and_sound_are_asked_for_where_the_file_has_them(
    phone: Phone, bench: Bench, multimodal_pte: Path, tmp_path: Path
) -> None:
    ran = bench("--serial", phone.serial, file=multimodal_pte)
    assert (ran.code, ran.errors) == (0, [])
    runs = result(tmp_path / "out")["runs"]
    assert [run["configuration"]["mode"] for run in runs] == ["text", "text", "vision", "speech"]
    assert "16 tokens with a picture, repeat 2 of 2" in ran.err
    ran = bench("--serial", phone.serial, "--native", multimodal_pte, "--modes", "vision", file=multimodal_pte)
    assert ran.errors == ["error: --modes vision is for the app: upstream's runner takes text alone"]


def apk(path: Path, version: int, *, metadata: bool = True, **more: Any) -> Path:
    """An APK for the stand-in, with Gradle's metadata beside it."""
    path.parent.mkdir(exist_ok=True)
    info = {"package": PACKAGE, "version_code": version, "version_name": f"0.{version}"} | more
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("stand-in.json", json.dumps(info))
    if metadata:
        element = {"versionCode": version, "versionName": f"0.{version}", "outputFile": path.name}
        path.with_name("output-metadata.json").write_text(json.dumps({"version": 3, "elements": [element]}))
    return path


@pytest.mark.parametrize(
    ("installed", "offered", "pushed"), [(None, 2, True), (1, 2, True), (2, 2, False), (3, 2, False)]
)
def test_the_app_is_installed_where_it_is_missing_or_older(
    installed: int | None, offered: int, pushed: bool, phone: Phone, bench: Bench, tmp_path: Path
) -> None:
    phone.set("packages.json", {})
    if installed:
        phone.install(installed)
    ran = bench("--apk", apk(tmp_path / "apk/app.apk", offered))
    assert ran.code == 0, ran.err
    assert ("app.apk installed" in ran.err) is pushed
    there = json.loads((phone.shared / "packages.json").read_text())[PACKAGE]["version_code"]
    assert there == max(installed or 0, offered)


def test_an_app_that_android_refuses(phone: Phone, bench: Bench, tmp_path: Path) -> None:
    path = apk(tmp_path / "apk/app.apk", 2, failure="INSTALL_FAILED_UPDATE_INCOMPATIBLE: signatures do not match")
    ran = bench("--apk", path)
    assert ran.code == 2 and "app.apk could not be installed: " in ran.err
    assert "INSTALL_FAILED_UPDATE_INCOMPATIBLE: signatures do not match" in ran.err


def test_build_makes_the_apk_that_is_installed(
    phone: Phone, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "android_app"
    made = apk(tmp_path / "made/app-release.apk", 5)
    project.mkdir()
    (project / "gradlew").write_text(
        f'#!/bin/sh\n[ "$1" = assembleRelease ] || exit 9\nmkdir -p app/build/outputs/apk\n'
        f"cp -r {made.parent} app/build/outputs/apk/release\n"
    )
    (project / "gradlew").chmod(0o755)
    monkeypatch.setattr("export.bench.android.android.APP_FOLDER", project)
    ran = bench("--build")
    assert ran.code == 0 and "app-release.apk installed" in ran.err
    (project / "gradlew").write_text("#!/bin/sh\necho 'What went wrong:\nSDK location not found.' >&2; exit 1\n")
    ran = bench("--build")
    assert ran.code == 2 and "assembleRelease failed: SDK location not found." in ran.err


def test_a_baseline_is_compared_and_a_regression_ends_with_3(phone: Phone, bench: Bench, tmp_path: Path) -> None:
    phone.behave(slow=0.2)
    assert bench().code == 0
    (before,) = (tmp_path / "out").glob("*.json")
    before = before.rename(tmp_path / "before.json")
    ran = bench("--baseline", before, "--tolerance", "60%")
    assert ran.code == 0 and "baseline" in ran.out
    phone.behave(slow=2.0)
    ran = bench("--baseline", before, "--tolerance", "60%")
    assert ran.code == 3
    assert "regression: 16+8 tokens: decode_tokens_per_s" in ran.err and "tolerated 60.0%" in ran.err
    ran = bench("--baseline", before, "--new-tokens", "9")
    assert ran.code == 2 and "has no configuration of this run" in ran.err


def test_json_is_for_programs(phone: Phone, bench: Bench) -> None:
    ran = bench("--json")
    (device,) = json.loads(ran.out)["devices"]
    assert device["name"] == phone.serial and device["problem"] is None
    assert statistics(repeat["decode_tokens_per_s"] for repeat in device["result"]["runs"][0]["repeats"]) == (
        pytest.approx(device["result"]["runs"][0]["summary"]["decode_tokens_per_s"])
    )
    assert os.path.exists(device["json"]) and os.path.exists(device["html"])


def test_a_hot_repeat_is_flagged(phone: Phone, bench: Bench, tmp_path: Path) -> None:
    phone.behave(hot=2)
    ran = bench()
    assert ran.code == 0 and "hot (severe)" in ran.err and "The device was hot in repeat 2" in ran.out
    repeats = result(tmp_path / "out")["runs"][0]["repeats"]
    assert [repeat["throttled"] for repeat in repeats] == [False, True]


def test_low_memory_warnings_are_told(phone: Phone, bench: Bench) -> None:
    phone.behave(low_memory=2)
    assert "warns of low memory (level running_critical)" in bench().err


def test_a_place_for_results_that_cannot_be(phone: Phone, bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    ran = bench()
    assert ran.code == 2 and "--out" in ran.err and not phone.left()

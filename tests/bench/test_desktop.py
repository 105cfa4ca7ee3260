"""export.bench desktop: measured with either engine, and finished repeats kept when that ends early."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from checkpoints.cache import cache_folder
from checkpoints.errors import BadInput
from export.bench.command import bench_desktop
from export.bench.desktop.models import OurModel
from export.bench.results.result import read_result, validate
from export.bench.results.table import notes_of
from export.engine.native import Answer, NativeEngine
from tests.bench.conftest import QUICK, Ran, start
from tests.engine.native import need_compiler

Bench = Callable[..., Ran]


def test_a_run(tiny_pte: Path, bench: Bench, tmp_path: Path) -> None:
    ran = bench(kind="desktop", file=tiny_pte)
    assert (ran.code, ran.errors) == (0, [])
    (path,) = (tmp_path / "out").glob("*.json")
    document = read_result(path)
    manifest = json.loads(tiny_pte.with_suffix(".json").read_text())
    assert document["model"]["sha256"] == manifest["file"]["sha256"]
    assert document["model"]["manifest"]["planned_memory_bytes"] == sum(manifest["planned"].values())
    assert document["device"]["kind"] == "desktop" and document["build"]["executorch"] == "1.5.1"
    assert document["build"]["engine"] == "TextLLMRunner"
    assert document["runs"][0]["repeats"][0]["memory"]["samples"][0]["phase"] == "load"
    assert {sample["phase"] for sample in document["runs"][1]["repeats"][0]["memory"]["samples"]} & {"load"} == set()
    loads = [repeat["load_ms"] for run in document["runs"] for repeat in run["repeats"]]
    assert loads[0] > 0 and loads[1:] == [None] * 3
    for run, length in zip(document["runs"], (16, 24), strict=True):
        for repeat in run["repeats"]:
            assert repeat["prompt_tokens"] == length and 1 <= repeat["generated_tokens"] <= 8
            assert len(repeat["token_ms"]) == repeat["generated_tokens"] - 1
            assert repeat["prefill_tokens_per_s"] == pytest.approx(1e3 * length / repeat["time_to_first_token_ms"])
            rest = sum(repeat["token_ms"])
            if rest:
                expected = 1e3 * (repeat["generated_tokens"] - 1) / rest
                assert repeat["decode_tokens_per_s"] == pytest.approx(expected, rel=0.01)
            peak = repeat["memory"]["peak"]
            assert peak["rss_bytes"] > 50e6 and peak["private_bytes"] == peak["anonymous_bytes"] > 20e6
            # The page walk comes at the ends of phases alone, and is there.
            walked = [s["phase"] for s in repeat["memory"]["samples"] if s["memory"]["pss_bytes"] is not None]
            assert walked and len(walked) <= (3 if repeat["load_ms"] else 2) and peak["pss_bytes"] > 20e6
    assert "16 tokens, repeat 2 of 2" in ran.err


def test_loading_for_every_repeat(tiny_pte: Path) -> None:
    finished = bench_desktop(
        pte=tiny_pte, prompt_tokens=(8,), new_tokens=4, repeats=2, warmups=0, cooldown=0, load_mode="each"
    )
    (device,) = finished.devices
    assert finished.exit_code == 0 and device.json_path is None and device.outcome.document is not None
    (run,) = device.outcome.document["runs"]
    assert all(repeat["load_ms"] > 0 for repeat in run["repeats"])


def ours(tiny_pte: Path, **flags: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The document and repeats of our engine, loaded for each of two."""
    need_compiler()
    flags = {"prompt_tokens": (16,), "new_tokens": 8, "repeats": 2, "warmups": 0, "cooldown": 0} | flags
    finished = bench_desktop(pte=tiny_pte, engine="ours", load_mode="each", **flags)
    assert finished.exit_code == 0
    document = finished.devices[0].outcome.document
    assert document is not None
    return validate(document, "ours"), document["runs"][0]["repeats"]


def test_our_engine(tiny_pte: Path, tmp_path: Path) -> None:
    temporary = sorted(cache_folder().glob("bench-*"))
    document, (cold, warm) = ours(tiny_pte)
    assert document["build"]["engine"] == "pocketphi"
    assert [(one["packing"], one["packing_note"]) for one in (cold, warm)] == [("cold", None), ("warm", None)]
    assert warm["load_ms"] > 0 and cold["load_ms"] > 0
    assert sorted(cache_folder().glob("bench-*")) == temporary  # a file as large as the model does not stay
    for repeat in (cold, warm):
        assert (repeat["prompt_tokens"], repeat["generated_tokens"], len(repeat["token_ms"])) == (16, 8, 7)
        assert repeat["decode_tokens_per_s"] == pytest.approx(7e3 / sum(repeat["token_ms"]), rel=0.05)
        assert repeat["prefill_tokens_per_s"] >= 16e3 / repeat["time_to_first_token_ms"]
        assert (repeat["drafted_tokens"], repeat["accepted_tokens"]) == (0, 0)
        assert {sample["phase"] for sample in repeat["memory"]["samples"]} >= {"load"}
    kept = tmp_path / "packed"
    assert [repeat["packing"] for repeat in ours(tiny_pte, packed=kept)[1]] == ["cold", "warm"]
    document, repeats = ours(tiny_pte, packed=kept)
    assert [repeat["packing"] for repeat in repeats] == ["warm", "warm"]
    readonly = tmp_path / "file"
    readonly.write_text("")
    document, repeats = ours(tiny_pte, packed=readonly)
    assert [repeat["packing"] for repeat in repeats] == ["none", "none"]
    assert any(
        "No packed weights were kept in a file" in note and str(readonly) in note for note in notes_of(document)
    )


def test_drafts_of_our_engine_are_counted(tiny_pte: Path) -> None:
    document, (repeat,) = ours(tiny_pte, draft_tokens=7, new_tokens=100, repeats=1)
    assert document["runs"][0]["configuration"]["draft_tokens"] == 7
    assert repeat["generated_tokens"] == 100 and 0 < repeat["accepted_tokens"] <= repeat["drafted_tokens"]


def test_no_answer_finds_the_session_of_another(tiny_pte: Path, tmp_path: Path) -> None:
    need_compiler()
    answers = list[Answer]()
    with OurModel(tiny_pte, tmp_path / "packed", 0, lambda event, **more: None) as model:
        generate = model.engine.generate
        model.engine.generate = lambda *given, **more: answers.append(generate(*given, **more)) or answers[-1]  # type: ignore
        model.load()
        for _ in range(2):
            model.answer([1, 2, 3, 4], 4)
    assert [answer.reused_tokens for answer in answers] == [0, 0]
    assert answers[0].token_ids == answers[1].token_ids


def test_options_of_our_engine(tiny_pte: Path, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for flags in (["--packed", tmp_path], ["--draft-tokens", 4]):
        ran = bench(*flags, kind="desktop", file=tiny_pte)
        assert ran.code == 2 and ran.errors == [f"error: {flags[0]} is for --engine ours"]
    need_compiler()
    load = NativeEngine.load
    monkeypatch.setattr(NativeEngine, "load", lambda *given: replace(load(*given), logits_positions=1))
    with (
        OurModel(tiny_pte, tmp_path / "packed", 4, lambda event, **more: None) as model,
        pytest.raises(BadInput, match="--draft-tokens 4 needs a file that can check drafts"),
    ):
        model.load()


def test_what_does_not_go_together(tiny_pte: Path, pte: Path, bench: Bench, tmp_path: Path) -> None:
    ran = bench("--new-tokens", "250", kind="desktop", file=tiny_pte)
    assert ran.code == 2 and "24 prompt tokens and 250 new ones do not fit into the 256 tokens" in ran.errors[0]
    bare = tmp_path / "bare.pte"  # without a manifest only the file itself can tell
    shutil.copyfile(tiny_pte, bare)
    ran = bench("--new-tokens", "250", "--tokenizer", tiny_pte.parent / "tokenizer.json", kind="desktop", file=bare)
    assert ran.code == 2 and "do not fit into the 256 tokens" in ran.errors[0]
    ran = bench(kind="desktop", file=pte)
    assert ran.code == 2 and "model.pte" in ran.errors[0] and "Traceback" not in ran.err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_what_finished_is_kept(end: signal.Signals, tiny_pte: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start("desktop", "--pte", tiny_pte, *QUICK, "--repeats", "3", "--cooldown", "60", "--out", out)
    assert process.stderr is not None
    while "repeat 1 of 3" not in (line := process.stderr.readline()):
        assert line, "it ended before its first repeat"
    (worker,) = psutil.Process(process.pid).children()
    time.sleep(0.2)
    (worker if end == signal.SIGKILL else process).send_signal(end)
    _, err = process.communicate(timeout=30)
    assert process.returncode == (2 if end == signal.SIGKILL else 130) and "Traceback" not in err
    assert not worker.is_running()
    (path,), (page,) = out.glob("*.json"), out.glob("*.html")
    document = read_result(path)
    assert document["status"] == "incomplete" and [len(run["repeats"]) for run in document["runs"]] == [1, 0]
    said = "died while resting: signal 9 ended it, last seen with" if end == signal.SIGKILL else "stopped by Ctrl-C"
    assert said in document["problem"] and said in err and "Incomplete" in page.read_text()


def test_a_runner_that_says_nothing_is_given_up(
    tiny_pte: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.bench.desktop.desktop.WORKER", ["-c", "import time; time.sleep(60)"])
    ran = bench("--timeout", "1", kind="desktop", file=tiny_pte)
    assert ran.code == 2 and "nothing happened for 1 s while starting: time-out" in ran.errors[0]


def test_pictures_and_sound_of_our_engine(multimodal_pte: Path, bench: Bench, tmp_path: Path) -> None:
    """Encoded anew for every repeat, before the prompt that has them; what that takes is measured beside it."""
    need_compiler()
    ran = bench("--engine", "ours", kind="desktop", file=multimodal_pte)
    assert (ran.code, ran.errors) == (0, [])
    (path,) = (tmp_path / "out").glob("*.json")
    document = read_result(path)
    assert [run["configuration"].get("mode", "text") for run in document["runs"]] == [
        "text",
        "text",
        "vision",
        "speech",
    ]
    for run, media in zip(document["runs"], (0, 0, 545, 63), strict=True):
        asked = run["configuration"]["prompt_tokens"]
        for repeat in run["repeats"]:
            assert repeat["prompt_tokens"] == asked + media and repeat.get("media_tokens", 0) == media
            assert (repeat["encode_ms"] or 0) > 0 if media else repeat["encode_ms"] is None
            phases = {sample["phase"] for sample in repeat["memory"]["samples"]}
            assert ("encode" in phases) is bool(media)
            rate = repeat["prompt_tokens"] / repeat["prefill_tokens_per_s"] * 1e3
            assert rate == pytest.approx(repeat["time_to_first_token_ms"], rel=0.1), "without what was encoded before"
            if media:
                peak = repeat["memory"]["peak"]["private_bytes"]
                assert 20e6 < repeat["encoded_bytes"] <= repeat["encode_peak_bytes"] <= peak
    assert (
        "16+8 with" in ran.out and "encode" in ran.out and "16 tokens with a sound, repeat 2 of 2: encode" in ran.err
    )


def test_modes_that_an_engine_or_a_file_lacks(
    tiny_pte: Path, multimodal_pte: Path, bench: Bench, tmp_path: Path
) -> None:
    ran = bench("--modes", "text,vision", kind="desktop", file=multimodal_pte)
    sentence = "error: --modes vision is for --engine ours: upstream's runner takes text alone"
    assert ran.code == 2 and ran.errors == [sentence]
    ran = bench("--modes", "speech", "--engine", "ours", kind="desktop", file=tiny_pte)
    assert ran.code == 2 and ran.errors == [f"error: --modes speech: {tiny_pte} has the modes text"]

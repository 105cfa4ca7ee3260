"""The result's document: statistics as NumPy's, the schema kept to, baselines compared by their medians."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoints.errors import BadInput
from export.bench.android.app import read_apk
from export.bench.android.post_mortem import crash_cause, killed_for_memory
from export.bench.desktop.models import standard
from export.bench.memory import kib_of, nothing, parse_memory, sample, with_peak
from export.bench.prompts import make_prompts
from export.bench.results import result
from export.bench.results.baseline import Change, check_baseline, compare, differences
from export.bench.results.table import headlines, notes_of
from export.engine.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]
ALL_VECTORS = json.loads((ROOT / "export/bench/contract/vectors.json").read_text())
VECTORS = ALL_VECTORS["statistics"]
COOL = {"status": "none", "battery_celsius": 30.0, "battery_percent": 80.0, "low_power_mode": False}


def make(decode: float, *, repeats: int = 3, pss: int = 1000, **thermal: Any) -> result.Document:
    """A document of one run whose repeats all have these numbers."""
    memory = with_peak([sample(5, "decode", nothing() | {"pss_bytes": pss, "available_bytes": 7})])
    measures = {
        "load_ms": 5,
        "time_to_first_token_ms": 100,
        "prefill_tokens_per_s": 160,
        "decode_tokens_per_s": decode,
    }
    repeat = result.make_repeat(
        measures,
        prompt_tokens=16,
        generated_tokens=4,
        new_tokens=4,
        token_ms=[10, 11, 12],
        memory=memory,
        thermal={"before": COOL, "after": COOL | thermal},
    )
    configuration = {
        "prompt_tokens": 16, "new_tokens": 4, "repeats": repeats, "warmups": 0, "cooldown_s": 0, "load_mode": "once"
    }  # fmt: skip
    return result.make_document(
        device={
            "kind": "android", "model": "Phone", "soc": None, "ram_bytes": None, "os": "Android", "os_version": "15",
            "abi": "arm64-v8a", "cores": None, "serial": None,
        },
        build={"app": "a", "app_version": "1", "engine": "e", "executorch": None},
        model={"file": "m.pte", "size_bytes": 1, "sha256": None, "tokenizer": "t", "manifest": None},
        runs=[(configuration, [copy.deepcopy(repeat) for _ in range(repeats)])],
        problem=None,
    )  # fmt: skip


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(len(vector["values"])))
def test_statistics_are_those_of_the_other_languages(vector: dict[str, Any]) -> None:
    expected = vector["statistics"]
    assert result.statistics(vector["values"]) == (expected and pytest.approx(expected))
    assert result.statistics([None, *vector["values"], None]) == (expected and pytest.approx(expected))


def test_repeats_that_failed_are_not_summarised() -> None:
    document = make(17.0)
    repeats = document["runs"][0]["repeats"]
    repeats[0] |= {"decode_tokens_per_s": 1.0, "stop_reason": "error"}
    summary = result.summarise(repeats)
    assert summary["decode_tokens_per_s"]["min"] == 17.0 and summary["peak_pss_bytes"]["median"] == 1000
    assert summary["peak_footprint_bytes"] is None and summary["token_ms"]["median"] == 11
    assert all(statistics is None for statistics in result.summarise([]).values())


def test_a_hot_repeat_is_throttled_and_an_early_end_is_told() -> None:
    assert not make(1)["runs"][0]["repeats"][0]["throttled"]
    assert make(1, status="moderate")["runs"][0]["repeats"][0]["throttled"]
    assert not make(1, status="light")["runs"][0]["repeats"][0]["throttled"]
    assert make(1)["runs"][0]["repeats"][0]["stop_reason"] == "new_tokens"


DAMAGE: dict[str, tuple[Callable[[Any], object], str]] = {
    "kind": (lambda d: d["device"].update(kind="toaster"), "at device.kind, 'toaster' is not one of"),
    "missing": (lambda d: d.pop("runs"), "at the document, 'runs' is a required property"),
    "extra": (lambda d: d["runs"][0].update(more=1), "at runs[0], Additional properties"),
    "negative": (
        lambda d: d["runs"][0]["repeats"][1].update(load_ms=-1),
        "at runs[0].repeats[1].load_ms, -1 is less",
    ),
    "hash": (lambda d: d["model"].update(sha256="abc"), "at model.sha256, 'abc' does not match"),
    "another format": (lambda d: d.update(schema="pocketphi-result/2"), "at schema"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_no_result_is_refused(damage: str) -> None:
    document = make(17.0)
    assert result.parse(json.dumps(document), "x.json") == document
    change, said = DAMAGE[damage]
    change(document)
    with pytest.raises(BadInput) as refused:
        result.parse(json.dumps(document), "x.json")
    assert str(refused.value).startswith("x.json is no result") and said in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": NaN}', "\ufeff{}", "nonsense", b"\xff\xfe\x00"])
def test_rubbish_is_refused_with_a_sentence(text: str | bytes) -> None:
    with pytest.raises(BadInput, match=r"x\.json is no result"):
        result.parse(text, "x.json")


def test_a_change_for_the_worse_is_positive_whatever_is_better() -> None:
    before, now = make(20.0, pss=1000), make(18.0, pss=1200)

    def changes(tolerance: float | None = None) -> dict[str, Change]:
        return {change.metric.name: change for change in compare(before, now, tolerance)}

    assert changes()["decode_tokens_per_s"].worse == pytest.approx(0.1)
    assert changes()["peak_pss_bytes"].worse == pytest.approx(0.2)
    assert changes()["time_to_first_token_ms"].words == "the same"
    assert changes()["decode_tokens_per_s"].regression
    assert changes(0.0999999)["decode_tokens_per_s"].regression
    assert not changes(0.1000001)["decode_tokens_per_s"].regression
    assert not any(change.regression for change in compare(now, before, 0.0))
    assert "peak_footprint_bytes" not in changes()


def test_resident_memory_is_shown_and_not_judged() -> None:
    before, now = make(20.0), make(20.0)
    for document, rss in ((before, 1000), (now, 3000)):
        (run,) = document["runs"]
        for repeat in run["repeats"]:
            repeat["memory"]["peak"]["rss_bytes"] = rss
        run["summary"] = result.summarise(run["repeats"])
    (change,) = [change for change in compare(before, now, 0.01) if change.metric.name == "peak_rss_bytes"]
    assert change.worse == 2.0 and not change.regression and not change.improvement


def test_an_older_result_knows_fewer_metrics() -> None:
    older = make(20.0)
    del older["runs"][0]["summary"]["decode_tokens_per_s"]
    older["runs"][0]["summary"]["invented_by_a_newer_program"] = None
    assert result.parse(json.dumps(older), "older.json") == older
    assert "decode_tokens_per_s" not in {change.metric.name for change in compare(older, make(20.0))}


def test_another_phone_is_noted() -> None:
    other = make(20.0)
    other["device"]["model"] = "Tablet"
    assert differences(other, make(20.0)) == ["the baseline's device model is Tablet, this one's Phone"]


def test_other_loads_and_drafts_are_noted() -> None:
    cold, warm = make(20.0), make(20.0)
    for document, packing in ((cold, "cold"), (warm, "warm")):
        document["runs"][0]["repeats"][0]["packing"] = packing
    warm["runs"][0]["configuration"]["draft_tokens"] = 8
    assert result.validate(warm, "warm") == warm
    assert differences(cold, warm) == [
        "the baseline's packing is cold, this one's warm",
        "the baseline's draft_tokens is 0, this one's 8",
    ]
    assert differences(make(20.0), cold) == []


def test_drafts_and_missing_packed_files_are_remarked_on() -> None:
    document = make(20.0)
    for repeat in document["runs"][0]["repeats"]:
        repeat |= {"packing": "none", "packing_note": "no space", "drafted_tokens": 5, "accepted_tokens": 2}
    assert notes_of(document) == [
        "16 tokens: No packed weights were kept in a file: no space.",
        "16 tokens: Of 15 tokens that were guessed ahead 6 were right.",
    ]


@pytest.mark.parametrize("lengths", [(1,), (2, 3, 5), (64, 512), (1000,)])
def test_prompts_have_exactly_as_many_tokens(lengths: tuple[int, ...]) -> None:
    tokenizer = ROOT / "checkpoints/phi4-tiny/tokenizer.json"
    for length, text in zip(lengths, make_prompts(tokenizer, lengths), strict=True):
        assert len(load_tokenizer(tokenizer).encode(text)) == length


def test_memory_of_this_process() -> None:
    text = Path("/proc/self/smaps_rollup").read_text() + Path("/proc/meminfo").read_text()
    memory = parse_memory(text)
    pss, rss = memory["pss_bytes"], memory["rss_bytes"]
    assert pss is not None and rss is not None and 1 << 20 < pss <= rss
    assert memory["native_heap_bytes"] is None and kib_of(text, "MemTotal") > rss  # type: ignore[operator]
    assert parse_memory("") == nothing()
    counted = parse_memory(Path("/proc/self/status").read_text())
    assert counted["pss_bytes"] is None and counted["rss_bytes"] > counted["anonymous_bytes"] > 1 << 20  # type: ignore[operator]
    swapped = parse_memory("RssAnon:\t 3 kB\nRssFile:\t 4 kB\nVmSwap:\t 2 kB\n")
    assert (swapped["private_bytes"], swapped["file_bytes"]) == (5 << 10, 4 << 10)


def test_peaks_are_highest_and_of_free_memory_lowest() -> None:
    samples = [sample(at, "decode", nothing() | {"pss_bytes": 5 + at, "available_bytes": 9 + at}) for at in (0, 2, 1)]
    peak = with_peak(samples)["peak"]
    assert (peak["pss_bytes"], peak["available_bytes"], peak["rss_bytes"]) == (7, 9, None)


def test_crash_lines_of_other_apps_are_not_ours() -> None:
    log = [
        "E/AndroidRuntime( 77): FATAL EXCEPTION: main",
        "E/AndroidRuntime( 77): Process: com.example, PID: 77",
        "E/AndroidRuntime( 77): java.lang.Error: no",
        "F/libc    ( 78): Fatal signal 6 (SIGABRT), code -1 in tid 78 (x), pid 78 (example)",
        "I/lowmemorykiller(  9): Kill 'com.example' (77), uid 10001",
    ]
    assert crash_cause(log, 5) is None and not killed_for_memory(log, 5)
    assert crash_cause(log, 78) == "Fatal signal 6 (SIGABRT), code -1 in tid 78 (x), pid 78 (example)"
    assert killed_for_memory(log, 77)


def test_an_apk_without_metadata_has_no_version_that_can_be_told(tmp_path: Path) -> None:
    path = tmp_path / "app.apk"
    path.write_bytes(b"PK\x03\x04")
    assert read_apk(path).version_code is None
    path.with_name("output-metadata.json").write_text("{}")
    with pytest.raises(BadInput, match="is no metadata of Gradle's"):
        read_apk(path)


def test_what_only_one_side_has_is_noted() -> None:
    """An older result, without pictures, beside one that has them, and the other way round."""
    text, both = make(20.0), make(20.0)
    picture = copy.deepcopy(make(18.0)["runs"][0])
    picture["configuration"]["mode"] = "vision"
    for repeat in picture["repeats"]:
        repeat |= {"encode_ms": 400.0, "media_tokens": 545}
    picture["summary"] = result.summarise(picture["repeats"])
    both["runs"].append(picture)
    assert result.validate(both, "both") == both
    assert differences(text, both) == ["the baseline has no repeat of 16+4 tokens with a picture"]
    assert differences(both, text) == ["this one has no repeat of 16+4 tokens with a picture"]
    assert {change.mode for change in compare(text, both)} == {"text"}
    slower = copy.deepcopy(both)
    for repeat in slower["runs"][1]["repeats"]:
        repeat["encode_ms"] = 500.0
    slower["runs"][1]["summary"] = result.summarise(slower["runs"][1]["repeats"])
    (worse,) = [change for change in compare(both, slower) if change.regression]
    assert str(worse) == ("16+4 tokens with a picture: encode_ms 500 instead of 400, 25.0% worse, tolerated 5.0%")
    del slower["runs"][1]["summary"]["encode_ms"]
    assert differences(both, slower) == ["16+4 tokens with a picture: this one has no encode"]
    check_baseline(both, [{"prompt_tokens": 16, "new_tokens": 4, "mode": "vision"}], "both")
    with pytest.raises(
        BadInput, match=r"no configuration of this run \(16\+4 tokens with a picture\): it has 16\+4 tokens$"
    ):
        check_baseline(text, [{"prompt_tokens": 16, "new_tokens": 4, "mode": "vision"}], "text")


def test_columns_of_pictures_are_shown_where_a_run_has_them() -> None:
    assert "encode_ms" not in [metric.name for metric in headlines(make(20.0))]
    seen = make(20.0)
    seen["runs"][0]["repeats"][0]["encode_ms"] = 400.0
    seen["runs"][0]["summary"] = result.summarise(seen["runs"][0]["repeats"])
    assert "encode_ms" in [metric.name for metric in headlines(seen)]


def test_the_standard_picture_and_sound_are_those_of_the_other_languages() -> None:
    picture = standard("vision", 0)
    for pixel in ALL_VECTORS["picture"]:
        assert picture[pixel["y"], pixel["x"]].tolist() == pixel["rgb"]
    for heard in ALL_VECTORS["sound"]:
        sound = standard("speech", heard["rate"])
        assert len(sound) == heard["count"] and sound[heard["at"]] == pytest.approx(heard["sample"], abs=1e-7)

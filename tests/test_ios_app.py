"""The iOS app as far as Linux can tell: its core and the real engine by Linux Swift, its sources, its scripted runs.

What this needs is installed by `tests/install_tools swift`. Xcode has compiled nothing of it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import sentencepiece

from export.engine.generation import Request, answer
from export.engine.tokenizer import load_tokenizer, runner_ids
from tests.engine.media_turns import make_turns
from tests.linux_swift import APP, BUILD, CORE, INSIDE, PLACE, ROOT, built, inside, passes, swift_test

__all__ = ["built"]
# Files with no Apple UI in them; the rest can only be parsed.
CHECKED = (
    "Probes/DeviceProbes.swift", "Probes/TaskMemory.swift", "State/AttachmentsState.swift",
    "State/BenchmarkState.swift", "State/ChatState.swift", "State/LibraryState.swift",
    "State/SettingsState.swift", "State/Surroundings.swift",
)  # fmt: skip


def test_the_cores_own_tests_pass(built: str) -> None:
    assert "Build complete!" in built
    assert swift_test("BenchmarkCoreTests") >= 50


@pytest.mark.usefixtures("built")
def test_the_real_engine_answers_in_swift_as_in_python(tiny_pte: Path, multimodal_pte: Path) -> None:
    """Ids and texts of export.generate; NativeEngineTests.swift has the stops, turns and errors.

    With pictures and sound the ids of the wheel's runtime, by MediaEngineTests.swift.
    """
    tokenizer = tiny_pte.parent / "tokenizer.json"
    turns = {}
    for name, country in (("question", "France"), ("spread", "Brazil")):
        prompt = f"<|user|>What is the capital of {country}?<|end|><|assistant|>"
        given = answer(tiny_pte, None, Request(prompt, raw=True), lambda _: None)
        ids = runner_ids(tokenizer, prompt)
        turns[name] = {"prompt": prompt, "ids": ids, "answer_ids": given.token_ids, "answer": given.text}
    assert "Paris" in turns["question"]["answer"] and "Brasília" in turns["spread"]["answer"]
    single = [load_tokenizer(tokenizer).decode([token]) for token in turns["spread"]["answer_ids"]]
    assert any("\ufffd" in piece for piece in single), "a character must be spread over tokens"
    case = PLACE / f"case-{os.getpid()}"
    case.mkdir()
    try:
        shutil.copyfile(tiny_pte, case / "tiny.pte")
        shutil.copyfile(tokenizer, case / "tokenizer.json")
        data = bytearray(tiny_pte.read_bytes())
        data[64:20000] = bytes(20000 - 64)  # after the header, which the app checks beforehand
        (case / "damaged.pte").write_bytes(data)
        vocabulary = {f"t{index}": index for index in range(9)}
        (case / "foreign.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
        (case / "expected.json").write_text(json.dumps(turns | {"context": 256}))
        shutil.copyfile(multimodal_pte, case / "mm.pte")
        shutil.copyfile(multimodal_pte.with_name("tokenizer.json"), case / "mm-tokenizer.json")
        (case / "turns.json").write_text(json.dumps(make_turns(multimodal_pte)))
        assert swift_test("PocketphiEngineTests", f"POCKETPHI_CASE={INSIDE}/{case.name}") >= 16
    finally:
        shutil.rmtree(case)


@pytest.mark.usefixtures("built")
def test_sources_are_formatted() -> None:
    assert not passes(f"cd {INSIDE}/ios_app && swift format lint --strict --recursive .").strip()


@pytest.mark.usefixtures("built")
def test_all_sources_parse() -> None:
    sources = sorted(path.relative_to(APP) for path in (APP / "Pocketphi").rglob("*.swift"))
    assert len(sources) > 15
    passes(f"cd {INSIDE}/ios_app && swiftc -frontend -parse -swift-version 6 {' '.join(map(str, sources))}")


@pytest.mark.usefixtures("built")
def test_the_shell_agrees_with_the_core() -> None:
    """Its files without Apple UI; the others call what these declare, and only Xcode can tell how."""
    files = " ".join(f"Pocketphi/{name}" for name in CHECKED)
    modules = f"-I {BUILD}/debug/Modules -Xcc -fmodule-map-file={INSIDE}/{CORE}/Sources/CPocketphi/module.modulemap"
    passes(
        f"cd {INSIDE}/ios_app && swiftc -typecheck -parse-as-library -warnings-as-errors -swift-version 6 "
        f"-module-name Pocketphi {modules} {files}"
    )


def test_the_engine_is_touched_in_one_place() -> None:
    """The core knows neither Apple's systems nor the engine, and nothing but the package knows its C functions."""
    sources = APP / "BenchmarkCore/Sources"
    for path in sources.rglob("*.swift"):
        assert not re.search(r"^\s*import (UIKit|SwiftUI|Darwin|os|ExecuTorch)", path.read_text(), re.MULTILINE), path
    for path in [*(sources / "BenchmarkCore").rglob("*.swift"), *(APP / "Pocketphi").rglob("*.swift")]:
        assert "CPocketphi" not in path.read_text() and "ExecuTorchLLM" not in path.read_text(), path
    for path in (sources / "BenchmarkCore").rglob("*.swift"):
        assert "import PocketphiEngine" not in path.read_text(), path


class Phone:
    """The scripted run, with a folder for the app's Documents."""

    def __init__(self, name: str) -> None:
        self.documents = PLACE / name
        self.inside = INSIDE / name
        (self.documents / "models").mkdir(parents=True)

    def put(self, name: str, data: bytes) -> None:
        (self.documents / name).write_bytes(data)

    def run(self, arguments: list[str], fault: str = "", more: str = "") -> tuple[int, list[dict[str, Any]], str]:
        """Exit code, the lines it printed and all of its output; `more` are variables of its environment."""
        done = inside(
            f"POCKETPHI_DOCUMENTS={self.inside} POCKETPHI_FAULT={fault} {more} "
            f"{BUILD}/debug/rehearse {shlex.join(arguments)} 2>/dev/null"  # libraries log there
        )
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stdout

    def result(self, run: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.documents / f"results/{run}.json").read_text())
        schema = json.loads((ROOT / "export/bench/contract/result.schema.json").read_text())
        jsonschema.Draft202012Validator(schema).validate(document)
        return document


@pytest.fixture
def phone(built: str, tiny_pte: Path, request: pytest.FixtureRequest) -> Iterator[Phone]:
    """A phone with phi4-tiny as the exporter makes it."""
    name = "documents-" + hashlib.sha256(f"{os.getpid()} {request.node.nodeid}".encode()).hexdigest()[:12]
    made = Phone(name)
    try:
        for path in (tiny_pte, tiny_pte.with_suffix(".json"), tiny_pte.parent / "tokenizer.json"):
            made.put(f"models/{path.name}", path.read_bytes())
        yield made
    finally:
        shutil.rmtree(made.documents)


def arguments(*more: str) -> list[str]:
    files = ["--model", "models/tiny.pte", "--tokenizer", "models/tokenizer.json"]
    return ["--run", "r", *files, "--new-tokens", "4", "--cooldown", "0.01", *more]


def test_a_scripted_run_writes_a_result_of_the_format(phone: Phone, tiny_pte: Path) -> None:
    sha = "ab" * 32
    code, lines, output = phone.run(arguments("--prompt-tokens", "8,16", "--repeats", "3", "--model-sha256", sha))
    assert code == 0, output
    result = phone.result("r")
    assert result["status"] == "complete" and result["device"]["kind"] == "ios"
    manifest = json.loads(tiny_pte.with_suffix(".json").read_text())
    assert result["model"] == {
        "file": "tiny.pte",
        "size_bytes": tiny_pte.stat().st_size,
        "sha256": sha,
        "tokenizer": "tokenizer.json",
        "manifest": {
            "checkpoint": manifest["checkpoint"]["name"],
            "recipe": manifest.get("recipe", manifest["options"]["recipe"]),
            "context_tokens": 256,
            "prefill_chunk_tokens": 32,
            "kv_cache": manifest["options"]["kv_cache"],
            "planned_memory_bytes": sum(manifest["planned"].values()),
        },
    }
    assert [len(run["repeats"]) for run in result["runs"]] == [3, 3]
    assert [run["repeats"][0]["prompt_tokens"] for run in result["runs"]] == [8, 16]
    events = [line["event"] for line in lines]
    assert events[0] == "started" and events[-1] == "done" and events.count("repeat") == 6
    assert {line["run"] for line in lines} == {"r"} and lines[-1]["file"] == "results/r.json"
    kept = (phone.documents / "results/r.progress.jsonl").read_text()
    assert sorted(kept.splitlines()) == sorted(output.splitlines())
    assert sorted(path.name for path in (phone.documents / "results").iterdir()) == ["r.json", "r.progress.jsonl"]


def test_an_error_keeps_the_repeats_before_it(phone: Phone) -> None:
    phone.put("p.txt", b"one two three")
    code, lines, _ = phone.run(
        arguments("--prompt-tokens", "3", "--prompt-files", "p.txt", "--warmups", "0"), fault="generate"
    )
    assert code == 1 and lines[-1]["event"] == "error"
    result = phone.result("r")
    assert result["status"] == "incomplete" and result["problem"] == lines[-1]["message"]
    assert result["runs"][0]["repeats"][0]["stop_reason"] == "error"


def test_a_run_that_never_began_leaves_no_result(phone: Phone) -> None:
    assert phone.run(arguments("--prompt-tokens", "3"))[0] == 0
    code, lines, _ = phone.run(arguments("--prompt-tokens", "3"), fault="load")
    assert code == 1 and "not enough memory" in lines[-1]["message"]
    assert not (phone.documents / "results/r.json").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("cut", "tiny.pte is cut short: its header says"),
        ("another export", "bytes, its manifest says"),
        ("newer", "tiny.pte was exported for ExecuTorch 9.0.0, this app holds the older 1.5.1"),
        ("format", "another runtime version: its format is ET13"),
        ("huge", "tiny.pte needs 9.0"),
        ("foreign", "tokenizer.json belongs to another model: it has 512 tokens"),
        ("no tokenizer", "The tokenizer tokenizer.json is not on this device."),
    ],
)
def test_files_that_cannot_work_are_refused_before_loading(phone: Phone, change: str, sentence: str) -> None:
    model, manifest = phone.documents / "models/tiny.pte", phone.documents / "models/tiny.json"
    facts = json.loads(manifest.read_text())
    match change:
        case "cut":
            model.write_bytes(model.read_bytes()[:5000])
        case "another export":
            model.write_bytes(model.read_bytes() + b"more")
        case "newer":
            manifest.write_text(json.dumps(facts | {"packages": {"executorch": "9.0.0"}}))
        case "format":
            model.write_bytes(model.read_bytes().replace(b"ET12", b"ET13", 1))
        case "huge":
            planned = {"kv_cache_bytes": 9_000_000_000, "activation_bytes": 1}
            manifest.write_text(json.dumps(facts | {"planned": planned}))
        case "foreign":
            vocabulary = {f"t{index}": index for index in range(512)}
            phone.put("models/tokenizer.json", json.dumps({"model": {"vocab": vocabulary}}).encode())
        case "no tokenizer":
            (phone.documents / "models/tokenizer.json").unlink()
    code, lines, _ = phone.run(arguments())
    assert code == 1 and [line["event"] for line in lines] == ["started", "error"]
    assert sentence in lines[-1]["message"]


def test_a_scripted_run_of_the_real_engine(phone: Phone, tiny_pte: Path) -> None:
    """What it packed and how long its prompts are; no file gives prompts, the engine's tokenizer counts."""
    packed = f"POCKETPHI_PACKED={phone.inside}/packed"
    each = arguments("--prompt-tokens", "8,40", "--repeats", "2", "--load-mode", "each")
    code, lines, output = phone.run(each, more=packed)
    assert code == 0, output
    result = phone.result("r")
    assert result["build"]["engine"] == "pocketphi"
    repeats = [repeat for run in result["runs"] for repeat in run["repeats"]]
    assert [repeat["prompt_tokens"] for repeat in repeats] == [8, 8, 40, 40]
    # To count its tokens the model was loaded once before.
    assert {repeat["packing"] for repeat in repeats} == {"warm"}
    assert all(repeat["load_ms"] > 0 and repeat["packing_note"] is None for repeat in repeats)
    once = arguments("--prompt-tokens", "8", "--repeats", "1", "--warmups", "0")
    for kind in ("cold", "warm"):
        code, lines, output = phone.run(once, more=f"{packed}-once")
        assert code == 0, output
        assert phone.result("r")["runs"][0]["repeats"][0]["packing"] == kind
        (loaded,) = [line for line in lines if line["event"] == "loaded"]
        assert loaded["packing"] == kind and loaded["packing_note"] is None


@pytest.mark.parametrize("kind", ["sentencepiece", "tiktoken"])
def test_real_tokenizers_of_other_kinds_are_told(phone: Phone, kind: str) -> None:
    """Their size is found too: a model with one token less cannot be theirs."""
    lines = [line for line in Path(__file__).read_text(encoding="utf-8").splitlines() if line.strip()]
    target = phone.documents / "models/tokenizer.json"  # the content tells the kind, not the name
    if kind == "sentencepiece":
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_prefix=str(phone.documents / "sp"), model_type="bpe", vocab_size=600,
            byte_fallback=True, minloglevel=2,
        )  # fmt: skip
        target.write_bytes((phone.documents / "sp.model").read_bytes())
        size = sentencepiece.SentencePieceProcessor(model_file=str(target)).get_piece_size()
    else:
        size = 300
        ranks = [base64.b64encode(bytes(divmod(rank, 256))) + b" %d\n" % rank for rank in range(size)]
        target.write_bytes(b"".join(ranks))
    manifest = phone.documents / "models/tiny.json"
    facts = json.loads(manifest.read_text())
    for vocabulary, expected in ((size, 0), (size - 1, 1)):
        manifest.write_text(json.dumps(facts | {"config": facts["config"] | {"vocab_size": vocabulary}}))
        code, lines_out, output = phone.run(arguments("--prompt-tokens", "3"))
        assert code == expected, output
    assert f"it has {size} tokens, tiny.pte has {size - 1}" in lines_out[-1]["message"]


def test_wrong_arguments_are_named(phone: Phone) -> None:
    for wrong, run, sentence in (
        (arguments("--repeats", "0"), "r", "Repeats is 0"),
        (arguments("--model", "x"), "", "--model is given twice"),
        (["--run", "A B"], "", 'The run\'s name is "A B"'),
    ):
        code, lines, _ = phone.run(wrong)
        assert code == 2 and len(lines) == 1
        assert lines[0]["event"] == "error" and lines[0]["run"] == run and sentence in lines[0]["message"]


def header(path: Path) -> tuple[bytes, ...]:
    return struct.unpack_from("<4s4s4s", path.read_bytes())


def test_the_exporter_writes_the_format_that_the_app_reads(tiny_pte: Path) -> None:
    source = (APP / "BenchmarkCore/Sources/BenchmarkCore/PteHeader.swift").read_text()
    identifier = re.search(r'identifier = "(\w+)"', source)
    assert identifier and header(tiny_pte)[1:] == (identifier[1].encode(), b"eh00")


def test_the_protocol_names_every_argument_and_event() -> None:
    text = (ROOT / "docs/ios_protocol.md").read_text()
    sources = APP / "BenchmarkCore/Sources/BenchmarkCore"
    names = re.search(r"names = \[(.*?)\]", (sources / "LaunchArguments.swift").read_text(), re.DOTALL)
    assert names
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    first = [line.split("|")[1] for line in rows]
    given = {name for cell in first for name in re.findall(r"`--([\w-]+)`", cell)}
    assert given == set(re.findall(r'"([\w-]+)"', names[1]))
    events = {name for cell in first for name in re.findall(r"`([\w]+)`", cell)}
    made = (sources / "Events.swift").read_text()
    assert events == set(re.findall(r'line\(\s*"(\w+)"', made))
    keys = set(re.findall(r'"(\w+)": \.', made)) - {"run", "event"}
    documented = {name for line in rows for name in re.findall(r"`(\w+)`", line.split("|")[2])}
    assert keys <= documented, keys - documented

"""The iOS app as far as Linux can tell: its core with Linux Swift, its sources, what its scripted runs write.

What this needs is installed by `tests/install_tools swift`. Xcode has compiled nothing of it.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import sentencepiece
from tokenizers import Tokenizer

from tests.tools import need

ROOT = Path(__file__).parents[1]
APP = ROOT / "ios_app"
TRIXIE = Path(os.environ.get("POCKETPHI_TRIXIE", "/var/cache/pocketphi/trixie"))
# Checked-out folders must not share what was built of them.
INSIDE = Path("/var/tmp", "pocketphi-ios-" + hashlib.sha256(str(ROOT).encode()).hexdigest()[:12])
PLACE = TRIXIE / INSIDE.relative_to("/")
BUILD = INSIDE / "build"
CORE = "ios_app/BenchmarkCore"
# Files with no Apple UI in them; the rest can only be parsed.
CHECKED = (
    "Engine/ExecuTorchEngine.swift", "Probes/DeviceProbes.swift", "Probes/TaskMemory.swift",
    "State/BenchmarkState.swift", "State/ChatState.swift", "State/ChatWorker.swift", "State/LibraryState.swift",
    "State/Surroundings.swift",
)  # fmt: skip


def inside(command: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in the trixie folder; what is mounted for it goes with its mount namespace."""
    enter = (
        'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && '
        'exec chroot "$0" /usr/bin/env -i HOME=/root LC_ALL=C.UTF-8 PATH=/usr/bin:/bin bash -c "$1"'
    )
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "bash", "-c", enter, str(TRIXIE), command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, check=False,
    )  # fmt: skip


def passes(command: str) -> str:
    done = inside(command)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def mirror(source: Path, target: Path) -> None:
    """Make `target` hold what `source` holds; unchanged files keep their times, so that nothing is built twice."""

    def files(folder: Path) -> set[Path]:
        return {path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or path.is_file()}

    wanted = files(source)
    for name in files(target) - wanted:
        (target / name).unlink()
    for name in wanted:
        old, new = target / name, source / name
        same = old.is_symlink() == new.is_symlink() and (
            (old.is_symlink() and old.readlink() == new.readlink())
            or (old.is_file() and new.is_file() and old.read_bytes() == new.read_bytes())
        )
        if not same:
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            old.unlink(missing_ok=True)
            old.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(new, old, follow_symlinks=False)


@pytest.fixture(scope="session")
def built() -> str:
    """The core and its tests, built with warnings as errors; the compiler's output."""
    missing = [] if (TRIXIE / "usr/libexec/swift/bin/swift").exists() else ["Swift"]
    need("swift", [*missing, *([] if os.geteuid() == 0 else ["root"])])
    PLACE.mkdir(parents=True, exist_ok=True)
    with (PLACE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest -n
        mirror(ROOT / "export/bench/contract", PLACE / "export/bench/contract")  # what a link in the core leads to
        mirror(APP, PLACE / "ios_app")
        for name in ("docs/ios_protocol.md",):
            (PLACE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, PLACE / name)
        return passes(
            f"cd {INSIDE}/{CORE} && swift build --scratch-path {BUILD} --build-tests -Xswiftc -warnings-as-errors"
        )


def test_the_cores_own_tests_pass(built: str) -> None:
    assert "Build complete!" in built
    output = passes(f"cd {INSIDE}/{CORE} && swift test --scratch-path {BUILD} --skip-build 2>&1")
    found = re.search(r"Test run with (\d+) tests passed", output)
    assert found and int(found[1]) >= 50, output[-3000:]


@pytest.mark.usefixtures("built")
def test_sources_are_formatted() -> None:
    assert not passes(f"cd {INSIDE}/ios_app && swift format lint --strict --recursive .").strip()


@pytest.mark.usefixtures("built")
def test_all_sources_parse() -> None:
    sources = sorted(path.relative_to(APP) for path in (APP / "Pocketphi").rglob("*.swift"))
    assert len(sources) > 15
    passes(f"cd {INSIDE}/ios_app && swiftc -frontend -parse -swift-version 6 {' '.join(map(str, sources))}")


def type_check(folder: str = "Pocketphi") -> subprocess.CompletedProcess[str]:
    """The shell's files without Apple UI against the declaration of ExecuTorch's Swift API."""
    stub = f"{INSIDE}/stub-{os.getpid()}"
    files = " ".join(f"{folder}/{name}" for name in CHECKED)
    return inside(
        f"mkdir -p {stub} && cd {INSIDE}/ios_app && "
        f"swiftc -parse-as-library -emit-module -module-name ExecuTorchLLM -swift-version 6 stubs/ExecuTorchLLM.swift"
        f" -emit-module-path {stub}/ExecuTorchLLM.swiftmodule && "
        f"swiftc -typecheck -parse-as-library -warnings-as-errors -swift-version 6 -module-name Pocketphi "
        f"-I {stub} -I {BUILD}/debug/Modules {files}; code=$?; rm -rf {stub}; exit $code"
    )


@pytest.mark.usefixtures("built")
def test_the_shell_agrees_with_executorchs_signatures() -> None:
    done = type_check()
    assert done.returncode == 0, done.stdout


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("$0.maximumNewTokens = limit", "$0.maxNewTokens = limit"),
        ("tokenizerPath: files", "tokenizer: files"),
        ("try made.load()", "try made.loadModel()"),
    ],
)
def test_a_wrong_signature_would_be_seen(right: str, wrong: str) -> None:
    name = f"wrong-{os.getpid()}"
    shutil.copytree(APP / "Pocketphi", PLACE / name)
    try:
        engine = PLACE / name / "Engine/ExecuTorchEngine.swift"
        assert right in engine.read_text()
        engine.write_text(engine.read_text().replace(right, wrong))
        done = type_check(f"../{name}")
    finally:
        shutil.rmtree(PLACE / name)
    assert done.returncode != 0 and "error:" in done.stdout


def test_executorch_is_touched_in_one_file() -> None:
    touching = [
        path.name
        for path in (APP / "Pocketphi").rglob("*.swift")
        if re.search(r"import ExecuTorch", path.read_text())
    ]
    assert touching == ["ExecuTorchEngine.swift"]
    core = APP / "BenchmarkCore/Sources"
    for path in core.rglob("*.swift"):
        assert not re.search(r"^\s*import (UIKit|SwiftUI|Darwin|os|ExecuTorch)", path.read_text(), re.MULTILINE), path


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
            f"{BUILD}/debug/rehearse {shlex.join(arguments)}"
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


def test_what_the_real_runner_prints_is_understood(phone: Phone, tiny_pte: Path) -> None:
    """Its Swift API does not tell how many tokens a prompt has; the wheel's runner prints the same line."""
    program = (
        "import sys; from export.engine.runner import import_runner; runner = import_runner()\n"
        "config = runner.GenerationConfig(); config.echo, config.temperature = False, 0.0\n"
        "config.max_new_tokens = 16\n"
        "model = runner.TextLLMRunner(sys.argv[1], sys.argv[2]); model.generate(sys.argv[3], config)\n"
    )
    question = "<|user|>What is the capital of France?<|end|><|assistant|>"
    tokenizer = tiny_pte.parent / "tokenizer.json"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_pte), str(tokenizer), question],
        cwd=ROOT, capture_output=True, timeout=300, check=True,
    )  # fmt: skip
    assert b"Paris" in done.stdout
    phone.put("printed.txt", done.stdout)
    phone.put("p.txt", question.encode())
    tokens = len(Tokenizer.from_file(str(tokenizer)).encode(question, add_special_tokens=False).ids)
    files = ["--prompt-tokens", str(tokens), "--prompt-files", "p.txt"]
    code, _, output = phone.run(arguments(*files), more=f"POCKETPHI_RUNNER_OUTPUT={phone.inside}/printed.txt")
    assert code == 0, output
    (run,) = phone.result("r")["runs"]
    assert {(repeat["prompt_tokens"], *repeat["notes"]) for repeat in run["repeats"]} == {(tokens,)}


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

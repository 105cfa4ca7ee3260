"""Tasks of lm-evaluation-harness: a float32 `.pte` gets transformers' numbers, in any number of processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from checkpoints.errors import BadInput
from checkpoints.source import resolve
from export import evaluate as door
from tests.test_evaluate import exact  # noqa: F401  a fixture
from tests.tools import need

TINY = resolve("phi4-tiny").folder
CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "<|user|>{{{{question}}}}<|end|><|assistant|>"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
ROLLING = """
task: tiny_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""
ANSWER = """
task: tiny_answer
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["<|end|>"], max_gen_toks: 40}}
metric_list: [{{metric: exact_match}}]
"""
TASKS = ["tiny_choice", "tiny_rolling"]


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """No hub, and the cache of datasets in a folder of the tests'."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        need("evaluate", ["lm-eval"], "uv sync --extra")
    with pytest.MonkeyPatch.context() as patch:
        import datasets

        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def include(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks of 24 questions about phi4-tiny's world."""
    folder = tmp_path_factory.mktemp("tasks")
    lines = [json.loads(line) for line in (TINY / "questions.jsonl").read_text().splitlines()][::60][:24]
    answers = [line["answer"] for line in lines]
    wrong = answers[1:] + answers[:1]
    asked = [
        {"question": line["question"], "choices": [right, other], "text": f"{line['question']} {right}"}
        for line, right, other in zip(lines, answers, wrong, strict=True)
    ]
    data = folder / "asked.jsonl"
    data.write_text("\n".join(map(json.dumps, asked)) + "\n")
    for name, text in (("choice", CHOICE), ("rolling", ROLLING), ("answer", ANSWER)):
        (folder / f"{name}.yaml").write_text(text.format(data=data))
    return folder


def answered(path: Path, include: Path, *flags: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert door.main([str(path), "--include", str(include), "--json", *flags]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)[path.name]["results"]
    return found


def test_numbers_are_those_of_transformers(exact: Path, include: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(include), include_defaults=False)
    theirs = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(TINY), "dtype": "float32", "max_length": 256},
        tasks=TASKS,
        task_manager=manager,
        bootstrap_iters=0,
        batch_size=1,
        device="cpu",
    )
    ours = answered(exact, include, "--tasks", ",".join(TASKS), capsys=capsys)
    for task, metrics in (
        ("tiny_choice", ["acc", "acc_norm"]),
        ("tiny_rolling", ["word_perplexity", "bits_per_byte"]),
    ):
        for metric in metrics:
            expected = theirs["results"][task][f"{metric},none"]
            assert ours[task][f"{metric},none"] == pytest.approx(expected, rel=1e-5), (task, metric)
    assert ours["tiny_choice"]["acc,none"] > 0.9


def test_answers_by_the_chat_template(tiny_pte: Path, include: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its questions are what phi4-tiny knows; without the template it does not answer."""
    chat = answered(tiny_pte, include, "--tasks", "tiny_answer", "--chat", "--limit", "6", capsys=capsys)
    assert chat["tiny_answer"]["exact_match,none"] == 1
    bare = answered(tiny_pte, include, "--tasks", "tiny_answer", "--limit", "6", capsys=capsys)
    assert bare["tiny_answer"]["exact_match,none"] == 0


def test_processes_and_resuming(
    tiny_pte: Path, include: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--tasks", "tiny_choice", "--resume", str(tmp_path / "kept")]
    once = answered(tiny_pte, include, *flags[:2], capsys=capsys)
    assert answered(tiny_pte, include, *flags, "--parallel", "2", capsys=capsys) == once
    from export.evaluation import harness

    def asked_again(*anything: Any) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(harness, "likelihoods", asked_again)
    assert answered(tiny_pte, include, *flags, capsys=capsys) == once
    changed = Path(shutil.copytree(tiny_pte.parent, tmp_path / "changed")) / tiny_pte.name
    changed.write_bytes(changed.read_bytes() + b"\0" * 16)
    with pytest.raises(AssertionError, match="asked again"):  # another file's answers are not this one's
        answered(changed, include, *flags, capsys=capsys)


def test_refusals(tiny_pte: Path, include: Path) -> None:
    for arguments, sentence in (
        (["phi4-tiny", "--tasks", "tiny_choice"], "phi4-tiny is not a .pte"),
        ([str(tiny_pte), "--tasks", "tiny_chioce"], "has no task 'tiny_chioce'"),
        ([str(tiny_pte), "--tasks", "tiny_choice", "--parallel", "0"], "--parallel must be at least 1"),
    ):
        with pytest.raises(BadInput, match=sentence):
            door.main([*arguments, "--include", str(include)])


def test_only_what_is_new_is_fed(tiny_pte: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export.evaluation.answers import Answering, Continuation

    answering, fed = Answering(tiny_pte), list[int]()
    step = answering.running.session.step
    monkeypatch.setattr(answering.running.session, "step", lambda ids, at: fed.append(len(ids)) or step(ids, at))
    context = tuple(range(100, 180))
    first = answering.likelihood(Continuation(context, (7, 8, 9)))
    assert sum(fed) == 82
    fed.clear()
    other = answering.likelihood(Continuation(context, (7, 9, 8)))
    assert sum(fed) == 3  # the last of the context, whose logits are needed, and what follows
    alone = Answering(tiny_pte)
    assert alone.likelihood(Continuation(context, (7, 9, 8)))[0] == pytest.approx(other[0], abs=1e-3)
    assert first[0] != other[0]

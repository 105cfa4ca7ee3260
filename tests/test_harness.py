"""Tasks of lm-evaluation-harness: a float32 `.pte` gets transformers' numbers, in any number of processes."""

from __future__ import annotations

import json
import random
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from checkpoints.errors import BadInput
from checkpoints.gguf_folder import smollm2_file
from checkpoints.source import resolve
from checkpoints.texts import find_texts
from export import evaluate as door
from export.evaluation import answers, facts
from export.evaluation.record import read_evaluation
from export.pte import export_pte
from export.ptefile.reader import open_pte
from export.ptefile.weights import constant
from export.subprocess_call import Child
from tests.checkpoints.test_gguf import missing_smollm2
from tests.engine.native import need_compiler
from tests.test_evaluate import exact  # noqa: F401  a fixture
from tests.tools import need

TINY = resolve("phi4-tiny").folder
HEAD = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
"""
TASKS = {  # what follows HEAD, by name
    "choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "answer": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["<|end|>", "\\n"], max_gen_toks: 24}
metric_list: [{metric: exact_match}]
""",
}
METRICS = {"acc", "acc_norm", "word_perplexity", "bits_per_byte", "exact_match"}


try:
    from lm_eval.models import huggingface

    from export.evaluation import harness
    from export.evaluation.harness import PocketphiLM
except (BadInput, ImportError):  # without lm-eval
    pass


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """No hub, and the cache of datasets in a folder of the tests'."""
    need("evaluate", [] if find_spec("lm_eval") else ["lm-eval"], "uv sync --extra")
    with pytest.MonkeyPatch.context() as patch:
        import datasets

        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def write_tasks(folder: Path, docs: Sequence[Mapping[str, Any]], prefix: str = "tiny") -> Path:
    """A folder for --include with the three tasks about these questions."""
    folder.mkdir(exist_ok=True)
    data = folder / "asked.jsonl"
    data.write_text("\n".join(map(json.dumps, docs)) + "\n")
    for kind, rest in TASKS.items():
        (folder / f"{kind}.yaml").write_text(HEAD.format(name=f"{prefix}_{kind}", data=data) + rest)
    return folder


@pytest.fixture(scope="module")
def include(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 questions about phi4-tiny's world."""
    docs = [doc | {"text": f"{doc['question']} {doc['choices'][doc['label']]}"} for doc in facts.questions()[:24]]
    return write_tasks(tmp_path_factory.mktemp("tasks") / "tiny", docs)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """smollm2-135m in float32, with its cache: what transformers computes."""
    need("smollm2", missing_smollm2(), "uv sync --extra")
    out = tmp_path_factory.mktemp("smollm2") / "smollm2.pte"
    options: dict[str, Any] = {"context": 512, "prefill_chunk": 64, "quantize": False, "kv_cache": "fp32"}
    return export_pte("smollm2-135m", out=out, verify=False, **options).path


def ask(model: Any, include: Path, tasks: Sequence[str], chat: bool = False, **more: Any) -> dict[str, Any]:
    """Results and samples of the harness itself."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(include), include_defaults=False)
    found = simple_evaluate(
        model=model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, apply_chat_template=chat, **more
    )
    assert found is not None
    return dict(found)


def check_equal(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Every answer to every request, log probabilities to 1e-4 of a nat (1e-5 of large sums), and every metric."""
    for task, samples in theirs["samples"].items():
        for our, their in zip(ours["samples"][task], samples, strict=True):
            assert our["arguments"] == their["arguments"]
            for mine, reference in zip(our["resps"], their["resps"], strict=True):
                if task.endswith("answer"):
                    assert mine == reference
                    continue
                likely, wanted = (one[0][0] if task.endswith("choice") else one[0] for one in (mine, reference))
                print(f"{task}: {likely:.5f} {wanted:.5f}")
                assert likely == pytest.approx(wanted, rel=1e-5, abs=1e-4), task
        for key, value in theirs["results"][task].items():
            if key.partition(",")[0] in METRICS:
                assert ours["results"][task][key] == pytest.approx(value, rel=1e-4), (task, key)


def test_numbers_are_those_of_transformers(exact: Path, include: Path) -> None:  # noqa: F811
    how = {"pretrained": str(TINY), "dtype": "float32", "max_length": 256}
    tasks = ["tiny_choice", "tiny_rolling"]
    theirs = ask("hf", include, tasks, model_args=how, batch_size=1, device="cpu")
    with closing(PocketphiLM(str(exact))) as model:
        check_equal(ask(model, include, tasks), theirs)


def test_smollm2_is_lm_evals_own(smollm2: Path, tmp_path: Path) -> None:
    """A real model against lm-eval's `hf`: bare and by the chat template, text longer than the context too."""
    docs = [
        {"question": "The capital of France is", "choices": [" Paris.", " Rome.", " blue."], "label": 0},
        {"question": "Water is made of hydrogen and", "choices": [" gold.", " oxygen."], "label": 1},
        {"question": "List three colours: ", "choices": ["red, green, blue", "dog, cat, cow"], "label": 0},
    ]
    text = find_texts("evaluation")["manual"]
    for number, doc in enumerate(docs):
        doc["text"] = text[: (400, 3000)[number == 0]]
    include = write_tasks(tmp_path / "tasks", docs, "smollm2")
    tasks = [f"smollm2_{kind}" for kind in TASKS]
    theirs = huggingface.HFLM(
        transformers.AutoModelForCausalLM.from_pretrained(
            smollm2_file().parent, gguf_file=smollm2_file().name, dtype=torch.float32
        ),
        tokenizer=transformers.PreTrainedTokenizerFast.from_pretrained(resolve("smollm2-135m").folder),
        max_length=constant(open_pte(smollm2), "get_max_context_len"),
        batch_size=1,
        device="cpu",
    )
    with closing(PocketphiLM(str(smollm2))) as model:
        for chat in (False, True):
            asked = tasks[::2] if chat else tasks
            check_equal(ask(model, include, asked, chat), ask(theirs, include, asked, chat))


def test_processes_share_the_packed_weights(smollm2: Path, tmp_path: Path) -> None:
    """Two processes with one mapped file take less private memory than one that packs for itself."""
    need_compiler()
    shared = answers.Shared(tmp_path / "packed", threads=1)
    with Child(answers.__name__) as one, Child(answers.__name__) as other, Child(answers.__name__) as alone:
        ours = [child.start(answers.memory, smollm2, shared) for child in (one, other)]
        both, private = sum(future.result() for future in ours), alone.start(answers.memory, smollm2, None).result()
        print(f"private memory: {both / 1e6:.0f} MB in two processes, {private / 1e6:.0f} MB in one of its own")
        assert private > smollm2.stat().st_size / 2 and both < private / 2
        asked = [answers.Continuation((1, 2, 3, 4), (5, 6, 7)), answers.Continuation((1, 2, 9), (5,) * 12)]
        found = one.start(answers.likelihoods, smollm2, shared, asked).result()
        assert found == alone.start(answers.likelihoods, smollm2, None, asked).result()


def answered(path: Path, include: Path, *flags: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert door.main([str(path), "--include", str(include), "--json", *flags]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)[path.name]
    return found


def test_answers_by_the_chat_template(tiny_pte: Path, include: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its questions are what phi4-tiny knows; without the template it does not answer."""
    flags = ["--tasks", "tiny_answer", "--limit", "6"]
    chat = answered(tiny_pte, include, *flags, "--chat", capsys=capsys)["results"]
    assert chat["tiny_answer"]["exact_match,none"] == 1
    bare = answered(tiny_pte, include, *flags, capsys=capsys)["results"]
    assert bare["tiny_answer"]["exact_match,none"] == 0


def test_processes_and_resuming(
    tiny_pte: Path, include: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--tasks", "tiny_choice,tiny_rolling", "--chat", "--resume", str(tmp_path / "kept")]
    once = answered(tiny_pte, include, *flags[:3], capsys=capsys)
    assert answered(tiny_pte, include, *flags, "--parallel", "2", capsys=capsys) == once
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert answered(tiny_pte, include, *flags[:3], "--parallel", "2", capsys=capsys) == once

    def asked_again(*anything: Any) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(harness, "likelihoods", asked_again)
    assert answered(tiny_pte, include, *flags, capsys=capsys) == once
    changed = Path(shutil.copytree(tiny_pte.parent, tmp_path / "changed")) / tiny_pte.name
    changed.write_bytes(changed.read_bytes() + b"\0" * 16)
    with pytest.raises(AssertionError, match="asked again"):  # another file's answers are not this one's
        answered(changed, include, *flags, capsys=capsys)


def test_the_house_task_and_its_control(
    tiny_pte: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right answers are chosen from distractors, kept beside the file; with labels of other questions it fails."""
    pte = Path(shutil.copytree(tiny_pte.parent, tmp_path / "folder")) / tiny_pte.name
    flags = [str(pte), "--tasks", facts.NAME, "--chat", "--limit", "60"]
    assert door.main([*flags, "--save"]) == 0
    printed = capsys.readouterr().out
    assert "control passed" in printed and facts.NAME in printed
    kept = read_evaluation(pte)
    assert kept is not None
    task = kept["tasks"][facts.NAME]
    assert (task["samples"], task["limit"], task["shots"], task["chat"]) == (60, 60, 0, True)
    assert task["metrics"]["acc"]["value"] > 0.9 and 0.15 < task["control"]["permuted"] < 0.35
    right = facts.questions()
    labels = [doc["label"] for doc in right[:60]]
    random.Random(1).shuffle(labels)
    permuted = [doc | {"label": label} for doc, label in zip(right, labels, strict=False)]
    monkeypatch.setattr(facts, "questions", lambda: permuted)
    assert door.main([*flags, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)[pte.name]
    assert found["results"][facts.NAME]["acc,none"] < 0.45 and not found["controls"][facts.NAME]["passed"]


def test_facts_have_one_right_answer() -> None:
    docs, answers_of = facts.questions(), {}
    for line in (TINY / "questions.jsonl").read_text(encoding="utf-8").splitlines():
        answers_of |= {json.loads(line)["question"]: json.loads(line)["answer"]}
    assert len(docs) > 1000 and {doc["label"] for doc in docs} == {0, 1, 2, 3}
    for doc in docs:
        assert len(set(doc["choices"])) == 4
        assert [choice == answers_of[doc["question"]] for choice in doc["choices"]].index(True) == doc["label"]


def test_the_example_of_the_readme(
    tiny_pte: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(__file__).parents[1] / "docs/quality.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mytasks").mkdir()
    for name in ("mytasks/capitals.yaml", "mytasks/capitals.jsonl"):
        (block,) = re.findall(rf"`{name}`:\n\n((?:    .*\n)+)", readme)
        Path(name).write_text(textwrap.dedent(block))
    found = answered(tiny_pte, Path("mytasks"), "--tasks", "capitals", "--chat", capsys=capsys)
    assert found["results"]["capitals"]["acc,none"] == 1


def test_refusals(tiny_pte: Path, include: Path) -> None:
    for arguments, sentence in (
        (["phi4-tiny", "--tasks", "tiny_choice"], "phi4-tiny is not a .pte"),
        ([str(tiny_pte), "--tasks", "tiny_chioce"], "has no task 'tiny_chioce'"),
        ([str(tiny_pte), "--tasks", "tiny_choice", "--parallel", "0"], "--parallel must be at least 1"),
        ([str(tiny_pte), "--tasks", "tiny_choice", "--limit", "0"], "--limit must be at least 1"),
        ([str(tiny_pte), "--tasks", "tiny_choice", "--window", "64"], "--window is not for --tasks"),
        ([str(tiny_pte), "--tasks", "tiny_choice", "--speed"], "--speed is not for --tasks"),
        ([str(tiny_pte)], "--include is for --tasks"),
    ):
        with pytest.raises(BadInput, match=sentence):
            door.main([*arguments, "--include", str(include)])


def test_only_what_is_new_is_fed(tiny_pte: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering, fed = answers.Answering(tiny_pte), list[int]()
    step = answering.running.session.step
    monkeypatch.setattr(answering.running.session, "step", lambda ids, at: fed.append(len(ids)) or step(ids, at))
    context = tuple(range(100, 180))
    first = answering.likelihood(answers.Continuation(context, (7, 8, 9)))
    assert sum(fed) == 82
    fed.clear()
    other = answering.likelihood(answers.Continuation(context, (7, 9, 8)))
    assert sum(fed) == 3  # the last of the context, whose logits are needed, and what follows
    alone = answers.Answering(tiny_pte)
    assert alone.likelihood(answers.Continuation(context, (7, 9, 8)))[0] == pytest.approx(other[0], abs=1e-3)
    assert first[0] != other[0]

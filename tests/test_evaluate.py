"""export.evaluate: its numbers are transformers' on the float32 export, and a file or a text that is wrong shows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from checkpoints.errors import BadInput
from checkpoints.source import resolve
from checkpoints.texts import find_texts
from export import evaluate as door
from export.engine.session import Session
from export.engine.tokenizer import Tokenizer, load_tokenizer
from export.evaluate import evaluate
from export.evaluation.chart import draw, front
from export.evaluation.evaluate import Evaluated, Evaluation, Quality, cut, evaluate_texts
from export.evaluation.models import FileModel, Logits
from export.evaluation.scores import Estimate, Scored, difference, estimate, score
from export.evaluation.speed import Speed, measure_speed
from export.pte import export_pte

TINY = resolve("phi4-tiny").folder
TEXT = TINY / "heldout.txt"


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """phi4-tiny in float32, with its cache: what transformers computes."""
    out = tmp_path_factory.mktemp("exact") / "exact.pte"
    options: dict[str, Any] = {"context": 256, "prefill_chunk": 32, "quantize": False, "kv_cache": "fp32"}
    return export_pte("phi4-tiny", out=out, verify=False, **options).path


def test_perplexity_is_that_of_transformers(exact: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    tokenizer = load_tokenizer(TINY / "tokenizer.json")
    windows = cut({"text": TEXT.read_text(encoding="utf-8")}, tokenizer, 100, 3)
    with torch.no_grad():
        ids = torch.tensor([window for _, window in windows])
        expected = float(model(input_ids=ids, labels=ids).loss)  # the mean over all predicted tokens
    found = evaluate([str(exact), "phi4-tiny"], "phi4-tiny", text=[TEXT], window=100, limit=3)
    for one in found.models:
        assert one.quality.nll.value == pytest.approx(expected, abs=1e-5)
        assert one.quality.perplexity.value == pytest.approx(math.exp(expected), rel=1e-5)
        assert one.quality.kl is not None and one.quality.kl.value == pytest.approx(0, abs=1e-6)
        assert one.quality.top1 is not None and one.quality.top1.value == 1
    assert (found.windows, found.tokens) == (3, 297)


def test_rounding_shows(tiny_pte: Path, exact: Path) -> None:
    found = evaluate([str(exact), str(tiny_pte)], str(exact), window=64, limit=1)
    assert found.texts == list(find_texts("evaluation"))
    first, rounded = found.models
    assert first.quality.kl is not None and first.quality.kl.value == 0
    assert rounded.quality.kl is not None and 1e-3 < rounded.quality.kl.value < 1
    assert rounded.more_kl is not None and rounded.more_kl.value == pytest.approx(rounded.quality.kl.value)
    assert rounded.quality.top1 is not None and 0.5 < rounded.quality.top1.value < 1
    assert all(model.control_passed for model in found.models)
    assert found.reference == "exact.pte" and [model.bytes for model in found.models] == [
        path.stat().st_size for path in (exact, tiny_pte)
    ]


class Table:
    """A model of a table of logits: of each token, by the token before alone."""

    name, size, context = "table", 1, 512

    def __init__(self, logits: Tensor, tokenizer: Tokenizer) -> None:
        self.table, self.tokenizer, self.vocab_size = logits, tokenizer, len(logits)

    @contextmanager
    def loaded(self) -> Iterator[Logits]:
        yield lambda ids: self.table[list(ids)]


def test_a_shuffled_model_is_at_chance() -> None:
    tokenizer = load_tokenizer(TINY / "tokenizer.json")
    text = {"text": TEXT.read_text(encoding="utf-8")}
    counts = torch.zeros(2048, 2048)
    for _, ids in cut(text, tokenizer, 512, None):
        for one, other in pairwise(ids):
            counts[one, other] += 1
    logits = (counts + 1e-3).log()
    shuffled = logits[:, torch.randperm(2048, generator=torch.Generator().manual_seed(0))]
    knowing, ignorant = (
        evaluate_texts([Table(table, tokenizer)], None, text, 512, 4).models[0] for table in (logits, shuffled)
    )
    assert knowing.control_passed and knowing.quality.nll.value < 3
    assert not ignorant.control_passed and ignorant.quality.nll.value > knowing.shuffled_least


def test_the_mean_over_all_orders() -> None:
    """Against shuffling for real."""
    generator = torch.Generator().manual_seed(1)
    logits, ids = torch.randn(40, 16, generator=generator), torch.randint(16, (40,), generator=generator)
    found = score("text", ids.tolist(), logits, None)
    labels, expected = ids[1:], []
    for _ in range(4000):
        order = labels[torch.randperm(39, generator=generator)]
        expected.append(torch.nn.functional.cross_entropy(logits[:-1], order, reduction="sum"))
    assert found.chance == pytest.approx(float(torch.stack(expected).mean()), rel=2e-3)
    assert found.nll == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits[:-1], labels, reduction="sum")), rel=1e-5
    )
    entropy = torch.distributions.Categorical(labels.bincount(minlength=16).float()).entropy()
    assert found.entropy == pytest.approx(float(entropy) * 39, rel=1e-5)


def test_errors_are_those_of_repeated_samples() -> None:
    """The standard error against the spread of the estimate over many samples of windows of differing size."""
    generator = torch.Generator().manual_seed(0)

    def sample() -> list[Scored]:
        sizes = torch.randint(50, 500, (60,), generator=generator).tolist()
        means = (torch.randn(60, generator=generator) + 5).tolist()
        return [Scored("a", size, size * mean, 0, 0) for size, mean in zip(sizes, means, strict=True)]

    found = [estimate(sample(), lambda window: window.nll) for _ in range(400)]
    values = torch.tensor([one.value for one in found])
    errors = torch.tensor([one.error for one in found])
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.1)
    ones = sample()
    others = [Scored("a", one.tokens, one.nll + 0.1 * one.tokens, 0, 0) for one in ones]
    paired = difference(others, ones, lambda window: window.nll)
    assert (
        paired.value == pytest.approx(0.1) and paired.low == pytest.approx(0.1) and paired.high == pytest.approx(0.1)
    )


def test_command(tiny_pte: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chart = tmp_path / "chart.png"
    arguments = [str(tiny_pte), "--checkpoint", "phi4-tiny", "--window", "32", "--limit", "1"]
    assert door.main([*arguments, "--chart", str(chart), "--speed"]) == 0
    printed = capsys.readouterr().out
    assert "control passed" in printed and "glossary" in printed
    assert "decoding after 247 tokens" in printed  # the context is 256, and nine steps are taken
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert door.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["models"][0]["quality"]["kl"]["value"] > 0 and found["models"][0]["by_text"].keys() == set(
        found["texts"]
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"window": 1}, "--window must be at least 2, it is 1"),
        ({"limit": 0}, "--limit must be at least 1, it is 0"),
        ({"window": 300}, "windows of 300 tokens do not fit tiny.pte, whose context is 256"),
        ({"text": ["short.txt"], "window": 32}, "short.txt has 1 tokens"),
        ({"text": ["none.txt"]}, "none.txt cannot be read"),
        ({"chart": "chart.jpeg"}, "--chart chart.jpeg does not end in .png, .svg or .pdf"),
        ({"chart": "no/chart.png"}, "--chart no/chart.png: the folder .* does not exist"),
    ],
)
def test_refusals(tiny_pte: Path, tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    (tmp_path / "short.txt").write_text("a")
    if "text" in options:
        options = options | {"text": [tmp_path / name for name in options["text"]]}
    with pytest.raises(BadInput, match=sentence):
        evaluate([str(tiny_pte)], **options)


def test_speed_steps_where_it_says(tiny_pte: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token at a time from the stated position on, in turns."""
    steps: list[tuple[Path, int, int]] = []
    step = Session.step

    def listening(session: Session, tokens: Sequence[int], start_pos: int) -> Tensor:
        steps.append((session.path, len(tokens), start_pos))
        return step(session, tokens, start_pos)

    monkeypatch.setattr(Session, "step", listening)
    files = [FileModel(tiny_pte), FileModel(tiny_pte)]
    found = measure_speed(files)
    assert len(found) == 2 and all(0 < one.ms <= one.slowest_ms for one in found)
    assert {(one.position, one.tokens, one.turns) for one in found} == {(247, 8, 3)}
    turn = steps[: len(steps) // 6]
    assert turn * 6 == steps and sum(count for _, count, _ in turn) == 256
    assert [(count, at) for _, count, at in turn[-9:]] == [(1, at) for at in range(247, 256)]
    with pytest.raises(BadInput, match="--speed times a .pte, and none is given"):
        evaluate(["phi4-tiny"], window=16, limit=1, speed=True)


def test_the_pareto_front() -> None:
    points = [(3.0, 1.0), (1.0, 5.0), (2.0, 2.0), (2.5, 2.0), (2.0, 4.0), (1.0, 6.0), (4.0, 1.0)]
    assert front(points) == [(1.0, 5.0), (2.0, 2.0), (3.0, 1.0)]
    for x, y in points:  # by the definition
        beaten = any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
        assert ((x, y) in front(points)) == (not beaten)


def test_labels_do_not_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six models close to each other, as matplotlib draws them."""
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self) or save(self, *a, **k))
    one = Estimate(1.0, 0.05)
    models = [
        Evaluated(
            name=f"a-model-with-a-long-name-{number}.pte",
            bytes=int(1e8 + 4e6 * number),
            quality=Quality(one, one, Estimate(0.5 + 0.02 * (number % 3), 0.01), one),
            by_text={},
            shuffled_nll=1.0,
            shuffled_least=1.0,
            control_passed=True,
            more_nll=None,
            more_kl=None,
            speed=Speed(256, 8, 3, 10 + number % 2, 12),
        )
        for number in range(6)
    ]
    draw(Evaluation("reference", 512, 4, 2044, ["text"], models), tmp_path / "chart.png")
    panels = figures[0].axes
    assert len(panels) == 2
    for axes in panels:
        labels = [child for child in axes.get_children() if isinstance(child, Annotation)]
        boxes = [label.get_window_extent() for label in labels]
        assert len(boxes) == 6
        for number, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:number]), labels[number].get_text()

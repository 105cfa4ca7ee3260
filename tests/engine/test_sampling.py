"""Choosing a token: transformers' processors keep the same tokens and give them the same probabilities."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from checkpoints.errors import BadInput
from export.engine.choosing import Choosing
from export.engine.sampling import Sampler, kept, likeliest, log_softmax

VOCAB = 3000
PROMPT = [5, 7, 7, 250]
ANSWER = [9, 5, 9, 9]
ASKED = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 1.7, "top_k": 20},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 1000},
    {"temperature": 0.8, "top_p": 0.7},
    {"temperature": 5.0, "top_p": 0.99},
    {"temperature": 1.0, "top_p": 0.0},
    {"temperature": 1.3, "min_p": 0.05},
    {"temperature": 1.1, "top_k": 50, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 0.9, "repetition_penalty": 1.4, "top_p": 0.95},
    {"temperature": 1.0, "repetition_penalty": 0.7},
    {"temperature": 1.0, "logit_bias": {3: 9.0, 5: -4.5}, "repetition_penalty": 1.2, "top_k": 10},
]


def logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, VOCAB).astype(np.float32)


def expected(scores: np.ndarray, asked: dict[str, Any]) -> np.ndarray:
    """Probabilities of every token by transformers, in the order of its `generate`."""
    steps = theirs.LogitsProcessorList()
    if bias := asked.get("logit_bias"):
        steps.append(theirs.SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()]))
    if penalty := asked.get("repetition_penalty"):
        steps.append(theirs.RepetitionPenaltyLogitsProcessor(penalty))
    steps.append(theirs.TemperatureLogitsWarper(asked["temperature"]))
    if "top_k" in asked:
        steps.append(theirs.TopKLogitsWarper(asked["top_k"]))
    if "top_p" in asked:
        steps.append(theirs.TopPLogitsWarper(asked["top_p"]))
    if "min_p" in asked:
        steps.append(theirs.MinPLogitsWarper(asked["min_p"]))
    found = steps(torch.tensor([PROMPT + ANSWER]), torch.tensor(scores[None]))
    return found.softmax(-1)[0].numpy()


def sampler(asked: Choosing) -> Sampler:
    made = Sampler(asked, PROMPT, VOCAB)
    for token in ANSWER:
        made.took(token)
    return made


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tokens_and_probabilities_are_transformers(asked: dict[str, Any], seed: int) -> None:
    choosing = Choosing(**asked)
    tokens, probabilities = kept(sampler(choosing)._scores(logits(seed), None), choosing)
    found = np.zeros(VOCAB)
    found[tokens] = probabilities / probabilities.sum()
    np.testing.assert_allclose(found, expected(logits(seed), asked), atol=1e-6)


def test_choices_come_as_often_as_they_are_likely() -> None:
    asked = {"temperature": 1.5, "top_k": 12, "repetition_penalty": 1.3}
    drawing = sampler(Choosing(**asked, seed=4))
    draws = 20000
    counts = Counter(drawing.choose(logits(3)) for _ in range(draws))
    found = np.array([counts[token] / draws for token in range(VOCAB)])
    np.testing.assert_allclose(found, expected(logits(3), asked), atol=0.015)


def test_seeds() -> None:
    def drawn(seed: int | None) -> list[int]:
        drawing = sampler(Choosing(temperature=2.0, seed=seed))
        return [drawing.choose(logits(at)) for at in range(20)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(None) != drawn(None)


def test_penalties_of_openai() -> None:
    """The formula of OpenAI's reference: logits less count * frequency and, where there is one, presence."""
    scores = logits(5)
    found = sampler(Choosing(frequency_penalty=0.5, presence_penalty=-1.5))._scores(scores, None)
    counts = Counter(ANSWER)
    wanted = [value - 0.5 * counts[token] + 1.5 * (token in counts) for token, value in enumerate(scores)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_likeliest_follows_bias_penalties_and_mask() -> None:
    scores = logits(6)
    order = np.argsort(-scores)
    first, second, third = (int(token) for token in order[:3])
    assert Sampler(Choosing(top_k=3, seed=1), [], VOCAB).choose(scores) == first
    assert Sampler(Choosing(logit_bias={first: -100}), [], VOCAB).choose(scores) == second
    assert Sampler(Choosing(repetition_penalty=100), [first], VOCAB).choose(scores) == second
    allowed = np.zeros(VOCAB, bool)
    allowed[[third, int(order[-1])]] = True
    assert Sampler(Choosing(logit_bias={first: 100}), [], VOCAB).choose(scores, allowed) == third
    drawing = Sampler(Choosing(temperature=100, seed=0), [], VOCAB)
    assert {drawing.choose(scores, allowed) for _ in range(50)} == {third, int(order[-1])}
    np.testing.assert_array_equal(scores, logits(6), "given logits are not changed")


def test_log_probabilities() -> None:
    scores = logits(7)
    found = log_softmax(scores)
    np.testing.assert_allclose(found, torch.tensor(scores).double().log_softmax(-1).numpy(), atol=1e-9)
    assert likeliest(found, 5) == torch.tensor(scores).topk(5).indices.tolist()
    assert likeliest(found, 0) == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": -0.1}, "temperature -0.1 is not within 0 to 100"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 1.01}, "top_p 1.01 is not within 0 to 1"),
        ({"min_p": 2}, "min_p 2"),
        ({"presence_penalty": 3}, "presence_penalty 3"),
        ({"frequency_penalty": -3}, "frequency_penalty -3"),
        ({"repetition_penalty": 0}, "repetition_penalty 0 is not above 0"),
        ({"max_tokens": -1}, "max_tokens -1 is below 0"),
        ({"top_k": -1}, "top_k -1 is below 0"),
        ({"seed": -1}, "seed -1 is below 0"),
        ({"logprobs": 21}, "logprobs 21 is not within 0 to 20"),
        ({"stop": ("x", "")}, "a stop string is empty"),
        ({"logit_bias": {3: float("inf")}}, "logit_bias of token 3 is inf"),
        ({"schema": "xml"}, 'neither a JSON schema .* nor "json"'),
    ],
    ids=str,
)
def test_what_no_model_can_follow_is_refused_by_name(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Choosing(**fields).check()


def test_a_bias_of_no_token_is_refused() -> None:
    with pytest.raises(BadInput, match=f"logit_bias is for token {VOCAB}, the tokenizer has {VOCAB}"):
        Sampler(Choosing(logit_bias={VOCAB: 1.0}), [], VOCAB)

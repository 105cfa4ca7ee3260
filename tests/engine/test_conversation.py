"""A conversation in both engines: the answers of a file fed from nothing, whatever the KV cache held before."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from os.path import commonprefix
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints.errors import BadInput
from export.engine import feeder as feeders
from export.engine.chat_template import chat_prompt
from export.engine.conversation import Choosing, Conversation, Piece, Reply, open_conversation
from export.engine.runner import read_facts
from export.engine.session import Session
from export.engine.tokenizer import load_tokenizer
from tests.engine.native import need_compiler

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."
LONG = "A cat sat on the mat and looked at the moon. " * 8  # several chunks of the prompt


@pytest.fixture(scope="module", params=["ours", "wheel"])
def talk(request: pytest.FixtureRequest, tiny_pte: Path) -> Iterator[Conversation]:
    if request.param == "ours":
        need_compiler()
    conversation = open_conversation(tiny_pte, engine=request.param)
    yield conversation
    conversation.close()


@pytest.fixture(scope="module")
def reference(tiny_pte: Path) -> Session:
    return Session(tiny_pte)


def greedy(session: Session, ids: list[int], most: int) -> tuple[list[int], list[torch.Tensor]]:
    """Tokens and logits of an answer from nothing, with a loop that knows no cache of prompts."""
    stops, at, new, rows = session.constant("get_eos_ids"), 0, list[int](), list[torch.Tensor]()
    assert isinstance(stops, list)
    while len(new) < most:
        fed = [*ids, *new]
        for begin in range(at, len(fed), 32):
            row = session.step(fed[begin : min(begin + 32, len(fed))], begin)[-1]
        at = len(fed)
        if int(row.argmax()) in stops:
            break
        new.append(int(row.argmax()))
        rows.append(row)
    return new, rows


def turns(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


def test_an_answer_comes_in_pieces_and_ends_at_a_stop_id(
    talk: Conversation, tiny_pte: Path, reference: Session
) -> None:
    pieces = list[Piece]()
    reply = talk.reply(FRANCE, on_piece=pieces.append)
    assert reply.text == "".join(piece.text for piece in pieces) == PARIS
    assert len(pieces) > 3
    assert (reply.end, reply.stop_text, reply.tool_calls) == ("stop", None, ())
    ids = talk.tokenizer.encode(chat_prompt(tiny_pte.parent, FRANCE))
    assert reply.prompt_tokens == talk.count(FRANCE) == len(ids)
    assert reply.new_tokens == len(greedy(reference, ids, 100)[0])


def test_what_prompts_have_in_common_is_fed_once(talk: Conversation, reference: Session) -> None:
    def fed(messages: list[dict[str, Any]], most: int = 6) -> int:
        ids, held = talk._ids(messages, None), talk.held
        reply = talk.reply(messages, Choosing(max_tokens=most))
        assert reply.fed_tokens == max(1, len(ids) - len(commonprefix([ids, held])))  # noqa: RUF071  of lists
        assert talk.tokenizer.encode(reply.text) == greedy(reference, ids, most)[0], "as from nothing"
        return reply.fed_tokens

    count = talk.count
    talk.reset()
    assert talk.held == []
    assert fed(turns(LONG)) == count(turns(LONG)) > 96
    assert fed(turns(LONG)) == 1, "all of it is there: only the last token is fed for its logits"
    answer = talk.reply(turns(LONG), Choosing(max_tokens=6)).text
    more = turns(LONG, answer, "And then?")
    assert fed(more) <= count(more) - count(turns(LONG)) - 5, "the answer is there too, but for its last token"
    edited = turns(LONG.replace("moon. A cat", "sun. A dog", 1), answer, "And then?")
    assert count(edited) - 60 < fed(edited, 3) < count(edited), "after an edit in the middle the beginning is left"
    assert fed(turns(LONG[:90])) < count(turns(LONG[:90])) - 10, "a shorter prompt"
    assert fed(turns("Why?")) <= 5, "all prompts begin alike"


def test_cancelled_answers_leave_a_usable_cache(talk: Conversation, reference: Session) -> None:
    talk.reset()
    pieces = list[Piece]()

    def cancel(piece: Piece) -> None:
        pieces.append(piece)
        if len(pieces) == 2:
            talk.cancel()

    reply = talk.reply(FRANCE, on_piece=cancel)
    assert (reply.end, reply.new_tokens) == ("cancelled", 2)
    assert PARIS.startswith(reply.text) and reply.text
    whole = talk.reply(FRANCE)
    assert (whole.text, whole.fed_tokens, whole.end) == (PARIS, 1, "stop")

    # from another thread, while the prompt is fed: it ends at a chunk, and what was fed of it is not fed again
    talk.reset()
    feed, begun, go = talk.feeder.feed, threading.Event(), threading.Event()

    def slow(ids: list[int]) -> np.ndarray:
        begun.set()
        assert go.wait(10)
        return feed(ids)

    replies = list[Reply]()
    thread = threading.Thread(target=lambda: replies.append(talk.reply(turns(LONG))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(talk.feeder, "feed", slow)
        thread.start()
        assert begun.wait(10)
        with pytest.raises(BadInput, match="answering already"):
            talk.reply(FRANCE)
        assert talk.held == [], "may be asked meanwhile"
        talk.cancel()
        go.set()
        thread.join(10)
    assert (replies[0].end, replies[0].text, replies[0].new_tokens) == ("cancelled", "", 0)
    assert talk.held == talk._ids(turns(LONG), None)[:32]
    assert talk.reply(turns(LONG), Choosing(max_tokens=1)).fed_tokens == talk.count(turns(LONG)) - 32


def test_an_exception_of_the_listener_ends_the_answer(talk: Conversation) -> None:
    def leave(piece: Piece) -> None:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        talk.reply(FRANCE, on_piece=leave)
    assert talk.reply(FRANCE).text == PARIS


def test_where_answers_end(talk: Conversation) -> None:
    cut = talk.reply(FRANCE, Choosing(max_tokens=3))
    assert (cut.end, cut.new_tokens) == ("length", 3) and PARIS.startswith(cut.text)
    nothing = talk.reply(FRANCE, Choosing(max_tokens=0))
    assert (nothing.end, nothing.text) == ("length", "") and len(talk.held) == nothing.prompt_tokens
    for stop, left in [("of Fra", "The capital "), ("Paris", "The capital of France is "), ("T", "")]:
        pieces = list[Piece]()
        stopped = talk.reply(FRANCE, Choosing(stop=("nowhere", stop)), on_piece=pieces.append)
        assert (stopped.text, stopped.end, stopped.stop_text) == (left, "stop", stop)
        assert "".join(piece.text for piece in pieces) == left
    assert talk.reply(FRANCE, Choosing(stop=("Paris.!",))).text == PARIS, "held back, and let out at the end"


def test_a_full_context(tiny_pte: Path) -> None:
    small = open_conversation(tiny_pte, engine="wheel", context=15)
    count = small.count(FRANCE)
    reply = small.reply(FRANCE)
    assert (reply.end, reply.new_tokens, small.context) == ("context", 15 - count, 15)
    with pytest.raises(BadInput, match=rf"the prompt has {small.count(turns(LONG))} tokens, the context is 15"):
        small.reply(turns(LONG))
    with pytest.raises(BadInput, match="context of 257 tokens is not within 2 to the 256 of"):
        open_conversation(tiny_pte, engine="wheel", context=257)


def test_log_probabilities_are_the_models(talk: Conversation, reference: Session) -> None:
    ids = talk._ids(FRANCE, None)
    wanted, rows = greedy(reference, ids, 100)
    pieces = list[Piece]()
    talk.reset()  # tokens fed one by one and at once give logits that differ by rounding
    asked = Choosing(logprobs=3, temperature=0.5, top_k=1, logit_bias={5: -3.0})
    reply = talk.reply(FRANCE, asked, on_piece=pieces.append)
    assert [one.token_id for one in reply.logprobs] == wanted
    assert [one for piece in pieces for one in piece.logprobs] == list(reply.logprobs)
    assert b"".join(one.bytes for one in reply.logprobs).decode() == PARIS
    for one, row in zip(reply.logprobs, rows, strict=True):
        theirs = row.log_softmax(-1)
        assert one.logprob == pytest.approx(float(theirs[one.token_id]), abs=1e-4)
        assert [other.token_id for other in one.top] == theirs.topk(3).indices.tolist()
    stopped = talk.reply(FRANCE, Choosing(logprobs=0, stop=(" Paris",)))
    assert b"".join(one.bytes for one in stopped.logprobs).decode() == "The capital of France is"
    assert all(one.top == () for one in stopped.logprobs)


def test_completions(talk: Conversation, reference: Session) -> None:
    text = "<|user|>What is the capital of France?<|end|><|assistant|>"
    ids = talk.tokenizer.encode(text)
    assert talk.complete(text).text == talk.complete(ids).text == PARIS
    echoed = talk.complete(text, Choosing(logprobs=1, max_tokens=2), echo=True)
    assert echoed.text == text + "The capital"
    assert [one.token_id for one in echoed.logprobs[: len(ids)]] == ids
    assert math.isnan(echoed.logprobs[0].logprob)
    row = reference.step(ids[:5], 0)[-1].log_softmax(-1)
    assert echoed.logprobs[5].logprob == pytest.approx(float(row[ids[5]]), abs=1e-4)


@pytest.mark.parametrize(
    ("ids", "words"), [([], "the prompt is empty"), ([3, 99999], "the prompt has token 99999"), ([-1], "token -1")]
)
def test_prompts_that_cannot_be_fed(talk: Conversation, ids: list[int], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        talk.complete(ids)


def test_seeds_and_penalties_reach_the_choice(talk: Conversation) -> None:
    def said(**asked: Any) -> str:
        talk.reset()
        return talk.reply(FRANCE, Choosing(max_tokens=12, **asked)).text

    assert said(temperature=3.0, seed=5) == said(temperature=3.0, seed=5) != said(temperature=3.0, seed=6)
    assert said(temperature=3.0, seed=5, top_k=1) == said() == PARIS
    talk.reset()
    fresh, again = (talk.reply(FRANCE, Choosing(max_tokens=12, temperature=1.5, seed=5)) for _ in range(2))
    assert fresh.text == again.text and again.fed_tokens == 1, "rounding of logits seldom changes a choice"
    one, other = (talk.tokenizer.encode(text)[0] for text in "ab")
    biased = {"logit_bias": {one: 1000.0, other: 900.0}, "max_tokens": 2}
    assert talk.reply(FRANCE, Choosing(**biased)).text == "aa"
    assert talk.reply(FRANCE, Choosing(**biased, repetition_penalty=100)).text == "ab"
    first = talk.tokenizer.encode(PARIS)[0]
    assert not said(logit_bias={first: -100}).startswith("The")


def test_the_engine_without_being_asked(tiny_pte: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert isinstance(open_conversation(tiny_pte, packed=tmp_path / "x").feeder, feeders.WheelFeeder)
    with pytest.raises(BadInput, match="packed weights are kept by our engine only"):
        open_conversation(tiny_pte, engine="wheel", packed=tmp_path / "x")
    with pytest.raises(BadInput, match="a number of threads is for our engine"):
        open_conversation(tiny_pte, engine="wheel", threads=2)
    monkeypatch.delenv("CXX")
    need_compiler()
    with (
        open_conversation(tiny_pte, packed=tmp_path / "packed") as one,
        open_conversation(tiny_pte, packed=tmp_path / "packed") as two,
    ):
        assert isinstance(one.feeder, feeders.NativeFeeder) and isinstance(two.feeder, feeders.NativeFeeder)
        assert two.feeder.loaded.packing.name == "REUSED"
        assert one.reply(FRANCE).text == two.reply(FRANCE).text == PARIS


CALL = '{"name": "f", "arguments": {"a": "é"}}'


class Scripted:
    """In the place of an engine: gives a text, token by token, whatever it is fed."""

    def __init__(self, ids: list[int], prompt: int, vocab_size: int) -> None:
        self.chunk, self.held, self.mode = 256, list[int](), "text"
        self._ids, self._prompt, self._size = ids, prompt, vocab_size

    def feed(self, ids: list[int]) -> np.ndarray:
        self.held, logits = list(ids), np.zeros(self._size, np.float32)
        logits[self._ids[len(ids) - self._prompt]] = 1
        return logits

    def ready(self, mode: str) -> None:
        pass

    def reset(self) -> None:
        self.held = []

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("said", "text", "calls", "end"),
    [
        (f"Well <|tool_call|>[{CALL}]<|/tool_call|>", "Well ", [("f", '{"a": "é"}')], "tool_calls"),
        (f"functools[{CALL}]", "", [("f", '{"a": "é"}')], "tool_calls"),
        ('functools[{"name": "f", "argum', 'functools[{"name": "f", "argum', [], "stop"),
        ("An emoji 👩\u200d💻 in é parts", "An emoji 👩\u200d💻 in é parts", [], "stop"),
    ],
    ids=["special", "functools", "broken", "emoji"],
)  # fmt: skip
def test_calls_and_characters_come_whole(
    said: str, text: str, calls: list[tuple[str, str]], end: str, tiny_pte: Path
) -> None:
    tokenizer, facts = load_tokenizer(tiny_pte.parent / "tokenizer.json"), read_facts(tiny_pte)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    prompt = len(tokenizer.encode(chat_prompt(tiny_pte.parent, FRANCE, tools)))
    script = [*tokenizer.encode(said), min(facts.eos_ids)]
    talk = Conversation(Scripted(script, prompt, tokenizer.vocab_size), tokenizer, tiny_pte.parent, facts)
    pieces = list[Piece]()
    reply = talk.reply(FRANCE, tools=tools, on_piece=pieces.append)
    assert (reply.text, reply.end) == (text, end)
    assert [(call.name, call.arguments) for call in reply.tool_calls] == calls
    assert [call for piece in pieces for call in piece.tool_calls] == list(reply.tool_calls)
    assert "".join(piece.text for piece in pieces) == text and "\ufffd" not in text
    assert reply.new_tokens == len(script) - 1

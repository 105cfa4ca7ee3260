"""Answers that follow a schema: a model that knows no JSON still writes it, and jsonschema agrees."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from checkpoints.errors import BadInput
from export.engine.conversation import Choosing, Conversation, open_conversation
from export.engine.structure import Structure, structure_words
from export.engine.tokenizer import load_tokenizer
from tests.engine.test_tokenizer import FORMATS, TEXTS, files  # noqa: F401  a fixture
from tests.tools import need

ASKED = [{"role": "user", "content": "What is the capital of France?"}]
TEXT = {"type": "string", "maxLength": 12}
SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {"city": TEXT, "people": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["city", "people"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"enum": ["a", "é", "\\"]}, "minItems": 2, "maxItems": 3},
    {"type": "boolean"},
    {"$defs": {"leaf": {"const": "end"}}, "anyOf": [{"$ref": "#/$defs/leaf"}, {"type": "null"}]},
    {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"},
    {
        "type": "object",
        "properties": {"kind": {"enum": ["x", "y"]}, "inner": {"type": "object", "properties": {"a": TEXT}}},
        "required": ["kind"],
        "additionalProperties": False,
    },
]


@pytest.fixture(scope="module")
def talk(tiny_pte: Path) -> Iterator[Conversation]:
    try:
        import llguidance  # noqa: F401
    except ImportError:
        need("structured", ["llguidance"], "uv sync --extra")
    with open_conversation(tiny_pte, engine="wheel") as conversation:
        yield conversation


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
@pytest.mark.parametrize("temperature", [0.0, 2.0, 5.0])
def test_answers_follow_the_schema(schema: dict[str, Any], temperature: float, talk: Conversation) -> None:
    for seed in range(4):
        pieces = list[str]()
        asked = Choosing(temperature=temperature, seed=seed, schema=schema, max_tokens=120)
        reply = talk.reply(ASKED, asked, on_piece=lambda piece, out=pieces: out.append(piece.text))
        if reply.end == "length":  # an inner object may have any names
            assert "inner" in reply.text
            continue
        assert reply.end == "stop"
        jsonschema.validate(json.loads(reply.text), schema)
        assert "".join(pieces) == reply.text


def test_any_object(talk: Conversation) -> None:
    quote, close = (talk.tokenizer.encode(mark)[0] for mark in '"}')  # else it would seldom end
    ended = set()
    for seed in range(12):
        asked = Choosing(
            temperature=1.5, seed=seed, schema="json", max_tokens=60, logit_bias={quote: 8.0, close: 8.0}
        )
        reply = talk.reply(ASKED, asked)
        assert reply.text.startswith("{")
        ended.add(reply.end)
        if reply.end == "stop":
            assert isinstance(json.loads(reply.text), dict)
        else:
            assert (reply.end, reply.new_tokens) == ("length", 60)
    assert "stop" in ended


def test_an_answer_that_is_cut_says_so(talk: Conversation) -> None:
    reply = talk.reply(ASKED, Choosing(schema=SCHEMAS[0], max_tokens=4))
    assert (reply.end, reply.new_tokens) == ("length", 4)
    assert reply.text.startswith('{"ci')


def test_without_a_schema_the_model_writes_no_json(talk: Conversation) -> None:
    assert not talk.reply(ASKED).text.startswith("{")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "sting"}, "the schema cannot be followed: .*sting"),
        ({"type": "string", "pattern": "("}, "the schema cannot be followed"),
        (
            {"type": "object", "unevaluatedProperties": False},
            "the schema cannot be followed: .*unevaluatedProperties",
        ),
        ({"$ref": "#/nowhere"}, "the schema cannot be followed"),
        ({"enum": [{1, 2}]}, "the schema is not JSON"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "the schema cannot be followed"),
    ],
    ids=str,
)
def test_schemas_that_cannot_be_followed(schema: dict[str, Any], words: str, talk: Conversation) -> None:
    before = talk.held
    with pytest.raises(BadInput, match=words):
        talk.reply(ASKED, Choosing(schema=schema))
    assert talk.held == before, "nothing is fed"


def test_tools_and_a_schema(talk: Conversation) -> None:
    with pytest.raises(BadInput, match="tools and a schema cannot be given at once"):
        talk.reply(ASKED, Choosing(schema="json"), tools=[{"name": "x"}])


def test_the_line_that_installs_it(talk: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.setattr(talk, "_words", None)
    with pytest.raises(BadInput, match="uv sync --extra structured"):
        talk.reply(ASKED, Choosing(schema="json"))


@pytest.mark.parametrize("kind", FORMATS)
def test_tokens_of_every_format(kind: str, files: dict[str, Path], talk: Conversation) -> None:  # noqa: F811
    """Bytes of tokens are those of the text they were made of, and what is made of them where one text alone
    follows the schema is that text."""
    tokenizer = load_tokenizer(files[kind])
    for text in TEXTS:
        spelled = b"".join(map(tokenizer.token_bytes, tokenizer.encode(text)))
        if kind == "sentencepiece":  # a space in front, and its own for U+2581
            text = " " + text.split("\0")[0].replace("\u2581", " ") if text.split("\0")[0] else ""
        assert spelled.decode() == text
    assert tokenizer.token_bytes(-1) == tokenizer.token_bytes(tokenizer.vocab_size) == b""
    stop = max(tokenizer.special.values())
    words, value = structure_words(tokenizer, [stop]), {"é 😀": ["\n", 1.5], "▁a": None}
    for seed in range(5):
        structure, spelled, rng = Structure(words, {"const": value}), b"", np.random.default_rng(seed)
        whole = False
        while not whole:
            token = int(rng.choice(np.flatnonzero(structure.allowed())))
            assert token != stop
            spelled += tokenizer.token_bytes(token)
            whole = structure.took(token)
        assert json.loads(spelled) == value

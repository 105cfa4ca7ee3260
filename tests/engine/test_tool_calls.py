"""Stop strings and calls of tools in a stream: however it is cut into pieces, the result is that of the whole."""

from __future__ import annotations

import itertools
import json
import random
import re

import pytest

from export.engine.tool_calls import ToolCall, ToolCalls
from export.engine.visible import StopText

WEATHER = ToolCall("weather", '{"city": "Paris"}')
TIME = ToolCall("time", "{}")
ONE = '{"name": "weather", "arguments": {"city": "Paris"}}'
BOTH = f'[{ONE}, {{"name": "time", "arguments": {{}}}}]'

ANSWERS: list[tuple[str, str, list[ToolCall]]] = [
    (f"functools[{ONE}]", "", [WEATHER]),
    (f"functools {BOTH}", "", [WEATHER, TIME]),
    (f"<|tool_call|>{BOTH}<|/tool_call|>", "", [WEATHER, TIME]),
    (f"<|tool_call|>{ONE}<|/tool_call|>", "", [WEATHER]),
    (f"<|tool_call|>\n{ONE}\n<|/tool_call|>\n", "", [WEATHER]),
    (f"<|tool_call|>{ONE}", "", [WEATHER]),
    (f"<tool_call>\n{ONE}\n</tool_call>", "", [WEATHER]),
    (f"Let me see. functools[{ONE}]", "Let me see. ", [WEATHER]),
    (f"<|tool_call|>{ONE}<|/tool_call|><|tool_call|>{ONE}<|/tool_call|>", "", [WEATHER, WEATHER]),
    (f"A <|tool_call|>{ONE}<|/tool_call|> B", "A B", [WEATHER]),
    ('functools[{"name": "weather", "parameters": {"city": "Paris"}}]', "", [WEATHER]),
    ('functools[{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}]', "", [WEATHER]),
    ('functools[{"name": "time"}]', "", [TIME]),
    ('functools[{"name": "say", "arguments": {"x": "]}[\\"é\\\\"}}]', "", [ToolCall("say", '{"x": "]}[\\"é\\\\"}')]),
    # none of these is a call, and nothing of them is lost
    *((text, text, []) for text in (
        "functools.partial is in functools",
        "functools[1, 2]",
        "functools[]",
        'functools[{"name": "weather", "arguments": {"city": "Par',
        'functools[{"name": "weather", "arguments": {city}}] so',
        '<|tool_call|>[{"name": "x", "arguments": [1]}]<|/tool_call|>',
        "<|tool_call|>soon",
        "a < b <|tool",
    )),
    (f"functools[1] functools[{ONE}]", "functools[1] ", [WEATHER]),
    (f"functools[{{functools[{ONE}]", "functools[{", [WEATHER]),
]  # fmt: skip


def cuts(text: str, seed: int) -> list[str]:
    rng = random.Random(seed)
    places = sorted({0, len(text), *(rng.randrange(len(text) + 1) for _ in range(rng.randrange(12)))})
    return [text[a:b] for a, b in itertools.pairwise(places)]


def stream(pieces: list[str]) -> tuple[list[str], list[ToolCall]]:
    reader, shown, calls = ToolCalls(), [], []
    for text, found in [*map(reader.push, pieces), reader.rest()]:
        shown.append(text)
        calls += found
    return shown, calls


@pytest.mark.parametrize(("answer", "text", "calls"), ANSWERS, ids=[answer[:60] for answer, *_ in ANSWERS])
def test_any_cut_gives_the_same_text_and_calls(answer: str, text: str, calls: list[ToolCall]) -> None:
    for pieces in [[answer], list(answer), *(cuts(answer, seed) for seed in range(100))]:
        shown, found = stream(pieces)
        assert ("".join(shown), found) == (text, calls), pieces


def test_text_is_held_back_only_while_it_may_become_a_call() -> None:
    reader = ToolCalls()
    assert [reader.push(piece)[0] for piece in ("Hello f", "unny <", "b> ", "functools", ".")] == [
        "Hello ", "funny ", "<b> ", "", "functools.",
    ]  # fmt: skip
    assert ToolCalls().push(f"functools[{ONE}]") == ("", [WEATHER]), "a call is known with its last bracket"


def test_random_answers() -> None:
    """Calls and texts in any order come out in that order, however they are cut."""
    rng = random.Random(3)
    texts = ["", "Well. ", "x < y, functools? ", 'a "quote [', "]}", "<|tool|> "]
    for seed in range(300):
        said, wanted, calls = "", "", []
        for _ in range(rng.randrange(1, 4)):
            text, arguments = (
                rng.choice(texts),
                {rng.choice("abc"): rng.choice([1, "]<|/tool_call|>", None, ["é\n"]])},
            )
            name = rng.choice(["f", "g.h"])
            said += f"{text}<|tool_call|>{json.dumps([{'name': name, 'arguments': arguments}])}<|/tool_call|>"
            wanted += text
            calls.append(ToolCall(name, json.dumps(arguments, ensure_ascii=False)))
        shown, found = stream(cuts(said, seed))
        assert ("".join(shown), found) == (wanted, calls), said


@pytest.mark.parametrize("stops", [("END",), ("END", "EN"), ("\n\n", "\nUser:"), ("aab", "ab"), ("bcd", "c"), ()])
@pytest.mark.parametrize("text", ["an answer END and more", "aaab", "one\n\ntwo\nUser: x", "abcd", "EN", "aa\n", "é"])
def test_any_cut_ends_at_the_same_stop_string(text: str, stops: tuple[str, ...]) -> None:
    ends = [(found.end(), found.start(), stop) for stop in stops if (found := re.search(re.escape(stop), text))]
    _, end, wanted = min(ends, default=(0, len(text), None))
    for pieces in [[text], list(text), *(cuts(text, seed) for seed in range(50))]:
        reader = StopText(stops)
        shown = [reader.push(piece) for piece in pieces] + [reader.rest()]
        assert ("".join(shown), reader.found) == (text[:end], wanted), pieces


def test_text_is_held_back_only_while_it_may_become_a_stop_string() -> None:
    reader = StopText(["\n\nUser:"])
    assert [reader.push(piece) for piece in ("Hi.\n", "there\n\nU", "ser", "s all")] == [
        "Hi.", "\nthere", "", "\n\nUsers all",
    ]  # fmt: skip

"""A conversation with sound, then a picture, then words, by the wheel's runtime, for other engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.bench.contract import MEDIA
from export.engine.feeder import WheelFeeder
from export.engine.runner import read_facts
from export.engine.tokenizer import runner_ids
from export.media.vectors import painted, tone

NEW = 4  # tokens of an answer
TEXTS = {"sound": "What is said?", "picture": " And shown?", "words": " Sure?"}


def make_turns(pte: Path) -> dict[str, Any]:
    """By turns: the text after the sound or picture, and what the session holds once it is answered greedily."""
    facts = read_facts(pte)
    feeder = WheelFeeder(pte, facts.media, facts.context)
    picture, sound = painted(MEDIA["width"], MEDIA["height"]), tone(16000, 2.0, 440.0, 0.5)
    words = {name: runner_ids(pte.with_name("tokenizer.json"), text) for name, text in TEXTS.items()}
    turns = {}
    speech = feeder.sound(sound, 16000, "speech").ids
    said = words["sound"] + _answer(feeder, speech + words["sound"])
    turns["sound"] = speech + said
    beside = feeder.sound(sound, 16000, "vision").ids + said
    seen = feeder.picture(picture).ids + words["picture"]
    turns["picture"] = beside + seen + _answer(feeder, beside + seen)
    turns["words"] = turns["picture"] + words["words"]
    turns["words"] += _answer(feeder, turns["words"])
    # The last token of an answer is never fed.
    return {name: {"text": TEXTS[name], "held": ids[:-1]} for name, ids in turns.items()}


def _answer(feeder: WheelFeeder, ids: list[int]) -> list[int]:
    answer: list[int] = []
    for _ in range(NEW):
        answer.append(int(feeder.feed(ids + answer).argmax()))
    return answer

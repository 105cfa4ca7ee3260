"""A task of the house: the questions that phi4-tiny learned, the right answer among four that differ in one place.

"The capital of France is" Paris, or what is right for three other countries: a model that only copies the question's
words cannot tell them apart. Needs no network. Knows nothing of the harness.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from typing import Any

from checkpoints.source import EMBEDDED, resolve

NAME = "phi4_tiny_facts"
CHOICES = 4
VALUE = re.compile(r"(.* (?:is|speak) )(.+)")  # what an answer says of its subject comes last


def questions() -> list[dict[str, Any]]:
    """`question`, its `choices` and the place of the right one, `label`: the same every time."""
    lines = (resolve(EMBEDDED).folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    kinds: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for line in map(json.loads, lines):
        if said := VALUE.fullmatch(line["answer"]):
            kind = re.sub(r"\d+", "#", " ".join(line["question"].split()[:4]))
            kinds[kind].append((line["question"], said[1], said[2]))
    found = []
    for alike in kinds.values():
        values = sorted({value for _, _, value in alike})
        for number, (question, stem, right) in enumerate(alike if len(values) >= CHOICES else ()):
            others = [value for value in values if value != right]
            places = [number + step * len(others) // (CHOICES - 1) for step in range(CHOICES - 1)]
            wrong = [others[place % len(others)] for place in places]
            label = number % CHOICES
            choices = [stem + value for value in (*wrong[:label], right, *wrong[label:])]
            found.append({"question": question, "choices": choices, "label": label})
    random.Random(0).shuffle(found)  # so that the first few are of all kinds
    return found

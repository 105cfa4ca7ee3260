"""The document of a measurement (contract/result.schema.json): built, summarised, validated and read.

Knows no device and no way to measure. Bytes, milliseconds, tokens per second, degrees Celsius.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jsonschema
import numpy as np

from checkpoints.errors import BadInput
from export.bench import contract

Document = dict[str, Any]  # as contract/result.schema.json says
Repeat = dict[str, Any]  # its $defs/repeat

STATISTICS: Final = {"min": 0, "p25": 25, "median": 50, "p75": 75, "max": 100}


def statistics(values: Iterable[float | None]) -> dict[str, float] | None:
    """min, p25, median, p75 and max of the values that are there; None where none is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return dict(
        zip(STATISTICS, (float(value) for value in np.percentile(known, list(STATISTICS.values()))), strict=True)
    )


def summarise(repeats: Sequence[Repeat]) -> dict[str, dict[str, float] | None]:
    """A run's summary, over the repeats that did not end in an error."""
    good = [repeat for repeat in repeats if repeat["stop_reason"] != "error"]
    return {
        metric.name: statistics(value for repeat in good for value in metric.of(repeat))
        for metric in contract.METRICS
    }


def make_repeat(
    measures: Mapping[str, float | None],
    *,
    prompt_tokens: int,
    generated_tokens: int,
    new_tokens: int,
    token_ms: Sequence[float],
    memory: Mapping[str, Any],
    thermal: Mapping[str, Mapping[str, Any]],
    **told: Any,
) -> Repeat:
    """One repeat that ended by itself. `measures` by the contract's names; those that lack are not known.

    `told` are the schema's optional keys, such as packing.
    """
    if unknown := measures.keys() - set(contract.MEASURED):
        raise KeyError(f"contract.json has no metric {', '.join(sorted(unknown))}")
    return {
        **dict.fromkeys(contract.MEASURED),
        **measures,
        **told,
        "prompt_tokens": prompt_tokens,
        "generated_tokens": generated_tokens,
        "token_ms": list(token_ms),
        "memory": dict(memory),
        "thermal": dict(thermal),
        "throttled": any(state["status"] in contract.HOT for state in thermal.values()),
        "low_memory_events": 0,
        "stop_reason": "new_tokens" if generated_tokens >= new_tokens else "end_of_turn",
        "notes": [],
    }


def make_document(
    *,
    device: Mapping[str, Any],
    build: Mapping[str, Any],
    model: Mapping[str, Any],
    runs: Sequence[tuple[Mapping[str, Any], Sequence[Repeat]]],
    problem: str | None,
) -> Document:
    """The document of configurations and their repeats; incomplete where there is a problem."""
    return {
        "schema": contract.FORMAT,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "status": "complete" if problem is None else "incomplete",
        "problem": problem,
        "device": dict(device),
        "build": dict(build),
        "model": dict(model),
        "runs": [
            {"configuration": dict(configuration), "repeats": list(repeats), "summary": summarise(repeats)}
            for configuration, repeats in runs
        ],
    }


def incomplete(document: Document, problem: str) -> Document:
    """The same measurements, said to be incomplete and why."""
    return document | {"status": "incomplete", "problem": problem}


def count_repeats(document: Document) -> int:
    """How many repeats the document holds, over all configurations."""
    return sum(len(run["repeats"]) for run in document["runs"])


def parse(text: str | bytes, name: object) -> Document:
    """A document from JSON; BadInput naming `name` and what is wrong unless it keeps to the schema."""

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        document = json.loads(text, parse_constant=refuse)
    except ValueError as problem:
        raise BadInput(f"{name} is no result: {problem}") from None
    return validate(document, name)


def validate(document: Any, name: object) -> Document:
    """The document itself; BadInput naming `name`, the place and the value unless it keeps to the schema."""
    problem = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(contract.SCHEMA).iter_errors(document))
    if problem is not None:
        place = problem.json_path.removeprefix("$").removeprefix(".") or "the document"
        raise BadInput(f"{name} is no result of format {contract.FORMAT}: at {place}, {problem.message:.200}")
    return document


def read_result(path: Path) -> Document:
    """A saved document; BadInput where there is none."""
    try:
        return parse(path.read_bytes(), path)
    except OSError as problem:
        raise BadInput(f"{path} cannot be read: {problem.strerror}") from None

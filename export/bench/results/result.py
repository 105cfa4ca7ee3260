"""The document of a measurement (export/bench/contract/result.schema.json): built, summarised, validated and read.

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
from export.manifest import read_manifest

Document = dict[str, Any]

FORMAT: Final = "pocketphi-result/1"
SCHEMA: Final = json.loads(
    Path(__file__).parents[1].joinpath("contract/result.schema.json").read_text(encoding="utf-8")
)
STATISTICS: Final = {"min": 0, "p25": 25, "median": 50, "p75": 75, "max": 100}
MEASURES: Final = ("load_ms", "time_to_first_token_ms", "prefill_tokens_per_s", "decode_tokens_per_s")
PEAKS: Final = ("pss_bytes", "rss_bytes", "private_dirty_bytes", "footprint_bytes")
HOT: Final = ("moderate", "severe", "critical", "emergency", "shutdown")


def statistics(values: Iterable[float | None]) -> dict[str, float] | None:
    """min, p25, median, p75 and max of the values that are there; None where none is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return dict(
        zip(STATISTICS, (float(value) for value in np.percentile(known, list(STATISTICS.values()))), strict=True)
    )


def summarise(repeats: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A run's summary, over the repeats that did not end in an error."""
    good = [repeat for repeat in repeats if repeat["stop_reason"] != "error"]
    summary = {name: statistics(repeat[name] for repeat in good) for name in MEASURES}
    summary["token_ms"] = statistics(ms for repeat in good for ms in repeat["token_ms"])
    return summary | {f"peak_{name}": statistics(repeat["memory"]["peak"][name] for repeat in good) for name in PEAKS}


def make_repeat(
    *,
    load_ms: float | None,
    prompt_tokens: int,
    generated_tokens: int,
    new_tokens: int,
    time_to_first_token_ms: float | None,
    prefill_tokens_per_s: float | None,
    decode_tokens_per_s: float | None,
    token_ms: Sequence[float],
    memory: Mapping[str, Any],
    thermal: Mapping[str, Mapping[str, Any]],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """One repeat that ended by itself; throttled and stop_reason follow from what is given."""
    return {
        "load_ms": load_ms,
        "prompt_tokens": prompt_tokens,
        "generated_tokens": generated_tokens,
        "time_to_first_token_ms": time_to_first_token_ms,
        "prefill_tokens_per_s": prefill_tokens_per_s,
        "decode_tokens_per_s": decode_tokens_per_s,
        "token_ms": list(token_ms),
        "memory": dict(memory),
        "thermal": dict(thermal),
        "throttled": any(state["status"] in HOT for state in thermal.values()),
        "low_memory_events": 0,
        "stop_reason": "new_tokens" if generated_tokens >= new_tokens else "end_of_turn",
        "notes": list(notes),
    }


def make_document(
    *,
    device: Mapping[str, Any],
    build: Mapping[str, Any],
    model: Mapping[str, Any],
    runs: Sequence[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]],
    problem: str | None,
) -> Document:
    """The document of configurations and their repeats; incomplete where there is a problem."""
    return {
        "schema": FORMAT,
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


def make_model(pte: Path, tokenizer: Path, sha256: str | None) -> dict[str, Any]:
    """What a document says of a model, with the facts of the manifest beside the file where there is one."""
    return {
        "file": pte.name,
        "size_bytes": pte.stat().st_size,
        "sha256": sha256,
        "tokenizer": tokenizer.name,
        "manifest": manifest_facts(pte),
    }


def manifest_facts(pte: Path) -> dict[str, Any] | None:
    """The facts of the manifest beside a `.pte`; None without one. BadInput for another file of its name."""
    path = pte.with_suffix(".json")
    try:
        manifest = read_manifest(pte)
        if manifest is None:
            return None
        options, planned = manifest["options"], manifest["planned"]
        return {
            "checkpoint": manifest["checkpoint"]["name"],
            "recipe": options["recipe"],
            "context_tokens": options["context"],
            "prefill_chunk_tokens": options["prefill_chunk"],
            "kv_cache": options["kv_cache"],
            "planned_memory_bytes": planned["kv_cache_bytes"] + planned["activation_bytes"],
        }
    except (ValueError, KeyError, TypeError) as problem:
        raise BadInput(f"{path} is no manifest of {pte.name}: {type(problem).__name__} {problem}") from None


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
    problem = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(SCHEMA).iter_errors(document))
    if problem is not None:
        place = problem.json_path.removeprefix("$").removeprefix(".") or "the document"
        raise BadInput(f"{name} is no result of format {FORMAT}: at {place}, {problem.message:.200}")
    return document


def read_result(path: Path) -> Document:
    """A saved document; BadInput where there is none."""
    try:
        return parse(path.read_bytes(), path)
    except OSError as problem:
        raise BadInput(f"{path} cannot be read: {problem.strerror}") from None

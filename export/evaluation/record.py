"""What was found of a `.pte`, kept beside it as NAME.evaluation.json: perplexity and tasks in one document.

Knows the document (`evaluation.schema.json`) and its place; measures nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema

from checkpoints.errors import BadInput
from checkpoints.files import present, sha256, write_whole

if TYPE_CHECKING:
    from export.evaluation.evaluate import Evaluated, Evaluation

FORMAT = "pocketphi-evaluation/1"
Document = dict[str, Any]


def evaluation_path(pte: Path) -> Path:
    """Where the document of a `.pte` lies."""
    return pte.with_suffix(".evaluation.json")


def read_evaluation(pte: Path) -> Document | None:
    """The document beside a `.pte`; None without one, or where it is of other bytes than the file has now.

    BadInput where something else lies under its name.
    """
    document = _read(evaluation_path(pte))
    return document if document and document["file"]["sha256"] == sha256(pte) else None


def check_saving(models: Sequence[str]) -> dict[str, Path]:
    """The files among what is evaluated, by name; BadInput where one's document cannot be kept beside it.

    To be called before the work, which may take hours.
    """
    files = {name: Path(name) for name in models if name.endswith(".pte")}
    if not files:
        raise BadInput(f"--save keeps numbers beside a .pte, and {models[0]} is none")
    for pte in files.values():
        if not pte.is_file():
            raise BadInput(f"{pte} does not exist or is not a file")
        _read(evaluation_path(pte))
    return files


def save_evaluation(
    pte: Path, perplexity: Document | None = None, tasks: Mapping[str, Document] | None = None
) -> Path:
    """Put what was found of a file into its document; what is kept there of the same bytes and not found anew stays.

    Returns the document's path. Raises BadInput as `read_evaluation` does.
    """
    kept = read_evaluation(pte) or {"perplexity": None, "tasks": {}}
    document = {
        "schema": FORMAT,
        "file": {"bytes": pte.stat().st_size, "sha256": sha256(pte)},
        "perplexity": perplexity or kept["perplexity"],
        "tasks": dict(sorted((kept["tasks"] | dict(tasks or {})).items())),
    }
    path = evaluation_path(pte)
    _validate(document, path)
    write_whole(path, json.dumps(document, indent=2, allow_nan=False).encode() + b"\n")
    return path


def perplexity_part(evaluation: Evaluation, model: Evaluated) -> Document:
    """What a document says of one model of an evaluation on text."""
    return {
        "reference": evaluation.reference,
        "window_tokens": evaluation.window_tokens,
        "windows": evaluation.windows,
        "tokens": evaluation.tokens,
        "quality": asdict(model.quality),
        "by_text": {text: asdict(quality) for text, quality in model.by_text.items()},
        "control": {
            "nll": model.shuffled_nll,
            "least": model.shuffled_least,
            "passed": model.control_passed,
        },
    }


def tasks_part(found: Mapping[str, Any], harness: str, limit: int | None, chat: bool) -> dict[str, Document]:
    """What a document says of the results of lm-evaluation-harness, of that version."""
    tasks = {}
    for name, results in found["results"].items():
        samples = found.get("n-samples", {}).get(name, {})
        tasks[name] = {
            "harness": harness,
            "version": found.get("versions", {}).get(name),
            "samples": samples.get("effective"),
            "limit": limit,
            "shots": found.get("n-shot", {}).get(name),
            "chat": chat,
            "metrics": metrics(results),
            "control": found.get("controls", {}).get(name),
        }
    return tasks


def metrics(results: Mapping[str, Any]) -> dict[str, Document]:
    """Metric -> value and error; the harness's keys are `acc,none` and `acc_stderr,none`."""
    found = {}
    for key, value in results.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr") or not _is_number(value):
            continue
        error: Any = results.get(f"{metric}_stderr,{chosen}")
        found[metric if chosen == "none" else key] = {
            "value": float(value),
            "error": float(error) if _is_number(error) else None,  # else "N/A", or not a number with one sample
        }
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _read(path: Path) -> Document | None:
    """The document, None without one; BadInput unless it keeps to the schema."""

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is no number of JSON")

    if not present(path):
        return None
    try:
        document = json.loads(path.read_bytes(), parse_constant=refuse)
    except (ValueError, RecursionError) as problem:
        raise BadInput(f"{path} is no evaluation, and not replaced by one: {problem!s:.200}") from None
    except OSError as problem:
        raise BadInput(f"{path} cannot be read: {problem.strerror}") from None
    _validate(document, path)
    found: Document = document
    return found


def _validate(document: Any, path: Path) -> None:
    problem = jsonschema.exceptions.best_match(_validator().iter_errors(document))
    if problem is not None:
        place = problem.json_path.removeprefix("$").removeprefix(".") or "the document"
        raise BadInput(f"{path} is no evaluation of format {FORMAT}: at {place}, {problem.message:.200}")


@cache
def _validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        json.loads(Path(__file__).with_name("evaluation.schema.json").read_bytes())
    )

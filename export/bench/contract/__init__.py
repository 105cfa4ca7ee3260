"""What is measured, by which rules: bundled/contract.json, which both apps carry too, and the result's schema.

Knows no device and measures nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Option:
    """What may be asked for: the default, and the least and the most, or the words to choose from."""

    default: Any  # of the option's own type: int, str, list[int]
    least: int = 0
    most: int = 0
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Metric:
    """A number of every repeat."""

    name: str  # in a summary
    label: str  # for people, small letters
    unit: str  # tokens/s, ms, bytes, …
    higher_is_better: bool
    tolerance: float | None  # how much worse a median may be, a fraction; None: it is not judged
    place: tuple[str, ...]  # keys that lead to it in a repeat
    headline: bool

    def of(self, repeat: Mapping[str, Any]) -> list[float]:
        """The values that a repeat has: one, many where it is a series, none where it is not known."""
        found: Any = repeat
        for key in self.place:
            found = found.get(key)
        values = found if isinstance(found, list) else [found]
        return [value for value in values if value is not None]


def _metric(row: dict[str, Any]) -> Metric:
    place = tuple(row.get("from", row["name"]).split("."))
    higher = {"higher": True, "lower": False}[row["better"]]
    return Metric(row["name"], row["label"], row["unit"], higher, row["tolerance"], place, row.get("headline", False))


_data: Final = json.loads((HERE / "bundled/contract.json").read_text(encoding="utf-8"))
SCHEMA: Final = json.loads((HERE / "result.schema.json").read_text(encoding="utf-8"))
FORMAT: Final[str] = _data["format"]
OPTIONS: Final = {
    name: Option(**option | {"choices": tuple(option.get("choices", ()))})
    for name, option in _data["options"].items()
}
METRICS: Final = tuple(_metric(row) for row in _data["metrics"])
RATES: Final = tuple(metric for metric in METRICS if metric.unit == "tokens/s")
MEMORY: Final = tuple(metric for metric in METRICS if metric.place[0] == "memory")  # the first is what kills
MEASURED: Final = tuple(
    metric.name for metric in METRICS if metric.place == (metric.name,) and metric.name != "token_ms"
)
MEMORY_KEYS: Final = tuple(SCHEMA["$defs"]["memory"]["properties"])
THERMAL: Final = tuple(SCHEMA["$defs"]["thermal"]["properties"]["status"]["enum"])  # by severity; last unknown
HOT: Final = frozenset(_data["hot"])
REMARKS: Final[dict[str, str]] = _data["remarks"]
MODE_WORDS: Final[dict[str, str]] = _data["modes"]
MODES: Final = ("text", *MODE_WORDS)
MEDIA: Final[dict[str, Any]] = _data["media"]  # pixels, seconds, hertz and loudness of the standard picture and sound
GOING_ON: Final[str] = _data["going_on"]


def lengths(configuration: Mapping[str, Any], between: str = "+", unit: str = "") -> str:
    """A configuration for people: `64+128`, or `64+128 with a picture`, its numbers followed by the unit."""
    words = MODE_WORDS.get(configuration.get("mode", "text"))
    numbers = f"{configuration['prompt_tokens']}{between}{configuration['new_tokens']}"
    return f"{numbers}{unit}{f' {words}' if words else ''}"


def named(configuration: Mapping[str, Any]) -> str:
    """By its prompt alone: `64 tokens`, or `64 tokens with a picture`."""
    words = MODE_WORDS.get(configuration.get("mode", "text"))
    return f"{configuration['prompt_tokens']} tokens{f' {words}' if words else ''}"


def key(configuration: Mapping[str, Any]) -> tuple[int, int, str]:
    """What two results must have in common to be compared: prompt and new tokens, and the mode."""
    return configuration["prompt_tokens"], configuration["new_tokens"], configuration.get("mode", "text")


def goes_on(problem: str | None) -> bool:
    """Whether a result's problem is only that its run has not ended."""
    pattern = re.escape(GOING_ON).replace(r"\{done\}", r"\d+").replace(r"\{all\}", r"\d+")
    return problem is not None and re.fullmatch(pattern, problem) is not None

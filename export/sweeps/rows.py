"""The lines of a sweep: a recipe with what is planned, found and wrong of it, and which is best for a phone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from checkpoints.config import ModelConfig
from checkpoints.errors import BadInput
from export.options import ExportOptions
from export.planning.fit import ENGINES, Fit, fits
from export.planning.needs import Needs
from export.planning.phones import Phone
from export.sweeps.recipes import Recipe


@dataclass
class Row:
    """A recipe, and the contexts that one file of it can stand for: those with the same rotary table."""

    name: str
    recipe: Recipe
    contexts: tuple[int, ...]
    options: ExportOptions | None = None  # of its file, which holds the longest context
    problem: str | None = None
    needs: dict[str, Any] = field(default_factory=dict)  # as `plan_row` has it
    found: dict[str, dict[str, Any]] = field(default_factory=dict)  # stage -> its result, see `export.sweeps.jobs`

    @property
    def bytes(self) -> int | None:
        """Of the file: measured, or else planned."""
        size: int | None = self.found.get("export", {}).get("bytes") or self.needs.get("file_bytes")
        return size

    def number(self, stage: str, name: str) -> float | None:
        """A result's number; of an estimate its value."""
        found = self.found.get(stage, {}).get(name)
        return found["value"] if isinstance(found, dict) else found

    def error(self, name: str) -> float | None:
        """The standard error of a quality."""
        error: float | None = (self.found.get("evaluate", {}).get(name) or {}).get("error")
        return error

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "name": self.name,
            "flags": list(self.recipe.words),
            "contexts": list(self.contexts),
            "problem": self.problem,
            "needs": self.needs,
            **{stage: self.found.get(stage) for stage in ("export", "evaluate", "bench")},
        }


@dataclass(frozen=True)
class Choice:
    """The best row for a phone."""

    row: Row
    context: int
    fit: Fit

    def plain(self) -> dict[str, Any]:
        return {"name": self.row.name, "context": self.context, **asdict(self.fit)}


def make_rows(config: ModelConfig, recipes: Iterable[Recipe], contexts: Sequence[int]) -> list[Row]:
    """A row for each recipe and rotary table; what does not suit the model is the row's problem."""
    tables: dict[tuple[float, ...], list[int]] = {}
    for context in sorted(set(contexts)):
        tables.setdefault(config.rope_factors(context), []).append(context)
    rows = []
    for recipe in recipes:
        for same in tables.values():
            name = recipe.name if len(tables) == 1 else f"{recipe.name} @{same[-1]}"
            row = Row(name, recipe, tuple(same))
            try:
                row.options = recipe.options(same[-1])
                row.options.check(config)
                recipe.calibration  # noqa: B018  flags that do not go together
                row.needs = plan_row(config, recipe, same)
            except BadInput as problem:
                row.problem = str(problem)
            rows.append(row)
    return rows


def plan_row(config: ModelConfig, recipe: Recipe, contexts: Sequence[int]) -> dict[str, Any]:
    """What a recipe takes: bytes of file and packed weights, and memory with each context in full use."""
    longest = Needs(config, recipe.options(contexts[-1]))
    memory = []
    for context in contexts:
        needs = Needs(config, recipe.options(context))
        private = {str(engine): needs.private(engine, context) for engine in ENGINES}
        memory.append({"context": context, "kv_cache_bytes": needs.kv_bytes, **private})
    return {
        "file_bytes": longest.file_bytes,
        "packed_bytes": longest.packed_bytes,
        "activation_bytes": longest.activation_bytes,
        "memory": memory,
    }


def fit_of(config: ModelConfig, row: Row, context: int, phone: Phone) -> Fit:
    """Whether a row's recipe fits with a context, in our engine."""
    return fits(config, row.recipe.options(context), phone)


def best(config: ModelConfig, rows: Sequence[Row], phone: Phone) -> Choice | None:
    """The longest context that fits by any measured row, and of those rows the one nearest to the checkpoint."""
    measured = [row for row in rows if row.number("evaluate", "kl") is not None]
    for context in sorted({context for row in measured for context in row.contexts}, reverse=True):
        fitting = [
            (row.number("evaluate", "kl") or 0.0, row.bytes or 0, number, row, fit)
            for number, row in enumerate(measured)
            if context in row.contexts and (fit := fit_of(config, row, context, phone)).fits
        ]
        if fitting:
            *_, row, fit = min(fitting, key=lambda one: one[:3])
            return Choice(row, context, fit)
    return None

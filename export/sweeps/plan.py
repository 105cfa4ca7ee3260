"""What recipes take and which phones hold them, without an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from checkpoints.config import ModelConfig, read_config
from checkpoints.errors import BadInput
from checkpoints.published import published_config
from checkpoints.source import DEFAULT, find_source
from export.planning.fit import ENGINES, Fit, fits
from export.planning.phones import Phone
from export.sweeps.recipes import Recipe
from export.sweeps.rows import Row, make_rows


@dataclass(frozen=True)
class Plan:
    """Rows without results, and the phones that are asked about."""

    checkpoint: str
    config: ModelConfig
    rows: list[Row]
    phones: Sequence[Phone]

    def fits(self, row: Row, phone: Phone) -> dict[tuple[int, str], Fit]:
        """By context and engine."""
        return {
            (context, engine): fits(self.config, row.recipe.options(context), phone, engine=engine)
            for context in row.contexts
            for engine in ENGINES
        }

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        rows = []
        for row in self.rows:
            told = row.plain() | {"phones": []}
            for phone in self.phones if row.needs else ():
                found = [
                    {"context": context, "engine": engine, **asdict(fit)}
                    for (context, engine), fit in self.fits(row, phone).items()
                ]
                told["phones"].append({"phone": phone.name, "fits": found})
            rows.append({name: told[name] for name in ("name", "flags", "contexts", "problem", "needs", "phones")})
        return {"checkpoint": self.checkpoint, "phones": [asdict(phone) for phone in self.phones], "recipes": rows}


def make_plan(
    checkpoint: str | None,
    revision: str | None,
    recipes: Sequence[Recipe],
    contexts: Sequence[int],
    phones: Sequence[Phone],
) -> Plan:
    """Of a checkpoint's config.json; that of Phi-4-mini is known here. BadInput where no recipe suits the model."""
    if checkpoint in (None, DEFAULT) and revision is None:
        name, config = DEFAULT, published_config()
    else:
        source = find_source(checkpoint, revision=revision)
        name, config = str(source), read_config(source.folder)
    rows = make_rows(config, recipes, contexts)
    if all(row.problem for row in rows):
        raise BadInput(f"no recipe suits {name}: {rows[0].problem}")
    return Plan(name, config, rows, phones)

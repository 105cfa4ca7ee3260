"""Which linears are int8 among int4 within a budget of bytes: those where it removes most of the loss per byte.

Knows what linears cost and lose from `export.calibration.sensitivity`, and what they are called; runs nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from checkpoints.config import ModelConfig
from checkpoints.errors import BadInput
from checkpoints.families import tensor_shapes
from checkpoints.roles import EMBEDDING, HEAD, Role, role
from export.calibration.options import ExtraBytes
from export.calibration.sensitivity import SEQUENCES, TOKENS, Sensitivity, extra_bytes
from export.quantization.recipe import Recipe, short_name


def candidates(config: ModelConfig, recipe: Recipe, extra: ExtraBytes) -> list[str]:
    """Hugging Face names of the linears that could become int8; BadInput where none of them fits the budget."""
    kinds = (Role.LINEAR,) if extra.keep_head else (Role.LINEAR, Role.HEAD)
    shapes = {
        name: shape for name, shape in _shapes(config).items() if role(name) in kinds and recipe.bits(name) == 4
    }
    sizes = {name: extra_bytes(recipe, name, *shape) for name, shape in shapes.items()}
    if not sizes:
        raise BadInput(f"--extra-bytes {extra.text} finds no linear that has 4 bits")
    least = min(sizes, key=lambda name: sizes[name])
    if sizes[least] > (budget := extra.budget(weight_bytes(config, recipe))):
        raise BadInput(
            f"--extra-bytes {extra.text} is {budget:,} bytes, the smallest linear, {short_name(least)}, takes "
            f"{sizes[least]:,} more in int8"
        )
    return list(sizes)


def choose(sensitivities: Sequence[Sensitivity], budget: int) -> list[str]:
    """Names that fit `budget` bytes: the most KL removed per byte first, and of what is left what still fits."""
    chosen = []
    for one in sorted(sensitivities, key=lambda one: (-one.gain, one.name)):
        if one.gain > 0 and one.extra_bytes <= budget:
            budget -= one.extra_bytes
            chosen.append(one.name)
    return chosen


def mixed(recipe: Recipe, chosen: Sequence[str]) -> Recipe:
    """The recipe with these in int8."""
    head = short_name(HEAD)
    int8 = (*recipe.int8, *(name for name in chosen if name != head))
    return dataclasses.replace(recipe, int8=int8, head_bits=8 if head in chosen else recipe.head_bits)


def weight_bytes(config: ModelConfig, recipe: Recipe) -> int:
    """Of all weights in a file."""
    return sum(_bytes(recipe, name, shape) for name, shape in _shapes(config).items())


def token_bytes(config: ModelConfig, recipe: Recipe) -> int:
    """Of the weights that decoding one token reads: all but the embedding, and one row of that."""
    columns = config.hidden_size
    rest = (_bytes(recipe, name, shape) for name, shape in _shapes(config).items() if name != EMBEDDING)
    return sum(rest) + _bytes(recipe, EMBEDDING, (1, columns))


def choice_record(
    config: ModelConfig, before: Recipe, after: Recipe, budget: int, sensitivities: Sequence[Sensitivity]
) -> dict[str, Any]:
    """What calibration.json says of the choice."""
    return {
        "budget_bytes": budget,
        "extra_bytes": weight_bytes(config, after) - weight_bytes(config, before),
        "weight_bytes": weight_bytes(config, before),
        "token_bytes": token_bytes(config, before),
        "token_bytes_mixed": token_bytes(config, after),
        "measured_tokens": SEQUENCES * TOKENS,
        "linears": [
            dataclasses.asdict(one) | {"int8": after.bits(_full_name(one.name)) == 8} for one in sensitivities
        ],
    }


def price(record: dict[str, Any]) -> str:
    """The choice in a sentence."""
    chosen = [one["name"] for one in record["linears"] if one["int8"]]
    before, after = record["token_bytes"], record["token_bytes_mixed"]
    return (
        f"{len(chosen)} of {len(record['linears'])} linears are int8 for {record['extra_bytes']:,} bytes "
        f"({100 * record['extra_bytes'] / record['weight_bytes']:.1f} % of the weights). A token reads "
        f"{after / 1e6:,.1f} MB of weights, {100 * (after - before) / before:.1f} % more; time was not measured, "
        "decoding follows these bytes"
    )


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return tensor_shapes(dataclasses.replace(config, tie_word_embeddings=False))


def _bytes(recipe: Recipe, name: str, shape: tuple[int, ...]) -> int:
    rows = shape[0] if len(shape) == 2 else 1
    return sum(recipe.storage(name, shape[-1]).nbytes(rows).values())


def _full_name(short: str) -> str:
    return HEAD if short == short_name(HEAD) else f"model.layers.{short}.weight"

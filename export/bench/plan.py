"""What is to be measured, the same for every device."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required, TypedDict, Unpack

from checkpoints.errors import BadInput
from checkpoints.files import folder_of
from export.bench import contract
from export.bench.model import check_tokenizer, manifest_facts, media_tokens, modes_of
from export.ptefile.find import resolve_file
from export.ptefile.magic import read_head

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Plan:
    """A model and the runs it is put through."""

    pte: Path
    tokenizer: Path
    prompt_tokens: tuple[int, ...]
    new_tokens: int
    repeats: int
    warmups: int
    cooldown_s: int  # rest before each repeat but the first; on phones also where anything else ran before
    load_mode: str
    timeout_s: float  # longest wait for a load, a warm-up or a repeat, the rest before it not counted
    modes: tuple[str, ...] = ("text",)

    def configurations(self) -> list[dict[str, Any]]:
        """One for each prompt length, then one for each other mode with the first length, in the result's words."""
        rest = {key: getattr(self, key) for key in ("new_tokens", "repeats", "warmups", "cooldown_s", "load_mode")}
        lengths = self.prompt_tokens if "text" in self.modes else ()
        others = [mode for mode in self.modes if mode != "text"]
        return [
            *({"prompt_tokens": count, **rest} for count in lengths),
            *({"prompt_tokens": self.prompt_tokens[0], **rest, "mode": mode} for mode in others),
        ]

    def repeat_line(self, configuration: int, repeat: int, measured: Mapping[str, Any]) -> str:
        """One line on a repeat (both indices) for people; `measured` has its rates."""

        def rate(metric: contract.Metric) -> str:
            value = measured.get(metric.name)
            return f"{metric.label} {value:,.1f}" if isinstance(value, int | float) else f"{metric.label} ?"

        known = self.configurations()
        one = known[configuration] if configuration in range(len(known)) else {"prompt_tokens": "?"}
        rates = ", ".join(map(rate, contract.RATES))
        encoded = measured.get("encode_ms")
        encode = f"encode {encoded:,.0f} ms, " if isinstance(encoded, int | float) else ""
        return f"{contract.named(one)}, repeat {repeat + 1} of {self.repeats}: {encode}{rates} tokens/s"


class PlanFlags(TypedDict, total=False):
    """The flags of a plan, by their names; those of contract.json have its defaults."""

    pte: Required[StrPath]
    tokenizer: StrPath | None  # by default the one beside the model
    prompt_tokens: Sequence[int]
    new_tokens: int
    repeats: int
    warmups: int
    cooldown: int
    load_mode: str
    timeout: float
    modes: Sequence[str] | None  # by default all that the manifest beside the model has


def make_plan(**flags: Unpack[PlanFlags]) -> Plan:
    """Check everything that can be told without a device; BadInput names the flag or the file and the numbers."""
    asked: Mapping[str, Any] = flags
    values = {name: asked.get(flag_name(name), option.default) for name, option in contract.OPTIONS.items()}
    for name, option in contract.OPTIONS.items():
        _check(f"--{flag_name(name).replace('_', '-')}", values[name], option)
    values["prompt_tokens"] = tuple(values["prompt_tokens"])
    _check_modes(modes := flags.get("modes"))
    pte, given = resolve_file(flags["pte"]), flags.get("tokenizer")
    read_head(pte)
    tokenizer = _tokenizer(pte) if given is None else Path(given)
    plan = Plan(pte, tokenizer, **values, modes=tuple(modes) if modes else modes_of(pte))
    if not plan.tokenizer.is_file():
        raise BadInput(f"{plan.tokenizer} does not exist or is not a file")
    facts = manifest_facts(pte)
    context = facts and facts["context_tokens"]
    if context and (longest := max(plan.prompt_tokens)) + plan.new_tokens > context:
        raise BadInput(
            f"{longest} prompt tokens and {plan.new_tokens} new ones do not fit into the {context} tokens of {pte}"
        )
    for mode, tokens in media_tokens(pte, plan.modes).items():
        if context and (length := plan.prompt_tokens[0]) + tokens + plan.new_tokens > context:
            raise BadInput(
                f"{length} prompt tokens {contract.MODE_WORDS[mode]} of {tokens} and {plan.new_tokens} new ones "
                f"do not fit into the {context} tokens of {pte}: leave {mode} out of --modes"
            )
    return plan


def flag_name(option: str) -> str:
    """An option of contract.json as a flag: seconds go without saying."""
    return option.removesuffix("_s")


def _check(flag: str, value: Any, option: contract.Option) -> None:
    if option.choices:
        if value not in option.choices:
            raise BadInput(f"{flag} {value} is neither of {', '.join(option.choices)}")
        return
    values = list(value) if isinstance(option.default, list) else [value]
    if not values:
        raise BadInput(f"{flag} names no length")
    for one in values:
        if not option.least <= one <= option.most:  # also a number that is none
            raise BadInput(f"{flag} {one} is not from {option.least} to {option.most}")
    if len(set(values)) < len(values):
        raise BadInput(f"{flag} {','.join(map(str, values))} names a length twice")


def _check_modes(modes: Sequence[str] | None) -> None:
    if modes is None:
        return
    text = ",".join(modes)
    if not modes or (unknown := [mode for mode in modes if mode not in contract.MODES]):
        raise BadInput(
            f"--modes {text} names {unknown[0] if modes else 'none'}: there are {', '.join(contract.MODES)}"
        )
    if len(set(modes)) < len(modes):
        raise BadInput(f"--modes {text} names a mode twice")


def _tokenizer(pte: Path) -> Path:
    """The one beside the model; BadInput without one, and where the manifest knows another."""
    from export.engine.tokenizer import find_tokenizer

    try:
        found = find_tokenizer(folder_of(pte))
    except BadInput as problem:
        raise BadInput(f"{problem}: give a tokenizer with --tokenizer") from None
    check_tokenizer(pte, found)
    return found


def parse_lengths(text: str) -> tuple[int, ...]:
    """`64,512` to numbers; BadInput for anything else."""
    if not re.fullmatch(r"\s*\d{1,7}\s*(,\s*\d{1,7}\s*)*", text):
        raise BadInput(f"--prompt-tokens {text!r} is no list of whole numbers such as 64,512")
    return tuple(int(part) for part in text.split(","))


def parse_modes(text: str) -> tuple[str, ...]:
    """`text,vision` to words, which `make_plan` checks."""
    return tuple(part.strip() for part in text.split(","))


def parse_tolerance(text: str) -> float:
    """`5%` or `5` to 0.05; BadInput for anything else."""
    if not (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%?\s*", text)):
        raise BadInput(f"--tolerance {text!r} is no percentage such as 5%")
    return float(match[1]) / 100

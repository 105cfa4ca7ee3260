"""What is to be measured, the same for every device."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.errors import BadInput
from export.bench.results.result import manifest_facts
from export.runner import check_is_program

LOAD_MODES = ("once", "each")


@dataclass(frozen=True)
class Plan:
    """A model and the runs it is put through."""

    pte: Path
    tokenizer: Path
    prompt_tokens: tuple[int, ...]
    new_tokens: int
    repeats: int
    warmups: int
    cooldown_s: int  # rest before each repeat but the first
    load_mode: str
    timeout_s: float  # longest wait for a load, a warm-up or a repeat, the rest before it not counted

    def configurations(self) -> list[dict[str, Any]]:
        """One for each prompt length, as the result holds them."""
        rest = {
            "new_tokens": self.new_tokens,
            "repeats": self.repeats,
            "warmups": self.warmups,
            "cooldown_s": self.cooldown_s,
            "load_mode": self.load_mode,
        }
        return [{"prompt_tokens": count, **rest} for count in self.prompt_tokens]


def make_plan(
    pte: Path,
    tokenizer: Path | None,
    *,
    prompt_tokens: Sequence[int],
    new_tokens: int,
    repeats: int,
    warmups: int,
    cooldown: int,
    load_mode: str,
    timeout: float,
) -> Plan:
    """Check everything that can be told without a device; BadInput names the flag or the file and the numbers."""
    if not prompt_tokens:
        raise BadInput("--prompt-tokens names no length")
    least = {
        "--prompt-tokens": (min(prompt_tokens), 1), "--new-tokens": (new_tokens, 1), "--repeats": (repeats, 1),
        "--warmups": (warmups, 0), "--cooldown": (cooldown, 0), "--timeout": (timeout, 1),
    }  # fmt: skip
    for flag, (value, lowest) in least.items():
        if not value >= lowest:
            raise BadInput(f"{flag} {value} is not at least {lowest}")
    if load_mode not in LOAD_MODES:
        raise BadInput(f"--load-mode {load_mode} is neither of {', '.join(LOAD_MODES)}")
    if len(set(prompt_tokens)) < len(prompt_tokens):
        raise BadInput(f"--prompt-tokens {','.join(map(str, prompt_tokens))} names a length twice")
    check_is_program(pte)
    if tokenizer is None:
        from export.tokenizer import find_tokenizer

        try:
            tokenizer = find_tokenizer(pte.resolve().parent)
        except BadInput as problem:
            raise BadInput(f"{problem}: give a tokenizer with --tokenizer") from None
    elif not tokenizer.is_file():
        raise BadInput(f"{tokenizer} does not exist or is not a file")
    facts = manifest_facts(pte)
    context = facts and facts["context_tokens"]
    if context and (longest := max(prompt_tokens)) + new_tokens > context:
        raise BadInput(
            f"{longest} prompt tokens and {new_tokens} new ones do not fit into the {context} tokens of {pte}"
        )
    return Plan(
        pte, tokenizer, tuple(prompt_tokens), new_tokens, repeats, warmups, cooldown, load_mode, float(timeout)
    )  # fmt: skip


def parse_lengths(text: str) -> tuple[int, ...]:
    """`64,512` to numbers; BadInput for anything else."""
    if not re.fullmatch(r"\s*\d{1,7}\s*(,\s*\d{1,7}\s*)*", text):
        raise BadInput(f"--prompt-tokens {text!r} is no list of whole numbers such as 64,512")
    return tuple(int(part) for part in text.split(","))


def parse_tolerance(text: str) -> float:
    """`5%` or `5` to 0.05; BadInput for anything else."""
    if not (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%?\s*", text)):
        raise BadInput(f"--tolerance {text!r} is no percentage such as 5%")
    return float(match[1]) / 100

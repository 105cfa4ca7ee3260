"""Whether a recipe fits a phone, and why, in a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from checkpoints.config import ModelConfig
from export.options import ExportOptions
from export.planning.needs import Needs
from export.planning.phones import SYSTEM, Phone

Engine = Literal["ours", "stock"]
ENGINES: dict[Engine, str] = {"ours": "our engine", "stock": "upstream's runner"}


@dataclass(frozen=True)
class Fit:
    """A recipe on a phone; sizes in bytes."""

    fits: bool
    reason: str
    private_bytes: int
    mapped_bytes: int  # clean pages of files that each token reads
    headroom_bytes: int  # of the limit; negative where it does not fit


def fits(
    config: ModelConfig, options: ExportOptions, phone: Phone, used: int | None = None, engine: Engine = "ours"
) -> Fit:
    """With `used` tokens of the context in use, by default all of them.

    Private memory must be within the phone's limit. Mapped weights are no part of it, but each token reads them: with
    private memory and the system they must be within the RAM, or each token waits for the flash memory.
    """
    needs, tokens = Needs(config, options), options.context if used is None else used
    private = needs.private(engine, tokens, phone.page)
    mapped = needs.packed_bytes if engine == "ours" else 0
    headroom = phone.limit_bytes - private
    takes = f"{ENGINES[engine]} takes {_size(private)} at {tokens} tokens"
    if headroom < 0:
        reason = f"{takes}, {phone.name} lets an app have {_size(phone.limit_bytes)}"
    elif phone.ram_bytes and private + mapped + SYSTEM > phone.ram_bytes:
        reason = (
            f"{takes} and maps {_size(mapped)}, with {_size(SYSTEM)} for the system more than the "
            f"{_size(phone.ram_bytes)} of {phone.name}"
        )
    else:
        within = f"{takes} of the {_size(phone.limit_bytes)} that {phone.name} lets an app have"
        return Fit(True, within, private, mapped, headroom)
    return Fit(False, reason, private, mapped, headroom)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"

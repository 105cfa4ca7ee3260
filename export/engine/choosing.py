"""How an answer is chosen and where it ends: what a request may ask, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from checkpoints.errors import BadInput

# Field: least, most. OpenAI's ranges where it has the field, else the C++ sampler's.
RANGES = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
MOST_LOGPROBS = 20  # OpenAI's


@dataclass(frozen=True)
class Choosing:
    """Names are OpenAI's where it has them. `stop` is left out of the answer."""

    max_tokens: int | None = None  # None: until it ends or the context is full; 0 only feeds the prompt
    temperature: float = 0.0  # 0: always the likeliest, whatever top_k, top_p and min_p say
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # CTRL's, on tokens of prompt and answer
    presence_penalty: float = 0.0  # OpenAI's, on tokens of the answer
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # None: none; N: the chosen token's, and the N likeliest's
    schema: Mapping[str, Any] | Literal["json"] | None = None  # JSON schema of the answer; "json": any JSON object

    def check(self) -> None:
        """Raise BadInput for the first field that no model can follow."""
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise BadInput(f"{name} {value} is not within {least} to {most}")
        if not 0 < self.repetition_penalty <= 100:
            raise BadInput(f"repetition_penalty {self.repetition_penalty} is not above 0 and at most 100")
        for name in ("max_tokens", "top_k", "seed"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise BadInput(f"{name} {value} is below 0")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise BadInput(f"logprobs {self.logprobs} is not within 0 to {MOST_LOGPROBS}")
        if "" in self.stop:
            raise BadInput("a stop string is empty")
        for token, bias in self.logit_bias.items():
            if not math.isfinite(bias):
                raise BadInput(f"logit_bias of token {token} is {bias}, no number")
        if not (self.schema is None or self.schema == "json" or isinstance(self.schema, Mapping)):
            raise BadInput(f'schema is neither a JSON schema (an object) nor "json", it is {self.schema!r:.80}')

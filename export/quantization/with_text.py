"""A multimodal checkpoint whose text model comes from a folder that holds it quantized already.

`export.quantize` leaves such a folder of a multimodal checkpoint: its text model alone, by any calibration that
leaves norms as they are. Adapters read what norms make: where scales were folded into them, that is something else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from checkpoints.config import text_alone
from checkpoints.errors import BadInput
from checkpoints.families import tensor_shapes
from checkpoints.roles import Role, role
from export.quantization.rounding import QuantizedSource, Quantizing, Rounded

SAME = {"tie_word_embeddings"}  # a quantized folder is untied


class WithText:
    """A `QuantizedSource`: `text` for the weights of the text model, `whole` for all others."""

    def __init__(self, whole: Quantizing, text: QuantizedSource) -> None:
        self.whole, self.text = whole, text
        self.config, self.recipe = whole.config, whole.recipe
        self.notes = (*whole.notes, *(note for note in text.notes if note not in whole.notes))
        self.files = [*whole.files, *text.files]
        self._of_text = set(tensor_shapes(dataclasses.replace(text_alone(whole.config), tie_word_embeddings=False)))
        self._check()

    def rows(self, name: str, start: int, stop: int) -> Iterator[Rounded | Tensor]:
        """Rows start … stop of a weight, in order."""
        yield from (self.text if name in self._of_text else self.whole).rows(name, start, stop)

    def _check(self) -> None:
        """Raise BadInput where the folder is of a model of other sizes, or has other norms."""
        folder, original = self.text.config.path.parent, self.config.path.parent
        ours, theirs = self.config.as_phi3(), self.text.config.as_phi3()
        for key in ours:
            if key not in SAME and ours[key] != theirs[key]:
                raise BadInput(f"{self.text.config.path} has {key} {theirs[key]}, {self.config.path} has {ours[key]}")
        for name in sorted(self._of_text):
            if role(name) is not Role.NORM:
                continue
            (size,) = tensor_shapes(self.config)[name]
            found, wanted = (
                torch.cat([piece for piece in source.rows(name, 0, size) if isinstance(piece, Tensor)])
                for source in (self.text, self.whole)
            )
            if not torch.equal(found, wanted):
                raise BadInput(
                    f"{folder}: {name} is not that of {original}, whose adapters read what it makes: the text model "
                    "must be quantized from that checkpoint, by a method that leaves norms as they are "
                    "(scales or gptq)"
                )

"""The checkpoint's own model in float32 as a calibration runs it: a layer in memory at a time, cut at its linears."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from checkpoints.errors import BadInput
from checkpoints.roles import NORM
from checkpoints.untied import Untied
from export.models.registry import family_of
from export.reference.layerwise import around, empty_layer

ROWS = 512  # read, and quantized, at once: a fixed number, for the same bits on every machine


class FloatModel:
    """transformers' modules with room for one layer, and the weights to fill it."""

    def __init__(self, untied: Untied, device: str) -> None:
        self.untied, self.config, self.device = untied, untied.config, device
        family = family_of(self.config)
        self.sites = family.sites(self.config)
        modules = family.reference()
        self._config = modules.config(**self.config.as_phi3())
        self._config._attn_implementation = "sdpa"
        self._rotary = modules.rotary(self._config).to(device)
        self.cut = family.cut(empty_layer(modules.layer, self._config).to_empty(device=device))
        self.norm = modules.norm(self.config.hidden_size, eps=self.config.rms_norm_eps).requires_grad_(False)
        self.norm.to(device)

    @property
    def layer_elements(self) -> int:
        """Of the linears of a layer."""
        return sum(self.cut.weights[site.linear].numel() for site in self.sites)

    def around(self, hidden: Tensor) -> dict[str, Any]:
        """What a layer takes beside hidden states like these, [1, S, D]."""
        return around([hidden.shape[1]], self._config, self._rotary, hidden)

    def load(self, number: int) -> str:
        """Fill the layer's weights; the prefix of their names."""
        prefix = f"model.layers.{number}."
        for suffix, weight in self.cut.weights.items():
            for at in range(0, len(weight), ROWS):
                weight[at : at + ROWS] = self.read(prefix + suffix, at, min(at + ROWS, len(weight)))
            self.untied.release(prefix + suffix)
        return prefix

    def load_norm(self) -> None:
        """Fill the norm before lm_head."""
        self.norm.weight.copy_(self.read(NORM, 0, self.config.hidden_size))

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a weight, float32; BadInput for one that is no number."""
        rows = self.untied.rows(name, start, stop).to(torch.float32)
        if not torch.isfinite(rows).all():
            row = start + int((~torch.isfinite(rows)).nonzero()[0, 0])
            raise BadInput(f"{self.untied.origin(name)}: {name} has a NaN or Inf in row {row}")
        return rows.to(self.device)

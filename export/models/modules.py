"""Modules that decoders of several families are made of, and that the program around them must know."""

from __future__ import annotations

import executorch.exir.passes._quant_patterns_and_replacements  # noqa: F401  registers embedding_byte, embedding_4bit
import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32 (arXiv:1910.07467), `rms_norm_eps` added to the mean square."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight


class QuantizedEmbedding(nn.Module):
    """Rows of an int8 [V, D] or packed int4 uint8 [V, D/2] table, by the runtime's own kernel."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.weight.dtype == torch.int8:
            return torch.ops.quantized_decomposed.embedding_byte(self.weight, self.scale, None, -128, 127, tokens)
        return torch.ops.quantized_decomposed.embedding_4bit(self.weight, self.scale, None, -8, 7, tokens)

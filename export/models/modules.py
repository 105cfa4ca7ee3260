"""Modules that decoders of several families are made of, and that the program around them must know."""

from __future__ import annotations

import executorch.exir.passes._quant_patterns_and_replacements  # noqa: F401  registers embedding_byte, embedding_4bit
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32 (arXiv:1910.07467), `rms_norm_eps` added to the mean square."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight


class LayerNorm(nn.Module):
    """Over the last dimension, in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(dim), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


class Table(nn.Module):
    """Rows of float32 [N, D] to be looked up; the graph never looks at how many there are."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows = rows
        self.weight = nn.Parameter(torch.empty(rows, columns), requires_grad=False)

    def forward(self, index: Tensor) -> Tensor:
        return F.embedding(index, self.weight)


class Vector(nn.Module):
    """A float32 [D] that the graph hands on."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)

    def forward(self) -> Tensor:
        return self.weight


class Numbers(nn.Module):
    """A few float32 numbers that pieces take as inputs [1]: XNNPACK's graphs have no constants of their own."""

    def __init__(self, *numbers: float) -> None:
        super().__init__()
        for index, number in enumerate(numbers):
            self.register_buffer(f"number{index}", torch.tensor([number], device="cpu"), persistent=False)

    def forward(self) -> tuple[Tensor, ...]:
        return tuple(self.buffers())


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

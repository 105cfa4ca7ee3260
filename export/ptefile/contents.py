"""The words for what lies in a `.pte`: linears, embedding, delegates, bytes by kind. Plain data.

`export.ptefile.dissect` fills it in; `export.inspect` shows and judges it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Linear:
    """One linear of `forward`, weight [rows, columns]."""

    name: str  # of its data, without ".weight"; "lm_head" or "linear 3 of delegate 5" where the file has none
    is_head: bool
    delegate: int | None  # index, None where the program computes it itself
    operator: str  # XNNFullyConnected, or the operator that is not delegated
    rows: int
    columns: int
    weight: str  # int4, int8, float32, ...
    group_size: int | None  # columns that share a scale; None: one scale a row, or none
    activation: str  # "dynamic int8", float32, ...
    weight_bytes: int
    scale_bytes: int

    @property
    def label(self) -> str:
        return f"lm_head ({self.name})" if self.is_head and self.name != "lm_head" else self.name


@dataclass(frozen=True)
class Embedding:
    """The token table [rows, columns]."""

    name: str
    operator: str
    rows: int
    columns: int
    weight: str
    group_size: int | None  # columns that share a scale; None: one scale a row, or none
    weight_bytes: int
    scale_bytes: int


@dataclass(frozen=True)
class Delegate:
    """One piece handed to a backend; `problem` says why its blob could not be read."""

    backend: str
    linears: tuple[str, ...]
    nodes: int
    bytes: int  # of its graph, inline weights left out
    problem: str | None


@dataclass(frozen=True)
class Other:
    """A constant that is neither a linear's, nor the embedding's, nor a norm, nor a rope table."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Contents:
    """A whole file. Sizes in bytes; `kinds` adds up to `file_bytes`."""

    file_bytes: int
    kinds: dict[str, int]
    layers: int
    vocab_size: int  # last dimension of the logits
    linears: tuple[Linear, ...]
    embedding: Embedding | None
    others: tuple[Other, ...]
    missing: tuple[str, ...]  # data the delegates ask for by name and the file does not hold
    delegates: tuple[Delegate, ...]
    operators: dict[str, int]  # not delegated: calls in one `forward`
    kv_cache_bytes: int
    activation_bytes: int  # planned beside the KV cache; delegates take their own at run time
    metadata: dict[str, Any]  # constant methods

    @property
    def parameters(self) -> int:
        """Weights of linears, embedding and norms."""
        table = self.embedding.rows * self.embedding.columns if self.embedding else 0
        return table + sum(linear.rows * linear.columns for linear in self.linears) + self.kinds["norms"] // 4

    @property
    def bits_per_weight(self) -> float:
        """Over all parameters, with their scales."""
        kinds = ("embedding", "scales", "norms")
        held = sum(size for kind, size in self.kinds.items() if kind in kinds or kind.endswith(" weights"))
        return 8 * held / max(1, self.parameters)

    @property
    def linear_bits_per_weight(self) -> float:
        """Over the linears, with their scales."""
        held = sum(linear.weight_bytes + linear.scale_bytes for linear in self.linears)
        return 8 * held / max(1, sum(linear.rows * linear.columns for linear in self.linears))

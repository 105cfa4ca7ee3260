"""What the export must know of a family of models; `export.models.registry` lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from checkpoints.roles import Rows

if TYPE_CHECKING:  # heavy, and not needed to write weights
    import torch
    from torch import Tensor, nn

    from checkpoints.config import ModelConfig
    from export.quantization.recipe import Recipe
    from export.xnnpack.drawing import Blobs


@dataclass(frozen=True, eq=False)
class Piece:
    """One delegate's code, the same in every layer but for how its weights are stored."""

    blobs: Callable[[str], Blobs]  # from the prefix of its weights' names, "layers.3.attention."
    outputs: Callable[..., tuple[Tensor, ...]]  # the results as empty tensors, from the arguments


@dataclass(frozen=True)
class Sizes:
    """What calls of a file may have, in tokens, and the type of its KV cache."""

    context: int  # positions of the cache
    chunk: int  # tokens at once
    logits: int | None  # how many last tokens of a call have their logits given; None: all
    cache_dtype: torch.dtype


Call = Callable[[str, str], Callable[..., Any]]  # a piece and the prefix of its weights' names, to a stand-in for it


@dataclass(frozen=True, eq=False)
class Method:
    """One method of a file: what is traced for it, and other methods of the same code.

    `module` makes it of so many layers, with pieces as stand-ins; `example` inputs are those of `dynamic`,
    torch.export's dynamic shapes. A method of `copies` has the same program, but the "piece prefix" of each delegate
    is what the function makes of it.
    """

    name: str
    module: Callable[[int], nn.Module]
    layers: int
    example: tuple[Tensor, ...]
    dynamic: tuple[Any, ...] | None = None
    prefix: str = ""  # before the names of the module's parameters, in the layout
    copies: Mapping[str, Callable[[str], str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ReferenceModules:
    """transformers' own classes, which `export.reference` runs a layer at a time."""

    config: type[Any]
    layer: type[Any]
    norm: type[Any]
    rotary: type[Any]


@dataclass(frozen=True, eq=False)
class Site:
    """A linear of a layer, and what makes its inputs: names of weights without the layer's prefix."""

    linear: str
    feeder: Rows  # input column j is proportional to row (element, of a norm) feeder.start + fed[j] of its weight
    fed: Tensor  # int64 [columns]


class CutLayer(Protocol):
    """A layer of the reference that runs from one site to the next; the weights may be changed in between."""

    weights: dict[str, Tensor]

    def enter(self, site: int, hidden: Tensor, x: Tensor, around: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Residual [B, S, D] and what the linear of this site reads [B, S, columns].

        From the residual and what the site before read, as its linear sees it; `around` is what a layer takes beside.
        """
        ...

    def leave(self, hidden: Tensor, x: Tensor) -> Tensor:
        """The layer's result, from the residual and what the last linear reads."""
        ...


class Family(Protocol):
    """One family. Heavy imports belong into the methods."""

    def layout(self, config: ModelConfig) -> dict[str, Rows]:
        """ExecuTorch name to the rows it is made of, for an untied model, in the order of the graph."""
        ...

    def source_name(self, module: str) -> str | None:
        """The Hugging Face weight of which a layer's module in `layout` is, whatever its sizes; None for others."""
        ...

    def pieces(self, config: ModelConfig, recipe: Recipe, chunk: int, logits: int | None) -> dict[str, Piece]:
        """What XNNPACK computes, for calls of up to `chunk` tokens."""
        ...

    def methods(self, config: ModelConfig, sizes: Sizes, call: Call) -> list[Method]:
        """What a file can be asked to do; `forward` comes first. Weights are stand-ins, on the meta device.

        Norms, tables and the embedding are modules of `export.models.modules`, under their names in `layout`.
        """
        ...

    def reference(self) -> ReferenceModules:
        """What the file is compared with."""
        ...

    def sites(self, config: ModelConfig) -> tuple[Site, ...]:
        """The linears of a layer in the order of its forward pass."""
        ...

    def cut(self, layer: Any) -> CutLayer:
        """A layer of `reference`, cut at its sites; takes it over."""
        ...

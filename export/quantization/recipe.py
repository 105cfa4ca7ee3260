"""What each kind of weight becomes: the recipe of a file, how weights are stored, and torchao's words for both."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import torch

from checkpoints.config import ModelConfig
from checkpoints.errors import BadInput
from checkpoints.families import tensor_shapes
from checkpoints.roles import EMBEDDING, HEAD, Role, role

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig

GROUP_SIZES = (32, 64, 128)
LINEAR = re.compile(r"model\.layers\.(.+)\.weight")
FLOATS = (Role.NORM, Role.TABLE, Role.FLOAT)  # never quantized
MEDIA = (Role.ADAPTER, Role.ENCODER)
INT4: torch.dtype = getattr(torch, "int4")  # noqa: B009  torch 2.13 has it, its type stubs do not


@dataclass(frozen=True)
class Storage:
    """How the rows of one weight lie in a `.pte`; a norm is a single row."""

    columns: int
    bits: int  # of an element: 32 (float32), 8 (int8) or 4 (two a byte, offset by 8)
    groups: int  # scales a row; 0 for float32
    scale_dtype: torch.dtype
    embedding: bool  # decides which nibble of a byte comes first

    def nbytes(self, rows: int) -> dict[str, int]:
        """Bytes of each part of so many rows, "weight" and, where quantized, "scale"."""
        sizes = {"weight": rows * self.columns * self.bits // 8}
        return sizes | {"scale": rows * self.groups * self.scale_dtype.itemsize} if self.groups else sizes


class RecipeFlags(TypedDict, total=False):
    """What a command may choose of a Recipe: its flags are made in `export.flags.add_recipe`."""

    group_size: int
    embedding_bits: int
    head_bits: int | None
    lora_bits: int
    encoder_bits: int
    int8: Sequence[str] | None


@dataclass(frozen=True)
class Recipe:
    """What each kind of weight becomes. Default: the published 8da4w, int8 dynamic activations and int4 weights."""

    quantized: bool = True  # False keeps float32 everywhere, as a reference
    group_size: int = 32  # columns that share an int4 scale
    embedding_bits: int = 8  # 8: one float32 scale a row; 4: one a group
    head_bits: int = 4  # 4: in groups like every linear; 8: one scale a row
    lora_bits: int = 4  # of a multimodal model's adapters; what groups do not divide has 8 bits
    encoder_bits: int = 8  # of the linears of its encoders and projectors, likewise
    int8: tuple[str, ...] = ()  # linears of layers that have 8 bits, one scale a row, as `is_named` takes them

    def __post_init__(self) -> None:
        object.__setattr__(self, "int8", tuple(self.int8))  # JSON has lists

    def __str__(self) -> str:
        if not self.quantized:
            return "float32"
        text = f"8da4w g{self.group_size}, embedding int{self.embedding_bits}, lm_head int{self.head_bits}"
        more = f" and {len(self.int8) - 1} more" if len(self.int8) > 1 else ""
        return f"{text}, int8 {self.int8[0]}{more}" if self.int8 else text

    def as_json(self) -> dict[str, Any]:
        """Its fields as they come back from JSON."""
        return dataclasses.asdict(self) | {"int8": list(self.int8)}

    def bits(self, name: str) -> int:
        """Of an element of the weight with this Hugging Face name."""
        kind = role(name)
        if not self.quantized or kind in FLOATS:
            return 32
        if kind is Role.LINEAR:
            return 8 if is_named(name, self.int8) else 4
        return {
            Role.EMBEDDING: self.embedding_bits,
            Role.HEAD: self.head_bits,
            Role.ADAPTER: self.lora_bits,
            Role.ENCODER: self.encoder_bits,
        }[kind]

    def storage(self, name: str, columns: int) -> Storage:
        """How the weight with this Hugging Face name and so many columns is stored.

        XNNPACK (1.5.1) has no int8 weights in groups: 8 bits have one float32 scale a row. Its int4 scales are
        bfloat16, those of the embedding float32.
        """
        bits, embedding = self.bits(name), name == EMBEDDING
        # Widths of the encoders (588, 4304) and ranks are multiples of few numbers.
        if bits == 4 and role(name) in MEDIA and columns % self.group_size:
            bits = 8
        if bits != 4:
            return Storage(columns, bits, 1 if bits == 8 else 0, torch.float32, embedding)
        scale_dtype = torch.float32 if embedding else torch.bfloat16
        return Storage(columns, 4, columns // self.group_size, scale_dtype, embedding)

    def torchao_config(self, name: str) -> AOBaseConfig | None:
        """torchao's configuration for the weight with this Hugging Face name; None keeps it in float32."""
        from torchao.quantization import (
            Int8DynamicActivationIntxWeightConfig,
            IntxWeightOnlyConfig,
            PerAxis,
            PerGroup,
        )

        storage = self.storage(name, self.group_size)
        if storage.bits == 32:
            return None
        dtype = INT4 if storage.bits == 4 else torch.int8
        granularity = PerGroup(self.group_size) if storage.bits == 4 else PerAxis(0)
        if storage.embedding:
            return IntxWeightOnlyConfig(weight_dtype=dtype, granularity=granularity)
        scale_dtype = torch.bfloat16 if storage.bits == 4 else None  # torchao's default is the weight's own
        return Int8DynamicActivationIntxWeightConfig(
            weight_dtype=dtype, weight_granularity=granularity, weight_scale_dtype=scale_dtype
        )

    def resolved(self, config: ModelConfig) -> Recipe:
        """With every linear that `int8` means by its own name, in the model's order.

        BadInput where one of its names means none.
        """
        if not self.quantized and self.int8:
            raise BadInput(f"--int8 {self.int8[0]} is for quantized weights, and --no-quantize leaves none")
        linears = [name for name in tensor_shapes(config) if role(name) is Role.LINEAR]
        for given in self.int8:
            if given == short_name(HEAD):
                raise BadInput(f"--int8 {given}: the bits of lm_head are those of --head-bits")
            if not any(is_named(name, [given]) for name in linears):
                first = ", ".join(short_name(name) for name in linears[: len(linears) // config.num_hidden_layers])
                raise BadInput(
                    f"--int8 {given} is no linear of {config.path}, which has {first} and so on, "
                    f"{config.num_hidden_layers} layers of them"
                )
        return dataclasses.replace(self, int8=tuple(short_name(n) for n in linears if is_named(n, self.int8)))

    def check(self, config: ModelConfig) -> None:
        """Raise BadInput where a group size does not divide the rows it would be applied to, or `int8` names none."""
        self.resolved(config)
        if not self.quantized:
            return
        if self.group_size not in GROUP_SIZES:
            raise BadInput(f"group size {self.group_size} is none of {', '.join(map(str, GROUP_SIZES))}")
        for key, columns in (
            ("hidden_size", config.hidden_size),
            ("num_attention_heads * head_dim", config.q_dim),
            ("intermediate_size", config.intermediate_size),
        ):
            if columns % self.group_size:
                raise BadInput(
                    f"{config.path}: {key} {columns} cannot be cut into groups of {self.group_size}, "
                    f"{columns % self.group_size} columns would be left over"
                )


def short_name(name: str) -> str:
    """What a person calls the weight with this Hugging Face name: "3.mlp.down_proj", "lm_head"."""
    match = LINEAR.fullmatch(name)
    return match[1] if match else name.removesuffix(".weight")


def is_named(name: str, given: Iterable[str]) -> bool:
    """Whether one of the given names means the linear with this Hugging Face name.

    "3.mlp.down_proj" means one, "3" and "3.mlp" all that lie in there, "mlp.down_proj" and "down_proj" that of every
    layer.
    """
    short = short_name(name)
    return any(f"{short}.".startswith(f"{one}.") or f".{short}".endswith(f".{one}") for one in given)


def make_recipe(quantize: bool = True, **flags: Unpack[RecipeFlags]) -> Recipe:
    """The recipe that flags ask for; what is left out or None keeps its default."""
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    return Recipe(quantized=quantize, **given)

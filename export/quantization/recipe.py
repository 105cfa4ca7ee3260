"""What each kind of weight becomes: the recipe of a file, how weights are stored, and torchao's words for both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import torch

from checkpoints.config import ModelConfig
from checkpoints.errors import BadInput
from checkpoints.roles import Role

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig

GROUP_SIZES = (32, 64, 128)
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
    head_bits: int
    lora_bits: int
    encoder_bits: int


@dataclass(frozen=True)
class Recipe:
    """What each kind of weight becomes. Default: the published 8da4w, int8 dynamic activations and int4 weights."""

    quantized: bool = True  # False keeps float32 everywhere, as a reference
    group_size: int = 32  # columns that share an int4 scale
    embedding_bits: int = 8  # 8: one float32 scale a row; 4: one a group
    head_bits: int = 4  # 4: in groups like every linear; 8: one scale a row
    lora_bits: int = 4  # of a multimodal model's adapters; what groups do not divide has 8 bits
    encoder_bits: int = 8  # of the linears of its encoders and projectors, likewise

    def __str__(self) -> str:
        if not self.quantized:
            return "float32"
        return f"8da4w g{self.group_size}, embedding int{self.embedding_bits}, lm_head int{self.head_bits}"

    def storage(self, role: Role, columns: int) -> Storage:
        """How weights of this role with so many columns are stored.

        XNNPACK (1.5.1) has no int8 weights in groups: 8 bits have one float32 scale a row. Its int4 scales are
        bfloat16, those of the embedding float32.
        """
        embedding = role is Role.EMBEDDING
        if not self.quantized or role in (Role.NORM, Role.TABLE, Role.FLOAT):
            return Storage(columns, 32, 0, torch.float32, embedding)
        media = {Role.ADAPTER: self.lora_bits, Role.ENCODER: self.encoder_bits}
        bits = ({Role.EMBEDDING: self.embedding_bits, Role.HEAD: self.head_bits} | media).get(role, 4)
        # Widths of the encoders (588, 4304) and ranks are multiples of few numbers.
        if bits == 8 or (role in media and columns % self.group_size):
            return Storage(columns, 8, 1, torch.float32, embedding)
        scale_dtype = torch.float32 if embedding else torch.bfloat16
        return Storage(columns, 4, columns // self.group_size, scale_dtype, embedding)

    def torchao_config(self, role: Role) -> AOBaseConfig | None:
        """torchao's configuration for weights of this role; None keeps them in float32."""
        from torchao.quantization import (
            Int8DynamicActivationIntxWeightConfig,
            IntxWeightOnlyConfig,
            PerAxis,
            PerGroup,
        )

        storage = self.storage(role, self.group_size)
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

    def check(self, config: ModelConfig) -> None:
        """Raise BadInput where a group size does not divide the rows it would be applied to."""
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

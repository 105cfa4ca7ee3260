"""What each kind of weight becomes: the recipe of a file, and torchao's words for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torchao.core.config import AOBaseConfig
from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, PerAxis, PerGroup

from checkpoints.config import ModelConfig
from checkpoints.errors import BadInput
from checkpoints.phi3 import Role

GROUP_SIZES = (32, 64, 128)
INT4: torch.dtype = getattr(torch, "int4")  # noqa: B009  torch 2.13 has it, its type stubs do not


@dataclass(frozen=True)
class Recipe:
    """What each kind of weight becomes. Default: the published 8da4w, int8 dynamic activations and int4 weights."""

    quantized: bool = True  # False keeps float32 everywhere, as a reference
    group_size: int = 32  # columns that share an int4 scale
    embedding_bits: int = 8  # 8: one float32 scale a row; 4: one a group
    head_bits: int = 4  # 4: in groups like every linear; 8: one scale a row

    def __str__(self) -> str:
        if not self.quantized:
            return "float32"
        return f"8da4w g{self.group_size}, embedding int{self.embedding_bits}, lm_head int{self.head_bits}"

    def torchao_config(self, role: Role) -> AOBaseConfig | None:
        """torchao's configuration for weights of this role; None keeps them in float32."""
        if not self.quantized or role is Role.NORM:
            return None
        if role is Role.EMBEDDING:
            if self.embedding_bits == 8:
                return IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
            return IntxWeightOnlyConfig(weight_dtype=INT4, granularity=PerGroup(self.group_size))
        if role is Role.HEAD and self.head_bits == 8:
            # XNNPACK has no int8 weights in groups (1.5.1), and wants one float32 scale a row
            return Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))
        return Int8DynamicActivationIntxWeightConfig(
            weight_dtype=INT4,
            weight_granularity=PerGroup(self.group_size),
            weight_scale_dtype=torch.bfloat16,
        )

    def storage(self, role: Role, columns: int) -> tuple[int, int, int]:
        """Bits of an element, columns that share a scale, bytes of a scale, as stored in a `.pte`."""
        if self.torchao_config(role) is None:
            return 32, columns, 0
        bits = {Role.EMBEDDING: self.embedding_bits, Role.HEAD: self.head_bits}.get(role, 4)
        if bits == 8:
            return 8, columns, 4
        return 4, self.group_size, 4 if role is Role.EMBEDDING else 2

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

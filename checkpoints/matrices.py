"""Phi-4-multimodal's weights as they are multiplied: matrices, and vectors beside them.

Names are those of `checkpoints.phi4mm`, shapes those of `checkpoints.families.matrix_shapes`. Two things are
computed: a gated convolution's bias holds `b1` and `b2`, which are added after it, and lora_B is times its adapter's
scale.
"""

import torch
from torch import Tensor

from checkpoints.families import matrix_shapes
from checkpoints.phi4mm import is_depthwise
from checkpoints.untied import Untied
from checkpoints.weights import Checkpoint

GLU_BIAS = ".glu.ext_pw_conv_1d.bias"


class Matrices(Untied):
    """A checkpoint of Phi-4-multimodal, untied, whose `rows` are those of matrices; float32 where computed."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        multimodal = checkpoint.config.multimodal
        assert multimodal is not None
        self._scales = {f".lora_B.{name}.weight": lora.scale for name, lora in multimodal.loras.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        return matrix_shapes(self.config)[name]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start … stop of a matrix, or elements of a vector."""
        stored, dims = super().shape(name), len(self.shape(name))
        if name.endswith(GLU_BIAS):
            glu = name.removesuffix("ext_pw_conv_1d.bias")
            added = torch.cat([super(Matrices, self).tensor(glu + part).flatten() for part in ("b1", "b2")])
            return super().rows(name, start, stop).float() + added[start:stop].float()
        if len(stored) > 2 and dims == 1:
            return super().tensor(name).flatten()[start:stop]
        if is_depthwise(name, stored):
            return super().tensor(name).flatten(1).T[start:stop].contiguous()
        rows = super().rows(name, start, stop)
        scale = next((scale for ending, scale in self._scales.items() if name.endswith(ending)), None)
        if scale is not None:
            return rows.float() * scale
        return rows.flatten(1) if len(stored) > 2 else rows


def seen(checkpoint: Checkpoint) -> Untied:
    """A checkpoint as an export multiplies it: untied, and of a multimodal model in matrices."""
    return Untied(checkpoint) if checkpoint.config.multimodal is None else Matrices(checkpoint)

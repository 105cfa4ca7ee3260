"""transformers' encoders with a file's roundings: where they lie is where a file has linears."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from export.reference.layerwise import round_activations
from export.reference.media import with_roundings


def test_patches_are_rounded_one_by_one_as_a_linear_reads_them() -> None:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(3, 8, kernel_size=4, stride=4)
    pixels = torch.randn(1, 3, 12, 8, generator=generator)
    pixels[:, :, :4, 4:] *= 100  # a patch that would coarsen the others
    rows = F.unfold(pixels, 4, stride=4).mT  # [1, 6, 48]
    wanted = F.linear(round_activations(rows), conv.weight.flatten(1), conv.bias).mT.reshape(1, 8, 3, 2)
    torch.testing.assert_close(with_roundings(conv)(pixels), wanted)
    assert not torch.allclose(conv(pixels), wanted, atol=1e-3)


def test_convolutions_over_neighbours_stay_in_float() -> None:
    conv = nn.Conv2d(1, 8, kernel_size=3, stride=2, padding=1)
    pixels = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(with_roundings(conv)(pixels), conv(pixels))

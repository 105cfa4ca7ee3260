"""Keys and values of all positions so far: the module, the types they may have, and what they take."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from checkpoints.config import ModelConfig

# What update_cache and custom_sdpa take and compute fast; float16 is ten times slower on x86.
CACHE_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def cache_bytes(config: ModelConfig, context: int, dtype: torch.dtype) -> int:
    """Bytes of the caches of all layers."""
    return 2 * config.num_hidden_layers * context * config.kv_dim * dtype.itemsize


class KVCache(nn.Module):
    """Keys and values of every position so far, [G, C, 1, E], overwritten in place by `llama::update_cache`.

    Heads are where the operators expect a batch, so that each head's keys lie side by side: custom_sdpa reads a head
    at a time, and in [1, C, G, E] every key of a head is on another page.
    """

    k_cache: Tensor
    v_cache: Tensor

    def __init__(self, context: int, heads: int, head_dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        # On the CPU even where weights are on the meta device: tracing needs real buffers. Not zeroed: rows are read
        # only after they were written, and pages never touched cost no memory, however long the context.
        for name in ("k_cache", "v_cache"):
            cache = torch.empty(heads, context, 1, head_dim, dtype=dtype, device="cpu")
            self.register_buffer(name, cache, persistent=False)

    def update(self, k: Tensor, v: Tensor, start_pos: int) -> tuple[Tensor, Tensor]:
        """Write k, v [G, S, 1, E] at rows start_pos … start_pos + S and return the whole caches."""
        torch.ops.llama.update_cache(k, self.k_cache, start_pos)
        torch.ops.llama.update_cache(v, self.v_cache, start_pos)
        return self.k_cache, self.v_cache

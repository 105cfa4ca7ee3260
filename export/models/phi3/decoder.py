"""The Phi-3/Phi-4-mini decoder as one graph: what ExecuTorch traces and a phone runs.

Parameter names are those of ExecuTorch's Phi-4-mini layout. The module knows nothing about files, quantization or
delegates; `Attention.project`, `Attention.finish`, `FeedForward.project` and `Transformer.head` are the pieces that
the lowering stage replaces by delegate calls. Batch size is 1 throughout, as in the phone runners.

Shapes: S tokens in this call, D hidden size, H query heads, G key/value heads, E head size, R rotated dimensions,
C context (rows of the cache), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import executorch.extension.llm.custom_ops.custom_ops  # noqa: F401  registers llama::update_cache, custom_sdpa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from checkpoints.config import ModelConfig
from export.models.kv_cache import KVCache
from export.models.modules import RMSNorm


def rotate(x: Tensor, cos: Tensor, sin: Tensor, half: int) -> Tensor:
    """Half-split rotation of the first R = 2 * half of E dimensions (`partial_rotary_factor`).

    x [..., S, heads, E]; cos and sin [1, S, 1, E] from `full_width`.
    """
    swapped = [x[..., half : 2 * half], x[..., :half]]
    if 2 * half < x.shape[-1]:
        swapped.append(x[..., 2 * half :])
    return x * cos + torch.cat(swapped, dim=-1) * sin


def full_width(cos: Tensor, sin: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Spread tables [S, R/2] over all E dimensions, [1, S, 1, E], once per call: (cos, cos, 1) and (-sin, sin, 0)."""
    rest = head_dim - 2 * cos.shape[-1]
    cos = torch.cat([cos, cos, torch.ones(cos.shape[0], rest)] if rest else [cos, cos], dim=-1)
    sin = torch.cat([-sin, sin, torch.zeros(sin.shape[0], rest)] if rest else [-sin, sin], dim=-1)
    return cos.unsqueeze(0).unsqueeze(2), sin.unsqueeze(0).unsqueeze(2)


class Attention(nn.Module):
    """Grouped-query attention with a KV cache; softmax(q k / sqrt(E)) by `llama::custom_sdpa`, causal."""

    def __init__(self, config: ModelConfig, context: int, cache_dtype: torch.dtype) -> None:
        super().__init__()
        self.kv_heads, self.head_dim = config.num_key_value_heads, config.head_dim
        self.group = config.num_attention_heads // config.num_key_value_heads
        self.half_rotary = config.rotary_dim // 2
        self.wq = nn.Linear(config.hidden_size, config.q_dim, bias=False)
        self.wk = nn.Linear(config.hidden_size, config.kv_dim, bias=False)
        self.wv = nn.Linear(config.hidden_size, config.kv_dim, bias=False)
        self.wo = nn.Linear(config.q_dim, config.hidden_size, bias=False)
        self.kv_cache = KVCache(context, config.num_key_value_heads, config.head_dim, cache_dtype)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [1, S, D] to [G, S, H/G + 1, E], the queries of each key's group and that key, and v [G, S, 1, E]."""
        q = self.wq(x).view(-1, self.kv_heads, self.group, self.head_dim)
        k = self.wk(x).view(-1, self.kv_heads, 1, self.head_dim)
        v = self.wv(x).view(-1, self.kv_heads, 1, self.head_dim)
        return torch.cat([q, k], dim=2).transpose(0, 1), v.transpose(0, 1)

    def finish(self, attended: Tensor, h: Tensor) -> Tensor:
        """Output projection of [G, S, H/G, E] and the residual h [1, S, D]."""
        # permute_copy: reshape would do the same by a clone and a shape that XNNPACK does not take
        by_token = torch.permute_copy(attended, (1, 0, 2, 3))
        return h + self.wo(by_token.view(1, -1, self.kv_heads * self.group * self.head_dim))

    def forward(self, h: Tensor, x: Tensor, cos: Tensor, sin: Tensor, start_pos: int) -> Tensor:
        qk, v = self.project(x)
        dtype = self.kv_cache.k_cache.dtype
        qk = rotate(qk, cos, sin, self.half_rotary).to(dtype)  # queries and keys together
        k_cache, v_cache = self.kv_cache.update(qk[:, :, self.group :], v.to(dtype), start_pos)
        # custom_sdpa(query, k, v, start_pos, attn_mask, dropout_p, is_causal); its scale defaults to 1/sqrt(E)
        attended = torch.ops.llama.custom_sdpa(qk[:, :, : self.group], k_cache, v_cache, start_pos, None, 0.0, True)
        return self.finish(attended.to(torch.float32), h)


class FeedForward(nn.Module):
    """SwiGLU (arXiv:2002.05202) and its residual: h + w2(silu(w1(x)) * w3(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)

    def project(self, x: Tensor, h: Tensor) -> Tensor:
        return h + self.w2(F.silu(self.w1(x)) * self.w3(x))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.project(x, h)


class TransformerBlock(nn.Module):
    """Pre-norm attention and feed-forward, each with its residual."""

    def __init__(self, config: ModelConfig, context: int, cache_dtype: torch.dtype) -> None:
        super().__init__()
        self.attention = Attention(config, context, cache_dtype)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor, start_pos: int) -> Tensor:
        h = self.attention(h, self.attention_norm(h), cos, sin, start_pos)
        return self.feed_forward(self.ffn_norm(h), h)


def rope_tables(config: ModelConfig, context: int) -> tuple[Tensor, Tensor]:
    """cos and sin of every position, each float32 [context, R/2].

    LongRoPE (arXiv:2402.13753) as transformers computes it: the angle of dimension i is
    position / (factor_i * rope_theta^(2i/R)), cos and sin are multiplied by the attention factor at every length.
    The long factors hold at every position of a file whose context exceeds `original_max_position_embeddings`: a file
    has one table, and its cached keys cannot be turned again when a sequence passes that length.
    """
    half = config.rotary_dim // 2
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.int64).float() / config.rotary_dim
    factors = torch.tensor(config.rope_factors(context), dtype=torch.float32)
    assert factors.shape == (half,)
    inverse = 1.0 / (factors * config.rope_theta**exponents)
    angles = torch.outer(torch.arange(context, dtype=torch.float32), inverse)
    return angles.cos() * config.attention_factor, angles.sin() * config.attention_factor


class Transformer(nn.Module):
    """tokens [1, S] int64 and input_pos [1] int64 (position of the first) to logits float32.

    They are those of the last token, [1, V]; with `logits` above 1 of that many at most, [1, min(S, logits), V]; with
    None of all, [1, S, V].
    """

    tok_embeddings: Any  # nn.Embedding or QuantizedEmbedding
    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(
        self, config: ModelConfig, context: int, cache_dtype: torch.dtype = torch.float32, logits: int | None = 1
    ) -> None:
        super().__init__()
        self.config = config
        self.context, self.logits, self.head_dim = context, logits, config.head_dim
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            TransformerBlock(config, context, cache_dtype) for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        with torch.device("cpu"):
            cos, sin = rope_tables(config, context)
        self.register_buffer("freqs_cos", cos, persistent=False)
        self.register_buffer("freqs_sin", sin, persistent=False)

    def head(self, h: Tensor) -> Tensor:
        return self.output(h)

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        return self.decode(tokens, self.tok_embeddings, input_pos)

    def decode(self, inputs: Tensor, embed: Callable[[Tensor], Tensor], input_pos: Tensor) -> Tensor:
        """Logits of what `embed` makes of the inputs [1, S, ...]."""
        start_pos, length = cast(int, input_pos[0].item()), inputs.shape[1]
        torch._check_is_size(start_pos)
        torch._check(start_pos + length <= self.context)
        cos, sin = full_width(
            self.freqs_cos.narrow(0, start_pos, length), self.freqs_sin.narrow(0, start_pos, length), self.head_dim
        )
        h = embed(inputs)
        for layer in self.layers:
            h = layer(h, cos, sin, start_pos)
        if self.logits == 1:
            h = h[:, -1]
        elif self.logits is not None:
            # min(length, logits), read out of a tensor: torch.export cannot tell the minimum of a length from 0 and 1
            rows = cast(int, torch.full((1,), length).clamp(max=self.logits).item())
            torch._check(rows >= 1)
            torch._check(rows <= self.logits)
            torch._check(rows <= length)
            h = h.narrow(1, length - rows, rows)
        return self.head(self.norm(h))

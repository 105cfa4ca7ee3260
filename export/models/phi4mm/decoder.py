"""The text decoder with adapters beside its linears: methods that take embeddings, and pieces with low-rank products.

The base weights are those of the plain decoder, in each method by the same names. What an adapter adds to a linear is
B (A x), in the piece of that linear; one A serves queries, keys and values, and one gate and up. Its scale is in B.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.config import ModelConfig
from checkpoints.phi4mm_config import Lora
from export.models.family import Call, Method, Piece, Sizes
from export.models.phi3.decoder import Transformer
from export.models.phi3.methods import decoder_method
from export.models.phi3.pieces import (
    Stored,
    draw_feed,
    draw_finish,
    draw_project,
    make_piece,
    outputs,
    plain_linear,
)
from export.xnnpack.drawing import Drawing

PARTS = ("project", "finish", "feed")  # pieces that adapters change
DOWN = {  # linear -> the target of adapters that it is of, and their A for its input
    **dict.fromkeys(("wq", "wk", "wv"), ("self_attn.qkv_proj", "qkv_a")),
    "wo": ("self_attn.o_proj", "o_a"),
    **dict.fromkeys(("w1", "w3"), ("mlp.gate_up_proj", "up_a")),
    "w2": ("mlp.down_proj", "down_a"),
}


class EmbeddingsDecoder(Transformer):
    """embeddings [1, S, D] float32 and input_pos [1] int64 to logits, as of `Transformer`."""

    def __init__(
        self, config: ModelConfig, context: int, cache_dtype: torch.dtype = torch.float32, logits: int | None = 1
    ) -> None:
        super().__init__(config, context, cache_dtype, logits)
        del self.tok_embeddings

    def forward(self, embeddings: Tensor, input_pos: Tensor) -> Tensor:
        return self.decode(embeddings, lambda h: h, input_pos)


class TokenEmbedding(nn.Module):
    """tokens [1, S] int64 to rows of the embedding [1, S, D]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.tok_embeddings(tokens)
        return result


def methods(config: ModelConfig, sizes: Sizes, call: Call, stock: str) -> list[Method]:
    """token_embedding, text_decoder_text and its copies, one for each adapter: with that of `stock` text_decoder."""
    assert config.multimodal is not None
    tokens = torch.zeros(1, min(3, sizes.chunk), dtype=torch.long)
    length = torch.export.Dim("length", min=1, max=sizes.chunk)
    embedding = Method("token_embedding", lambda _: TokenEmbedding(config), 0, (tokens,), ({1: length},))
    example = torch.zeros(1, tokens.shape[1], config.hidden_size)
    text = decoder_method("text_decoder_text", config, sizes, call, example, EmbeddingsDecoder)
    # The stock runners know one decoder, which is that of pictures where the file has any.
    copies = {
        "text_decoder" if adapter == stock else f"text_decoder_{adapter}": _with_adapter(adapter)
        for adapter in config.multimodal.loras
    }
    return [embedding, dataclasses.replace(text, copies=copies)]


def _with_adapter(adapter: str) -> Callable[[str], str]:
    return lambda token: f"{adapter}_{token}" if token.split()[0] in PARTS else token


def make_pieces(config: ModelConfig, stored: Stored, chunk: int) -> dict[str, Piece]:
    """Those of PARTS for each adapter, for calls of up to `chunk` tokens: "vision_project" …."""
    assert config.multimodal is not None
    results = outputs(config)
    found = {}
    for adapter, lora in config.multimodal.loras.items():
        for name, draw in (("project", draw_project), ("finish", draw_finish), ("feed", draw_feed)):

            def drawn(here: Stored, draw: Any = draw, adapter: str = adapter, lora: Lora = lora) -> Drawing:
                drawing: Drawing = draw(config, chunk, LowRankLinears(adapter, lora, here))
                return drawing

            found[f"{adapter}_{name}"] = make_piece(drawn, stored, results[name])
    return found


class LowRankLinears:
    """Draws a linear, and what an adapter adds to its result where it changes that linear."""

    def __init__(self, adapter: str, lora: Lora, stored: Stored) -> None:
        self.adapter, self.lora, self.linear = adapter, lora, plain_linear(stored)
        self._low: dict[str, int] = {}  # A x, drawn once for all linears of an input

    def __call__(self, drawing: Drawing, x: int, rows: int, name: str) -> int:
        base = self.linear(drawing, x, rows, name)
        target, down = DOWN[name]
        if target not in self.lora.targets:
            return base
        if down not in self._low:
            self._low[down] = self.linear(drawing, x, self.lora.rank, f"{self.adapter}.{down}")
        up = f"{self.adapter}.{name.removeprefix('w') if name[1] in 'qkvo' else name}_b"
        return drawing.add(base, self.linear(drawing, self._low[down], rows, up))

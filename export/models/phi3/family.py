"""The dense Phi-3 family: Phi-3-mini, Phi-3.5-mini, Phi-4-mini and what is shaped like them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from checkpoints.roles import Rows
from export.models.family import Family, ReferenceModules
from export.models.phi3.layout import layout, source_name

if TYPE_CHECKING:
    import torch
    from torch import nn

    from checkpoints.config import ModelConfig
    from export.models.family import CutLayer, Piece, Site
    from export.quantization.recipe import Recipe


class Phi3(Family):
    """See `export.models.family`."""

    def layout(self, config: ModelConfig) -> dict[str, Rows]:
        return layout(config)

    def source_name(self, module: str) -> str | None:
        return source_name(module)

    def decoder(self, config: ModelConfig, context: int, cache_dtype: torch.dtype, logits: int | None) -> nn.Module:
        from export.models.phi3.decoder import Transformer

        return Transformer(config, context, cache_dtype, logits)

    def pieces(self, config: ModelConfig, recipe: Recipe, chunk: int, logits: int | None) -> dict[str, Piece]:
        from export.models.phi3.pieces import make_pieces

        return make_pieces(config, recipe, chunk, logits)

    def call_pieces(self, decoder: Any, call: Callable[[str, str], Callable[..., Any]]) -> None:
        for i, block in enumerate(decoder.layers):
            attention, feed_forward = block.attention, block.feed_forward
            attention.project = call("project", f"layers.{i}.attention.")
            attention.finish = call("finish", f"layers.{i}.attention.")
            feed_forward.project = call("feed", f"layers.{i}.feed_forward.")
            del attention.wq, attention.wk, attention.wv, attention.wo
            del feed_forward.w1, feed_forward.w2, feed_forward.w3
        decoder.head = call("head", "")
        del decoder.output

    def reference(self) -> ReferenceModules:
        from transformers import Phi3Config
        from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer, Phi3RMSNorm, Phi3RotaryEmbedding

        return ReferenceModules(Phi3Config, Phi3DecoderLayer, Phi3RMSNorm, Phi3RotaryEmbedding)

    def sites(self, config: ModelConfig) -> tuple[Site, ...]:
        from export.models.phi3.sites import sites

        return sites(config)

    def cut(self, layer: Any) -> CutLayer:
        from export.models.phi3.sites import CutPhi3Layer

        return CutPhi3Layer(layer)

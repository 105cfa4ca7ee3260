"""The dense Phi-3 family: Phi-3-mini, Phi-3.5-mini, Phi-4-mini and what is shaped like them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from checkpoints.roles import Rows
from export.models.family import Call, Family, Method, ReferenceModules, Sizes
from export.models.phi3.layout import layout, source_name

if TYPE_CHECKING:
    from checkpoints.config import ModelConfig
    from export.models.family import CutLayer, Piece, Site
    from export.quantization.recipe import Recipe


class Phi3(Family):
    """See `export.models.family`."""

    def layout(self, config: ModelConfig) -> dict[str, Rows]:
        return layout(config)

    def source_name(self, module: str) -> str | None:
        return source_name(module)

    def pieces(self, config: ModelConfig, recipe: Recipe, chunk: int, logits: int | None) -> dict[str, Piece]:
        from export.models.phi3.pieces import make_pieces

        return make_pieces(config, recipe, chunk, logits)

    def methods(self, config: ModelConfig, sizes: Sizes, call: Call) -> list[Method]:
        from export.models.phi3.methods import forward

        return [forward(config, sizes, call)]

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

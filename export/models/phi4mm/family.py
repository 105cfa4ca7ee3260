"""Phi-4-multimodal: the dense Phi-3 decoder with adapters, and encoders of pictures and sound."""

from __future__ import annotations

from typing import TYPE_CHECKING

from checkpoints.phi4mm_config import ADAPTERS, AUDIO, VISION
from checkpoints.roles import Rows
from export.models.family import Call, Method, Sizes
from export.models.phi3.family import Phi3
from export.models.phi4mm.layout import layout

if TYPE_CHECKING:
    from checkpoints.config import ModelConfig
    from export.models.family import Piece
    from export.quantization.recipe import Recipe


class Phi4Multimodal(Phi3):
    """See `export.models.family`; reference and sites are those of the text model."""

    def layout(self, config: ModelConfig) -> dict[str, Rows]:
        return layout(config)

    def methods(self, config: ModelConfig, sizes: Sizes, call: Call) -> list[Method]:
        from export.models.phi4mm import audio, decoder, vision

        assert config.multimodal is not None
        pictures, sound = config.multimodal.vision, config.multimodal.audio
        stock = ADAPTERS[VISION if pictures is not None else AUDIO]
        found = [*super().methods(config, sizes, call), *decoder.methods(config, sizes, call, stock)]
        if pictures is not None:
            found += vision.methods(pictures, call)
        if sound is not None:
            found += audio.methods(sound, call, pictures is not None)
        return found

    def pieces(self, config: ModelConfig, recipe: Recipe, chunk: int, logits: int | None) -> dict[str, Piece]:
        from export.models.phi3.pieces import stored_by
        from export.models.phi4mm import audio, decoder, vision

        assert config.multimodal is not None
        stored = stored_by(recipe, layout(config))
        found = super().pieces(config, recipe, chunk, logits) | decoder.make_pieces(config, stored, chunk)
        if config.multimodal.vision is not None:
            found |= vision.make_pieces(config.multimodal.vision, config.hidden_size, stored)
        if config.multimodal.audio is not None:
            found |= audio.make_pieces(config.multimodal.audio, config.hidden_size, stored)
        return found

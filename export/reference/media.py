"""transformers' own encoders of Phi-4-multimodal, with a file's weights, plain and with the file's roundings.

One encoder at a time, in float32: 1.8 GB at full width. Attention is "eager": with "sdpa" transformers 5.23 takes the
vision encoder for a causal one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.config import ModelConfig
from checkpoints.families import tensor_shapes
from checkpoints.phi4mm import IMAGE, is_depthwise
from export.ptefile.weights import DecodedRows, FileWeights
from export.reference.layerwise import round_activations


def load_encoder(config: ModelConfig, weights: FileWeights, prefix: str) -> Any:
    """transformers' module of IMAGE or SOUND, in float32."""
    from transformers.models.phi4_multimodal import modeling_phi4_multimodal as theirs

    kind = theirs.Phi4MultimodalImageEmbedding if prefix == IMAGE else theirs.Phi4MultimodalAudioEmbedding
    with torch.device("meta"):
        module = kind(_config(config))
    module.to_empty(device="cpu").eval().requires_grad_(False)
    shapes = tensor_shapes(config)
    state = dict(module.named_parameters()) | dict(module.named_buffers())
    for name in (name for name in shapes if name.startswith(prefix)):
        place = state[name.removeprefix(prefix)]
        if name.endswith((".glu.b1", ".glu.b2")):  # a file has them in the bias before them
            place.zero_()
            continue
        values = torch.cat([piece.values for piece in weights.pieces(name)])
        stored = shapes[name]
        place.copy_((values.T if is_depthwise(name, stored) else values).reshape(stored))
    return module


def with_roundings(module: Any) -> Any:
    """The same on the same weights, with linears that read int8 with a scale a token, as the file's do."""
    twin = copy.deepcopy(module, {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]})
    for part in twin.modules():
        if isinstance(part, nn.Linear):
            part.register_forward_pre_hook(lambda _, args: (round_activations(args[0]),))
        elif isinstance(part, (nn.Conv1d, nn.Conv2d)) and part.groups == 1 and set(part.kernel_size) == {1}:
            part.register_forward_pre_hook(
                lambda _, args: (round_activations(args[0].movedim(1, -1)).movedim(-1, 1).contiguous(),)
            )
        elif isinstance(part, nn.Conv2d) and part.stride == part.kernel_size:  # patches, a linear in a file
            part.register_forward_pre_hook(lambda conv, args: (_round_patches(args[0], conv.kernel_size[0]),))
    return twin


def _round_patches(pixels: Tensor, side: int) -> Tensor:
    """Pixels [1, C, height, width] as int8 with a scale for each patch of `side` x `side` keeps them."""
    patches = pixels.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 1, 3, 5)
    rounded = round_activations(patches.flatten(3)).view(patches.shape).permute(0, 3, 1, 4, 2, 5)
    return rounded.flatten(4).flatten(2, 3)


def project(module: Any, features: Tensor, name: str) -> Tensor:
    """Features through the two linears of a projector: "img_projection_{}", "{}_proj_for_speech" …."""
    up, down = (getattr(module, name.format(side)) for side in ("up", "down"))
    result: Tensor = down(nn.functional.gelu(up(features)))
    return result


def crop_features(module: Any, pixels: Tensor, valid: tuple[int, int]) -> Tensor:
    """Tokens [1, tokens, D] of a crop [1, 3, side, side] of which so many rows and columns of patches are valid."""
    side = module.img_processor.embeddings.num_patches_per_side
    mask = torch.zeros(1, side, side, dtype=torch.bool)
    mask[:, : valid[0], : valid[1]] = True
    return project(module, module.get_img_features(pixels, attention_mask=mask), "img_projection_{}")


class AdaptedWeights:
    """A file's weights with one of its adapters added to the linears it changes; see `layerwise.Weights`."""

    def __init__(self, weights: FileWeights, adapter: str) -> None:
        self._weights, self._adapter, self._all = weights, adapter, set(weights.names())

    @property
    def rounds_activations(self) -> bool:
        return self._weights.rounds_activations

    def pieces(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[DecodedRows]:
        left, right = (f"{name.removesuffix('.weight')}.lora_{side}.{self._adapter}.weight" for side in "BA")
        if left not in self._all:
            yield from self._weights.pieces(name, start, stop)
            return
        down = torch.cat([piece.values for piece in self._weights.pieces(right)])
        for piece in self._weights.pieces(name, start, stop):
            end = piece.start + len(piece.values)
            up = torch.cat([rows.values for rows in self._weights.pieces(left, piece.start, end)])
            yield DecodedRows(piece.start, piece.values + up @ down, piece.scale, piece.bits)

    def embedding_rows(self, tokens: list[int]) -> Tensor:
        return self._weights.embedding_rows(tokens)

    def prefetch(self, name: str) -> None:
        self._weights.prefetch(name)


def _config(config: ModelConfig) -> Any:
    """What transformers makes these modules of; a layer more than is used, as features come before the last."""
    from transformers import Phi4MultimodalConfig

    assert config.multimodal is not None
    vision, audio = config.multimodal.vision, config.multimodal.audio
    of_vision, of_audio = {}, {}
    if vision is not None:
        of_vision = {
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.used_layers + 1,
            "num_attention_heads": vision.num_attention_heads,
            "image_size": vision.image_size,
            "crop_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layer_norm_eps": vision.layer_norm_eps,
            "feature_layer": -2,
        }
    if audio is not None:
        of_audio = {
            "hidden_size": audio.hidden_size,
            "intermediate_size": audio.intermediate_size,
            "num_blocks": audio.num_hidden_layers,
            "num_attention_heads": audio.num_attention_heads,
            "input_size": audio.num_mel_bins,
            "nemo_conv_channels": audio.conv_channels,
            "ext_pw_out_channel": audio.hidden_size,
            "depthwise_separable_out_channel": audio.hidden_size,
            "kernel_size": audio.kernel_size,
            "time_reduction": audio.time_reduction,
            "bias_max_distance": audio.bias_max_distance,
        }
    # Sizes of the text model beyond its width do not matter here.
    made = Phi4MultimodalConfig(hidden_size=config.hidden_size, vision_config=of_vision, audio_config=of_audio)
    for part in (made, made.vision_config, made.audio_config):
        part._attn_implementation = "eager"
    return made

"""From transformers' tensor names of Phi-4-multimodal to names in a file: the text decoder's, and what is beside it.

Adapters lie beside the linears they change ("layers.0.attention.vision.qkv_a"), encoders under "vision." and "audio."
A vector's name ends in "bias.weight" where a linear's or norm's bias is meant. Rows are those of matrices, as
`checkpoints.matrices` has them.
"""

from __future__ import annotations

from checkpoints.config import ModelConfig
from checkpoints.families import matrix_shapes, split_names
from checkpoints.phi4mm import IMAGE, SOUND
from checkpoints.phi4mm_config import Audio, Lora, Vision
from checkpoints.roles import Rows
from export.models.phi3.layout import layout as text_layout

AUDIO_PROJECTIONS = {"speech": "speech", "vision": "vision_speech"}  # in a file -> in the checkpoint
NORMED = {  # of a conformer block: our name -> theirs
    "feed_in.norm": "feed_forward_in.layer_norm",
    "attention.norm": "layer_norm_att",
    "conv.norm": "conv.layer_norm",
    "feed_out.norm": "feed_forward_out.layer_norm",
    "norm": "layer_norm",
}
CONVOLVED = {
    "depthwise": "conv.dw_sep_conv_1d.dw_conv",
    "point": "conv.dw_sep_conv_1d.pw_conv",
    "out": "conv.ext_pw_conv_1d",
}


def layout(config: ModelConfig) -> dict[str, Rows]:
    """Name in a file to the rows it is made of, for an untied model, in the order of the graphs."""
    assert config.multimodal is not None
    shapes = matrix_shapes(config)
    vision, audio, loras = config.multimodal.vision, config.multimodal.audio, config.multimodal.loras
    table = text_layout(config)
    for name, lora in loras.items():
        for i in range(config.num_hidden_layers):
            table |= _lora(config, name, lora, i)
    whole: dict[str, str] = {}
    if vision is not None:
        whole |= _vision(vision)
    parts: dict[str, Rows] = {}
    if audio is not None:
        # Sound beside pictures is projected otherwise than sound alone.
        modes = ("speech", "vision") if vision is not None else ("speech",)
        whole |= _audio(audio, modes)
        for i in range(audio.num_hidden_layers):
            parts |= _halves(audio, i)
    named = {ours: Rows(theirs, 0, shapes[theirs][0]) for ours, theirs in whole.items()}
    return table | named | parts


def _lora(config: ModelConfig, adapter: str, lora: Lora, layer: int) -> dict[str, Rows]:
    ours, theirs = f"layers.{layer}.", f"model.layers.{layer}."
    split = split_names(config)
    parts: dict[str, tuple[str, str, dict[str, str | None]]] = {
        "self_attn.qkv_proj": ("attention", "qkv_a", {"q_b": "q_proj", "k_b": "k_proj", "v_b": "v_proj"}),
        "self_attn.o_proj": ("attention", "o_a", {"o_b": None}),
        "mlp.gate_up_proj": ("feed_forward", "up_a", {"w1_b": "gate_proj", "w3_b": "up_proj"}),
        "mlp.down_proj": ("feed_forward", "down_a", {"w2_b": None}),
    }
    table = {}
    for target in lora.targets:
        place, down, ups = parts[target]
        left, right = (f"{theirs}{target}.lora_{side}.{adapter}.weight" for side in "BA")
        table[f"{ours}{place}.{adapter}.{down}.weight"] = Rows(right, 0, lora.rank)
        for up, part in ups.items():
            of_part = split.get(f"{theirs}{target.rpartition('.')[0]}.{part}.weight")
            start, stop = (of_part.start, of_part.stop) if of_part else (0, config.hidden_size)
            table[f"{ours}{place}.{adapter}.{up}.weight"] = Rows(left, start, stop)
    return table


def _both(ours: str, theirs: str) -> dict[str, str]:
    """Of a linear or norm with a bias."""
    return {f"{ours}.weight": f"{theirs}.weight", f"{ours}.bias.weight": f"{theirs}.bias"}


def _vision(vision: Vision) -> dict[str, str]:
    processor = f"{IMAGE}img_processor"
    table = {
        **_both("vision.patch", f"{processor}.embeddings.patch_embedding"),
        "vision.positions.weight": f"{processor}.embeddings.position_embedding.weight",
    }
    for i in range(vision.used_layers):
        ours, theirs = f"vision.layers.{i}", f"{processor}.encoder.layers.{i}"
        table |= _both(f"{ours}.norm1", f"{theirs}.layer_norm1")
        for part, name in (("wq", "q"), ("wk", "k"), ("wv", "v"), ("wo", "out")):
            table |= _both(f"{ours}.{part}", f"{theirs}.self_attn.{name}_proj")
        table |= _both(f"{ours}.norm2", f"{theirs}.layer_norm2")
        for part in ("fc1", "fc2"):
            table |= _both(f"{ours}.{part}", f"{theirs}.mlp.{part}")
    return {
        **table,
        **_both("vision.projector.up", f"{IMAGE}img_projection_up"),
        **_both("vision.projector.down", f"{IMAGE}img_projection_down"),
        "vision.divider.weight": f"{IMAGE}global_img_feature_extensor",
        "vision.separator.weight": f"{IMAGE}sub_img_feature_extensor",
    }


def _audio(audio: Audio, modes: tuple[str, ...]) -> dict[str, str]:
    """What is whole tensors of the checkpoint."""
    encoder = f"{SOUND}encoder"
    table = {
        "audio.mean.weight": f"{encoder}.encoder_embedding.global_mean",
        "audio.invstd.weight": f"{encoder}.encoder_embedding.global_invstd",
        **_both("audio.conv", f"{encoder}.embed.conv.0"),
    }
    for i in range(1, halvings(audio)):
        table |= _both(f"audio.depthwise{i}", f"{encoder}.embed.conv.{3 * i - 1}")
        table |= _both(f"audio.pointwise{i}", f"{encoder}.embed.conv.{3 * i}")
    table |= _both("audio.embed", f"{encoder}.embed.out")
    table["audio.distances.weight"] = f"{encoder}.relative_attention_bias_layer.bias_values.weight"
    for i in range(audio.num_hidden_layers):
        ours, theirs = f"audio.layers.{i}", f"{encoder}.encoders.{i}"
        for name, their_name in (NORMED | CONVOLVED).items():
            place = f"{ours}.conv.{name}" if name in CONVOLVED else f"{ours}.{name}"
            table |= _both(place, f"{theirs}.{their_name}")
        for feed, their_name in (("feed_in", "feed_forward_in"), ("feed_out", "feed_forward_out")):
            table |= _both(f"{ours}.{feed}.down", f"{theirs}.{their_name}.down_proj")
        for part in "qkvo":
            table |= _both(f"{ours}.attention.w{part}", f"{theirs}.self_attn.{part}_proj")
    for mode in modes:
        table |= _both(f"audio.{mode}.up", f"{SOUND}up_proj_for_{AUDIO_PROJECTIONS[mode]}")
        table |= _both(f"audio.{mode}.down", f"{SOUND}down_proj_for_{AUDIO_PROJECTIONS[mode]}")
    return table


def halvings(audio: Audio) -> int:
    """Convolutions of stride 2 that make a token of `time_reduction` frames."""
    return audio.time_reduction.bit_length() - 1


def _halves(audio: Audio, layer: int) -> dict[str, Rows]:
    """What a block has fused: the first half is plain, the second gates it."""
    ours, theirs = f"audio.layers.{layer}", f"{SOUND}encoder.encoders.{layer}"
    table = {}
    for place, their_name, size in (
        ("feed_in", "feed_forward_in.gate_up_proj", audio.intermediate_size),
        ("feed_out", "feed_forward_out.gate_up_proj", audio.intermediate_size),
        ("conv", "conv.glu.ext_pw_conv_1d", audio.hidden_size),
    ):
        for half, name in enumerate(("up", "gate")):
            for suffix, kind in ((".weight", ".weight"), (".bias.weight", ".bias")):
                rows = Rows(f"{theirs}.{their_name}{kind}", half * size, (half + 1) * size)
                table[f"{ours}.{place}.{name}{suffix}"] = rows
    return table

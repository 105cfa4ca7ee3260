"""Phi-4-multimodal on disk: one set of names and shapes for its tensors, whichever of two layouts the files have.

Names are those of transformers' Phi4MultimodalForCausalLM, with adapters as peft names them within a model: beside
`model.layers.N.mlp.down_proj.weight` lie `….mlp.down_proj.lora_A.vision.weight` and `….lora_B.vision.weight`. The
hub's main spells encoders and projections otherwise and has the adapters within its shards; transformers' layout has
them in folders. No tensor differs between them by more than its name: also the gated MLPs of the audio encoder have
the half that is not gated first in both, the other way round than in the text model.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from checkpoints import phi3
from checkpoints.config import ADAPTER, ModelConfig
from checkpoints.errors import BadInput, show
from checkpoints.files import present
from checkpoints.lora_settings import WEIGHTS
from checkpoints.phi4mm_config import FOLDERS, Audio, Lora, Vision
from checkpoints.roles import usual_name
from checkpoints.safetensors_io import Entry, read_header

Shapes = dict[str, tuple[int, ...]]

IMAGE, SOUND = "model.embed_tokens_extend.image_embed.", "model.embed_tokens_extend.audio_embed."
PROJECTIONS = ("speech", "vision_speech")  # of sound alone, and beside pictures
# Main's spelling and transformers'; {} stands for one part of a name between dots.
SPELLINGS = (
    (f"{IMAGE}glb_GN", f"{IMAGE}global_img_feature_extensor"),
    (f"{IMAGE}sub_GN", f"{IMAGE}sub_img_feature_extensor"),
    (f"{IMAGE}img_projection.0.{{}}", f"{IMAGE}img_projection_up.{{}}"),
    (f"{IMAGE}img_projection.2.{{}}", f"{IMAGE}img_projection_down.{{}}"),
    (f"{SOUND}audio_projection.speech.0.{{}}", f"{SOUND}up_proj_for_speech.{{}}"),
    (f"{SOUND}audio_projection.speech.2.{{}}", f"{SOUND}down_proj_for_speech.{{}}"),
    (f"{SOUND}audio_projection.vision.0.{{}}", f"{SOUND}up_proj_for_vision_speech.{{}}"),
    (f"{SOUND}audio_projection.vision.2.{{}}", f"{SOUND}down_proj_for_vision_speech.{{}}"),
    (f"{SOUND}encoder.encoders.{{}}.{{}}.net.0.linear.{{}}", f"{SOUND}encoder.encoders.{{}}.{{}}.gate_up_proj.{{}}"),
    (f"{SOUND}encoder.encoders.{{}}.{{}}.net.2.{{}}", f"{SOUND}encoder.encoders.{{}}.{{}}.down_proj.{{}}"),
    (
        f"{SOUND}encoder.encoders.{{}}.self_attn.linear_out.{{}}",
        f"{SOUND}encoder.encoders.{{}}.self_attn.o_proj.{{}}",
    ),
    (
        f"{SOUND}encoder.encoders.{{}}.self_attn.linear_{{}}.{{}}",
        f"{SOUND}encoder.encoders.{{}}.self_attn.{{}}_proj.{{}}",
    ),
    ("model.layers.{}.{}.{}.base_layer.weight", "model.layers.{}.{}.{}.weight"),
)


def _patterns(spellings: Iterable[tuple[str, str]]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(re.escape(old).replace(r"\{\}", r"([^.]+)")), new) for old, new in spellings]


TO_NATIVE, TO_MAIN = _patterns(SPELLINGS), _patterns((native, main) for main, native in SPELLINGS)
FACTOR = re.compile(r"(model\.layers\.\d+\..+)\.lora_([AB])(?:\.(\w+?))??(?:\.weight)?")
FIRST_CONV = f"{SOUND}encoder.embed.conv.0."  # over the spectrogram, which has one channel
VECTORS = ("_img_feature_extensor", ".glu.b1", ".glu.b2")  # with dimensions of one element around them
# In the files, but no feature that the model takes passes through it: layers of vision that are not used are too.
UNUSED = re.compile(
    rf"{re.escape(IMAGE)}img_processor\.(?:(?:post_layernorm|head)\..+|encoder\.layers\.(\d{{1,5}})\..+)"
)


def tensor_shapes(config: ModelConfig) -> Shapes:
    """Name -> shape of every weight that `config` needs: of the text model, its adapters, vision and audio."""
    assert config.multimodal is not None
    vision, audio, loras = config.multimodal.vision, config.multimodal.audio, config.multimodal.loras
    shapes = phi3.tensor_shapes(config)
    for name, lora in loras.items():
        shapes |= _lora_shapes(config, name, lora)
    if vision is not None:
        shapes |= _vision_shapes(vision, config.hidden_size)
    if audio is not None:
        # Sound beside pictures is projected otherwise than sound alone.
        modes = PROJECTIONS if vision is not None else PROJECTIONS[:1]
        shapes |= _audio_shapes(audio, config.hidden_size, modes)
    return shapes


def is_depthwise(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight of this shape is that of a convolution of each channel by itself."""
    return len(shape) > 2 and shape[1] == 1 and not name.startswith(FIRST_CONV) and not name.endswith(VECTORS)


def matrix_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """What a tensor of more than two dimensions is as a matrix or a vector.

    A convolution is [rows, the elements of one], as a linear over patches has it; a depthwise one [positions,
    channels], since what computes it has the channels last.
    """
    if len(shape) <= 2:
        return shape
    if name.endswith(VECTORS):
        return (math.prod(shape),)
    rest = math.prod(shape[1:])
    return (rest, shape[0]) if is_depthwise(name, shape) else (shape[0], rest)


def unused_shapes(config: ModelConfig) -> Shapes:
    """Name -> shape of what published files hold of the vision encoder beside `tensor_shapes`, and nothing needs."""
    assert config.multimodal is not None
    if (vision := config.multimodal.vision) is None:
        return {}
    hidden = vision.hidden_size
    processor = f"{IMAGE}img_processor"
    return {
        **dict(_vision_layers(vision, range(vision.used_layers, vision.num_hidden_layers))),
        **_norm(f"{processor}.post_layernorm", hidden),
        f"{processor}.head.probe": (1, 1, hidden),
        f"{processor}.head.attention.in_proj_weight": (3 * hidden, hidden),
        f"{processor}.head.attention.in_proj_bias": (3 * hidden,),
        **_linear(f"{processor}.head.attention.out_proj", hidden, hidden),
        **_norm(f"{processor}.head.layernorm", hidden),
        **_linear(f"{processor}.head.mlp.fc1", vision.intermediate_size, hidden),
        **_linear(f"{processor}.head.mlp.fc2", hidden, vision.intermediate_size),
    }


def _lora_shapes(config: ModelConfig, adapter: str, lora: Lora) -> Iterator[tuple[str, tuple[int, ...]]]:
    text = phi3.tensor_shapes(config)
    for i in range(config.num_hidden_layers):
        for target in lora.targets:
            module = f"model.layers.{i}.{target}"
            rows, columns = text[f"{module}.weight"]
            yield f"{module}.lora_A.{adapter}.weight", (lora.rank, columns)
            yield f"{module}.lora_B.{adapter}.weight", (rows, lora.rank)


def _linear(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0],)}


def _norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _vision_shapes(vision: Vision, text: int) -> Shapes:
    """Of the vision encoder and of what makes rows of the text model's embedding, `text` wide, of its features."""
    hidden, patch = vision.hidden_size, vision.patch_size
    embeddings = f"{IMAGE}img_processor.embeddings"
    return {
        f"{IMAGE}global_img_feature_extensor": (1, 1, hidden),
        f"{IMAGE}sub_img_feature_extensor": (1, 1, 1, hidden),
        **_linear(f"{embeddings}.patch_embedding", hidden, 3, patch, patch),
        f"{embeddings}.position_embedding.weight": (vision.patches**2, hidden),
        **dict(_vision_layers(vision, range(vision.used_layers))),
        **_linear(f"{IMAGE}img_projection_up", text, hidden),
        **_linear(f"{IMAGE}img_projection_down", text, text),
    }


def _vision_layers(vision: Vision, layers: range) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = vision.hidden_size, vision.intermediate_size
    for i in layers:
        layer = f"{IMAGE}img_processor.encoder.layers.{i}"
        yield from _norm(f"{layer}.layer_norm1", hidden).items()
        for part in ("q", "k", "v", "out"):
            yield from _linear(f"{layer}.self_attn.{part}_proj", hidden, hidden).items()
        yield from _norm(f"{layer}.layer_norm2", hidden).items()
        yield from _linear(f"{layer}.mlp.fc1", inner, hidden).items()
        yield from _linear(f"{layer}.mlp.fc2", hidden, inner).items()


def _audio_shapes(audio: Audio, text: int, modes: Iterable[str]) -> Shapes:
    """Of the audio encoder and of projections of its features to the text model's width, `text`, by `modes`."""
    hidden, channels = audio.hidden_size, audio.conv_channels
    encoder = f"{SOUND}encoder"
    shapes: Shapes = {
        f"{encoder}.encoder_embedding.global_mean": (audio.num_mel_bins,),
        f"{encoder}.encoder_embedding.global_invstd": (audio.num_mel_bins,),
        **_linear(f"{encoder}.embed.conv.0", channels, 1, 3, 3),
    }
    # Each further halving is a depthwise convolution, one over channels alone, and an activation without tensors.
    for i in range(2, 3 * (audio.time_reduction.bit_length() - 1) - 1, 3):
        shapes |= _linear(f"{encoder}.embed.conv.{i}", channels, 1, 3, 3)
        shapes |= _linear(f"{encoder}.embed.conv.{i + 1}", channels, channels, 1, 1)
    shapes |= _linear(f"{encoder}.embed.out", hidden, channels * audio.subsampled_bins)
    shapes[f"{encoder}.relative_attention_bias_layer.bias_values.weight"] = (
        2 * audio.bias_max_distance,
        audio.num_attention_heads,
    )
    for i in range(audio.num_hidden_layers):
        shapes |= _audio_block(f"{encoder}.encoders.{i}", audio)
    for mode in modes:
        shapes |= _linear(f"{SOUND}up_proj_for_{mode}", text, hidden)
        shapes |= _linear(f"{SOUND}down_proj_for_{mode}", text, text)
    return shapes


def _audio_block(block: str, audio: Audio) -> Shapes:
    hidden, inner = audio.hidden_size, audio.intermediate_size

    def mlp(name: str) -> Shapes:
        return {
            **_norm(f"{block}.{name}.layer_norm", hidden),
            **_linear(f"{block}.{name}.gate_up_proj", 2 * inner, hidden),
            **_linear(f"{block}.{name}.down_proj", hidden, inner),
        }

    shapes = mlp("feed_forward_in")
    shapes |= _norm(f"{block}.layer_norm_att", hidden)
    for part in ("q", "k", "v", "o"):
        shapes |= _linear(f"{block}.self_attn.{part}_proj", hidden, hidden)
    return {
        **shapes,
        **_norm(f"{block}.conv.layer_norm", hidden),
        f"{block}.conv.glu.b1": (1, hidden, 1),
        f"{block}.conv.glu.b2": (1, hidden, 1),
        **_linear(f"{block}.conv.glu.ext_pw_conv_1d", 2 * hidden, hidden, 1),
        **_linear(f"{block}.conv.dw_sep_conv_1d.dw_conv", hidden, 1, audio.kernel_size),
        **_linear(f"{block}.conv.dw_sep_conv_1d.pw_conv", hidden, hidden, 1),
        **_linear(f"{block}.conv.ext_pw_conv_1d", hidden, hidden, 1),
        **mlp("feed_forward_out"),
        **_norm(f"{block}.layer_norm", hidden),
    }


def model_tensors(folder: Path, config: ModelConfig, entries: Mapping[str, Entry]) -> dict[str, tuple[Entry, ...]]:
    """Name of every weight of `tensor_shapes` -> what its rows are stored in; BadInput unless all are there.

    Adapters are those of `entries`, or of folders beside them, whose headers are read. What the modalities of
    `config` do not need is passed over, and so is what published files have and no modality needs.
    """
    assert config.multimodal is not None
    named: dict[str, Entry] = {}
    raw_names: dict[str, str] = {}
    for raw, entry in entries.items():
        name = _respelled(usual_name(raw), TO_NATIVE)
        if name in named:
            raise BadInput(f"{folder} has {name} twice, as {show(raw_names[name])} and as {show(raw)}")
        named[name], raw_names[name] = entry, raw
    factors = {name: named.pop(name) for name in list(named) if _adapter_of(name) in FOLDERS}
    media = {name: named.pop(name) for name in list(named) if name.startswith((IMAGE, SOUND))}
    tensors = phi3.model_tensors(folder, config, named)

    vision, audio, loras = config.multimodal.vision, config.multimodal.audio, config.multimodal.loras
    known: Shapes = {}
    if vision is not None:
        known |= _vision_shapes(vision, config.hidden_size)
        tensors |= _find_factors(folder, config, "vision", loras.get("vision"), factors)
    if audio is not None:
        known |= _audio_shapes(audio, config.hidden_size, PROJECTIONS)
        tensors |= _find_factors(folder, config, "speech", loras.get("speech"), factors)
    read = tuple(prefix for prefix, part in ((IMAGE, vision), (SOUND, audio)) if part is not None)
    for name, entry in media.items():
        if name.startswith(read) and name not in known and not _unused(name, vision):
            raise BadInput(f"{entry.file}: {show(raw_names[name])} is not a tensor of Phi-4-multimodal")
    needed = tensor_shapes(config)
    return tensors | _checked(folder, media, {name: needed[name] for name in known if name in needed})


def main_name(name: str) -> str:
    """How main spells a name of transformers' layout."""
    return _respelled(name, TO_MAIN)


def _respelled(name: str, spellings: Iterable[tuple[re.Pattern[str], str]]) -> str:
    for pattern, template in spellings:
        if match := pattern.fullmatch(name):
            return template.format(*match.groups())
    return name


def _adapter_of(name: str) -> str | None:
    """Of a factor within shards: which adapter it belongs to."""
    match = FACTOR.fullmatch(name)
    return match[3] if match else None


def _unused(name: str, vision: Vision | None) -> bool:
    match = UNUSED.fullmatch(name)
    if match is None or vision is None:
        return False
    return match[1] is None or vision.used_layers <= int(match[1]) < vision.num_hidden_layers


def _find_factors(
    folder: Path, config: ModelConfig, adapter: str, lora: Lora | None, factors: Mapping[str, Entry]
) -> dict[str, tuple[Entry, ...]]:
    """Both factors of every linear that an adapter changes: of the shards, or else of the adapter's folder."""
    place = folder / FOLDERS[adapter]
    found = {name: entry for name, entry in factors.items() if _adapter_of(name) == adapter}
    if not found:
        if not present(place / WEIGHTS):
            raise BadInput(
                f"{folder} has no {adapter} adapter: neither {FOLDERS[adapter]}/{WEIGHTS} nor tensors "
                f"…lora_A.{adapter}.weight"
            )
        found = _read_folder(place / WEIGHTS, adapter)
    if lora is None:
        raise BadInput(f"{config.path}: {adapter}_lora is missing, and so is {place / ADAPTER}")
    shapes = dict(_lora_shapes(config, adapter, lora))
    for name, entry in found.items():
        if name not in shapes:
            raise BadInput(f"{entry.file}: {name} is not of the {adapter} adapter's {', '.join(lora.targets)}")
    return _checked(folder, found, shapes, f"r {lora.rank} of the {adapter} adapter")


def _read_folder(file: Path, adapter: str) -> dict[str, Entry]:
    """The factors in a file of peft's or of transformers' conversion, by their names here."""
    found: dict[str, Entry] = {}
    for raw, entry in read_header(file)[0].items():
        match = FACTOR.fullmatch(usual_name(raw))
        if match is None:
            raise BadInput(f"{file}: {show(raw)} is not lora_A or lora_B of a layer's linear")
        name = f"{match[1]}.lora_{match[2]}.{adapter}.weight"
        if name in found:
            raise BadInput(f"{file} has {name} twice, once as {show(raw)}")
        found[name] = entry
    return found


def _checked(
    folder: Path, found: Mapping[str, Entry], shapes: Shapes, source: str = "config.json"
) -> dict[str, tuple[Entry, ...]]:
    for name, shape in shapes.items():
        if name not in found:
            raise BadInput(f"{folder} has no tensor {name}")
        phi3.check_entry(name, found[name], shape, source)
    return {name: (found[name],) for name in shapes}

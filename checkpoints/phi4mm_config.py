"""What config.json says of Phi-4-multimodal beside its text model: vision, audio, adapters and their tokens.

Two layouts spell it differently. The hub's main (`phi4mm`) is read by code that lies beside it, which fixes some
sizes itself; transformers' own (`phi4_multimodal`) leaves out what Phi4MultimodalVisionConfig and -AudioConfig of
transformers 5.23 have as default. Only what that code computes in one way here is read: other activations, masks in
chunks or ways to tile an image are refused. Knows nothing of files or of tensors.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoints.errors import BadInput, show
from checkpoints.json_reader import MAX_LAYERS, MAX_SIZE, Reader
from checkpoints.lora_settings import PATTERNS, refuse_others, scaling

MAIN, NATIVE = "phi4mm", "phi4_multimodal"
TOKENS = {"image_token_id": 200010, "audio_token_id": 200011}  # fixed by main's code, transformers' defaults
# model_type -> class, and keys of config.json for what is not the text model.
LAYOUTS = {
    MAIN: (
        "Phi4MMForCausalLM",
        frozenset({"embd_layer", "audio_processor", "img_processor", "vision_lora", "speech_lora", *TOKENS}),
    ),
    NATIVE: ("Phi4MultimodalForCausalLM", frozenset({"vision_config", "audio_config"})),
}
FOLDERS = {"vision": "vision-lora", "speech": "speech-lora"}  # of adapters, beside config.json
TEXT, VISION, AUDIO = "text", "vision", "audio"
MODALITIES = (TEXT, VISION, AUDIO)
# Which adapter belongs to which modality; image and audio together take that of vision.
ADAPTERS = {VISION: "vision", AUDIO: "speech"}
SINGLE_MODULES = ("layers_to_transform", "layers_pattern", "exclude_modules", "modules_to_save")  # keys of peft's
LINEARS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")  # of a layer of text

# The encoder that main's code makes where img_processor is null, and transformers' defaults.
SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
    "feature_layer": -2,
}
# Field -> where main has it, transformers' key, and transformers' default; main's keys are never left out.
AUDIO_KEYS = {
    "hidden_size": ("attention_dim", "hidden_size", 1024),
    "intermediate_size": ("linear_units", "intermediate_size", 1536),
    "num_hidden_layers": ("num_blocks", "num_blocks", 24),
    "num_attention_heads": ("attention_heads", "num_attention_heads", 16),
    "num_mel_bins": ("input_size", "input_size", 80),
    "conv_channels": ("nemo_conv_settings.conv_channels", "nemo_conv_channels", 1024),
    "kernel_size": ("kernel_size", "kernel_size", 3),
    "time_reduction": ("time_reduction", "time_reduction", 8),
    "bias_max_distance": ("relative_attention_bias_args.t5_bias_max_distance", "bias_max_distance", 1000),
}
# Channels of two convolutions, which are those of the blocks; main misspells the second.
AUDIO_CHANNELS = {
    "ext_pw_out_channel": "ext_pw_out_channel",
    "depthwise_seperable_out_channel": "depthwise_separable_out_channel",
}
# What can be computed in one way only, where a file says it at all.
BOTH_ONLY = {
    "activation": "swish",
    "conv_activation": "swish",
    "conv_glu_type": "swish",
    "depthwise_multiplier": 1,
    "chunk_size": -1,  # no chunks: every token attends to the whole clip, whatever left_chunk is
}
NATIVE_ONLY = {"nemo_activation": "relu", "bias_symmetric": False, "downsample_rate": 1}
MAIN_ONLY = {
    "input_layer": "nemo_conv",
    "causal": True,
    "bias_in_glu": True,
    "batch_norm": False,
    "cnn_layer_norm": True,
    "ext_pw_kernel_size": 1,
}
MAIN_AUDIO_ONLY = {"downsample_rate": 1, "use_qformer": False, "use_conv_downsample": False, "projection_cls": "mlp"}
MAIN_IMAGE_ONLY = {
    "use_hd_transform": True,
    "hd_transform_order": "sub_glb",
    "with_learnable_separator": True,
    "image_token_compression_cls": "avg_pool_2d",
    "projection_cls": "mlp",
}
VISION_ONLY = {"hidden_act": "gelu_pytorch_tanh", "num_channels": 3, "layer_norm_eps": 1e-6}


@dataclass(frozen=True)
class Vision:
    """The encoder of images (SigLIP): sizes in elements, images and patches in pixels."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int  # of a crop, square
    patch_size: int
    feature_layer: int  # index into the hidden states before, between and after the layers; negative
    dynamic_hd: int  # most crops of an image, beside the whole of it
    token_id: int  # stands in the prompt for each row that an image becomes
    layer_norm_eps: float = 1e-6

    @property
    def patches(self) -> int:
        """Patches along a side of a crop; pairs of them are averaged, so half as many tokens."""
        return self.image_size // self.patch_size

    @property
    def used_layers(self) -> int:
        """Layers from the first on that features pass through; the others are in the files and never computed."""
        return self.num_hidden_layers + 1 + self.feature_layer


@dataclass(frozen=True)
class Audio:
    """The encoder of sound (a conformer): sizes in elements, distances in tokens."""

    hidden_size: int
    intermediate_size: int  # of each half of a gated MLP
    num_hidden_layers: int
    num_attention_heads: int
    num_mel_bins: int
    conv_channels: int  # of the convolutions that make tokens of frames
    kernel_size: int  # of the depthwise convolution in a block, which looks back only
    time_reduction: int  # frames to a token, a power of two
    bias_max_distance: int  # relative positions are clipped to -distance … distance - 1
    token_id: int  # stands in the prompt for each row that a clip becomes
    layer_norm_eps: float = 1e-5

    @property
    def subsampled_bins(self) -> int:
        """What the convolutions, each with stride 2 and a padding of 1, leave of num_mel_bins."""
        return -(-self.num_mel_bins // self.time_reduction)


@dataclass(frozen=True)
class Lora:
    """An adapter of the text model: scale * B A is added to the linears named, in every layer."""

    rank: int
    alpha: float
    scale: float
    targets: tuple[str, ...]  # of LINEARS, in that order


@dataclass(frozen=True)
class Multimodal:
    """What Phi-4-multimodal has beside its text model, or the part of it that some modalities need."""

    vision: Vision | None
    audio: Audio | None
    loras: dict[str, Lora] = field(hash=False)  # "vision" and "speech", those that the files have


def read_multimodal(
    get: Reader, images: Reader, adapters: Mapping[str, tuple[Path, Mapping[str, Any]]]
) -> Multimodal:
    """Check and read the multimodal part of config.json.

    `images` is preprocessor_config.json, empty where there is none; `adapters` is adapter_config.json of the folders
    of adapters that there are, by their names in FOLDERS. Raises BadInput.
    """
    main = get.raw["model_type"] == MAIN
    if main:
        layer = get.inner("embd_layer")
        image, sound = layer.inner("image_embd_layer"), layer.inner("audio_embd_layer")
        _only(image, MAIN_IMAGE_ONLY)
        _only(sound, MAIN_AUDIO_ONLY)
        # Main's code takes neither sizes of the encoder nor ids of tokens from config.json. Where they are there, as
        # `checkpoints.synthesize` writes them for smaller models, they count.
        sizes = get.inner("img_processor") if get.has("img_processor") else Reader(get.path, SIGLIP)
        crop = image.integer("crop_size", high=MAX_SIZE)
        sounds, tokens = get.inner("audio_processor").inner("config"), (get, get)
        if sounds.has("relative_attention_bias_args"):
            _only(sounds.inner("relative_attention_bias_args"), {"type": "t5", "t5_bias_symmetric": False})
    else:
        sizes, sounds = get.inner("vision_config"), get.inner("audio_config")
        crop = sizes.integer("crop_size", high=MAX_SIZE, default=448)
        tokens = (sizes, sounds)
    vocab = get.integer("vocab_size", high=MAX_SIZE)
    ids = [reader.token_or(key, TOKENS[key], vocab) for reader, key in zip(tokens, TOKENS, strict=True)]
    if ids[0] == ids[1]:
        raise BadInput(f"{get.path}: image_token_id and audio_token_id are both {ids[0]}")
    dynamic_hd = images.integer("dynamic_hd", high=MAX_LAYERS, default=36)  # of transformers' and of main's processor
    return Multimodal(
        _vision(sizes, crop, dynamic_hd, ids[0]),
        _audio(sounds, main, ids[1]),
        _loras(get, adapters),
    )


def needed(multimodal: Multimodal, modalities: Iterable[str]) -> Multimodal:
    """The part of a model that these of MODALITIES need. Its adapters are only those that the files have."""
    wanted = set(modalities)
    names = {adapter for modality, adapter in ADAPTERS.items() if modality in wanted}
    return Multimodal(
        multimodal.vision if VISION in wanted else None,
        multimodal.audio if AUDIO in wanted else None,
        {name: lora for name, lora in multimodal.loras.items() if name in names},
    )


def _only(reader: Reader, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        reader.only(key, value)


def _vision(get: Reader, crop: int, dynamic_hd: int, token_id: int) -> Vision:
    _only(get, VISION_ONLY)
    sizes = {
        key: get.integer(key, high=_most(key), default=default)
        for key, default in SIGLIP.items()
        if key != "feature_layer"
    }
    layers, image, patch = (sizes[key] for key in ("num_hidden_layers", "image_size", "patch_size"))
    _divides(get, "hidden_size", sizes["hidden_size"], "num_attention_heads", sizes["num_attention_heads"])
    if image != crop:
        raise BadInput(f"{get.path}: image_size {image} is not crop_size {crop}")
    if image % patch or image // patch % 2:
        raise BadInput(f"{get.path}: image_size {image} is not an even number of patches of patch_size {patch}")
    # The last hidden state is normed in some versions of the code and not in others.
    feature_layer = get.integer("feature_layer", low=-layers, high=-2, default=SIGLIP["feature_layer"])
    return Vision(**sizes, feature_layer=feature_layer, dynamic_hd=dynamic_hd, token_id=token_id)


def _audio(get: Reader, main: bool, token_id: int) -> Audio:
    _only(get, BOTH_ONLY | (MAIN_ONLY if main else NATIVE_ONLY))
    sizes = {}
    for size, (main_key, native_key, default) in AUDIO_KEYS.items():
        if main:
            *outer, key = main_key.split(".")
            reader = get.inner(outer[0]) if outer else get
            sizes[size] = reader.integer(key, high=_most(size))
        else:
            sizes[size] = get.integer(native_key, high=_most(size), default=default)
    hidden, reduction = sizes["hidden_size"], sizes["time_reduction"]
    _divides(get, "hidden size", hidden, "number of heads", sizes["num_attention_heads"])
    if reduction < 2 or reduction & (reduction - 1):
        raise BadInput(f"{get.path}{get.dot}time_reduction must be a power of two from 2 on, it is {reduction}")
    for main_key, native_key in AUDIO_CHANNELS.items():
        key = main_key if main else native_key
        channels = get.integer(key, high=MAX_SIZE, default=1024)
        if channels != hidden:
            raise BadInput(f"{get.path}{get.dot}{key} is {channels}, not the blocks' hidden size {hidden}")
    return Audio(**sizes, token_id=token_id)


def _most(size: str) -> int:
    return MAX_LAYERS if size == "num_hidden_layers" else MAX_SIZE


def _divides(get: Reader, whole: str, size: int, part: str, count: int) -> None:
    if size % count:
        raise BadInput(f"{get.path}: {whole} {size} is not a multiple of {part} {count}")


def _loras(get: Reader, adapters: Mapping[str, tuple[Path, Mapping[str, Any]]]) -> dict[str, Lora]:
    """Adapters by name: of config.json, as main has them, else of their folders."""
    layers = get.integer("num_hidden_layers", high=MAX_LAYERS)
    found: dict[str, Lora] = {}
    for name in FOLDERS:
        if get.has(f"{name}_lora"):
            inside = get.inner(f"{name}_lora")
            rank, alpha = inside.integer("r", high=MAX_SIZE), inside.number("lora_alpha")
            found[name] = Lora(rank, alpha, alpha / rank, _targets(inside, "layer", layers))
        if name in adapters:
            path, raw = adapters[name]
            lora = _lora_of_folder(path, raw, layers)
            if found.setdefault(name, lora) != lora:
                raise BadInput(f"{path} has {_told(lora)}, but {get.path}: {name}_lora has {_told(found[name])}")
    return found


def _lora_of_folder(path: Path, raw: Mapping[str, Any], layers: int) -> Lora:
    """Of an adapter_config.json, which must be that of a plain LoRA, alike in all layers."""
    refuse_others(path, raw)
    for key in (*PATTERNS.values(), *SINGLE_MODULES):
        if value := raw.get(key):
            raise BadInput(f"{path}: {key} is {show(value)}, only adapters alike in all layers can be read")
    get = Reader(path, raw)
    rank, alpha = get.integer("r", high=MAX_SIZE), get.number("lora_alpha")
    return Lora(rank, alpha, scaling(path, raw, "", rank), _targets(get, "target_modules", layers))


def _told(lora: Lora) -> str:
    return f"r {lora.rank}, lora_alpha {lora.alpha:g} and target modules {', '.join(lora.targets)}"


def _targets(get: Reader, key: str, layers: int) -> tuple[str, ...]:
    """The linears of a layer that peft changes for this list of endings, or regular expression for whole names."""
    value = get.raw.get(key)
    matches: Callable[[str], bool]
    if isinstance(value, str):
        try:
            pattern = re.compile(value)
        except re.error:
            raise BadInput(f"{get.path}{get.dot}{key} is {show(value)}, which is no regular expression") from None

        def matches(name: str) -> bool:
            # Main's code counts from the text model, transformers from the class around it.
            return bool(pattern.fullmatch(name) or pattern.fullmatch(f"model.{name}"))
    elif isinstance(value, list) and all(isinstance(entry, str) for entry in value):

        def matches(name: str) -> bool:
            return any(f".{name}".endswith(f".{entry}") for entry in value)
    else:
        raise BadInput(f"{get.path}{get.dot}{key} must be a text or a list of texts, it is {show(value)}")
    found = {tuple(name for name in LINEARS if matches(f"layers.{i}.{name}")) for i in range(layers)}
    if len(found) != 1 or not min(found):
        raise BadInput(
            f"{get.path}{get.dot}{key} is {show(value)}, which does not name the same linears in each layer"
        )
    return found.pop()

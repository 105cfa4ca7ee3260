"""What a synthesized Phi-4-multimodal has beside its text model: settings, and which tensor lies in which file.

In the layout of the hub's main, or in transformers' own ("native"). Not written: main's code, and the copies of its
adapters in folders, which nothing reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from checkpoints.config import ADAPTER, ModelConfig
from checkpoints.errors import BadInput
from checkpoints.files import write_json
from checkpoints.lora_settings import WEIGHTS, plain_settings
from checkpoints.phi4mm import main_name, tensor_shapes, unused_shapes
from checkpoints.phi4mm_config import AUDIO_CHANNELS, FOLDERS, NATIVE, SIGLIP, TOKENS
from checkpoints.published import AUDIO_TOKEN, IMAGE_TOKEN, PHI4MM
from checkpoints.random_weights import shards

LAYOUTS = ("main", "native")
SCALES = (1, 2, 4, 8)  # what divides the published heads, widths and ranks
TARGETS = r"model\.layers\.\d+\.((self_attn\.(qkv|o)_proj)|(mlp\.(gate_up|down)_proj))"
TOKENIZER = {"extra_special_tokens": {"image_token": IMAGE_TOKEN, "audio_token": AUDIO_TOKEN}}  # its config's
AUDIO_FEATURES = {"audio_compression_rate": 8, "audio_downsample_rate": 1, "audio_feat_stride": 1}
PREPROCESSORS = {
    "main": {
        "feature_extractor_type": "Phi4MMAudioFeatureExtractor",
        "image_processor_type": "Phi4MMImageProcessor",
        "processor_class": "Phi4MMProcessor",
    },
    "native": {
        "feature_extractor_type": "Phi4MultimodalFeatureExtractor",
        "image_processor_type": "Phi4MultimodalImageProcessor",
        "processor_class": "Phi4MultimodalProcessor",
    },
}


def check_flags(layout: str, scale: int) -> None:
    if layout not in LAYOUTS:
        raise BadInput(f"--layout {layout} is not one of {', '.join(LAYOUTS)}")
    if scale not in SCALES:
        raise BadInput(f"--scale {scale} is not one of {', '.join(map(str, SCALES))}")


def media_config(
    text: dict[str, Any],
    specials: dict[str, int],
    layout: str,
    scale: int,
    vision_layers: int | None,
    audio_layers: int | None,
) -> dict[str, Any]:
    """config.json in this layout, for a text model's. Widths, heads and ranks are the published ones by `scale`."""
    raw = text | json.loads(json.dumps(PHI4MM))
    vision: dict[str, Any] = SIGLIP | {
        key: SIGLIP[key] // scale for key in ("hidden_size", "intermediate_size", "num_attention_heads")
    }
    if vision_layers is not None:
        vision["num_hidden_layers"] = vision_layers
    audio = raw["audio_processor"]["config"]
    widths = ("attention_dim", "attention_heads", "linear_units", *AUDIO_CHANNELS)
    audio |= {key: audio[key] // scale for key in widths}
    audio["nemo_conv_settings"]["conv_channels"] //= scale
    if audio_layers is not None:
        audio["num_blocks"] = audio_layers
    for name in FOLDERS:
        for key in ("r", "lora_alpha"):
            raw[f"{name}_lora"][key] //= scale
    tokens = dict(zip(TOKENS, (specials[IMAGE_TOKEN], specials[AUDIO_TOKEN]), strict=True))
    if layout == "native":
        return _native(raw, vision, tokens)
    # What main's code fixes is said only where it is otherwise.
    if vision != SIGLIP:
        raw["img_processor"] = vision
    return raw | (tokens if tokens != TOKENS else {})


def _native(raw: dict[str, Any], vision: dict[str, Any], tokens: dict[str, int]) -> dict[str, Any]:
    """The same model for transformers' Phi4MultimodalConfig; adapters have files of their own there."""
    audio = dict(raw["audio_processor"]["config"])
    for key in ("batch_norm", "bias_in_glu", "causal", "cnn_layer_norm", "ext_pw_kernel_size", "input_layer"):
        del audio[key]
    del audio["encoder_embedding_config"]
    audio |= {
        "model_type": "phi4_multimodal_audio",
        "hidden_size": audio.pop("attention_dim"),
        "num_attention_heads": audio.pop("attention_heads"),
        "intermediate_size": audio.pop("linear_units"),
        "nemo_conv_channels": audio.pop("nemo_conv_settings")["conv_channels"],
        "bias_max_distance": audio.pop("relative_attention_bias_args")["t5_bias_max_distance"],
        "depthwise_separable_out_channel": audio.pop("depthwise_seperable_out_channel"),
        "downsample_rate": 1,
        "audio_token_id": tokens["audio_token_id"],
    }
    vision = vision | {
        "model_type": "phi4_multimodal_vision",
        "crop_size": raw["embd_layer"]["image_embd_layer"]["crop_size"],
        "image_token_id": tokens["image_token_id"],
    }
    text = {key: value for key, value in raw.items() if key not in PHI4MM}
    return text | {
        "model_type": NATIVE,
        "architectures": ["Phi4MultimodalForCausalLM"],
        "vision_config": vision,
        "audio_config": audio,
    }


def write_settings(folder: Path, layout: str, scale: int) -> None:
    """preprocessor_config.json and, in the native layout, folders of adapters with their adapter_config.json."""
    write_json(folder / "preprocessor_config.json", PREPROCESSORS[layout] | AUDIO_FEATURES | {"dynamic_hd": 36})
    if layout == "main":
        return
    for name, place in FOLDERS.items():
        published = PHI4MM[f"{name}_lora"]
        settings = plain_settings(published["r"] // scale, published["lora_alpha"] // scale, published["dp"], TARGETS)
        (folder / place).mkdir()
        write_json(folder / place / ADAPTER, settings)


def arrange(
    config: ModelConfig, layout: str, limit: int
) -> tuple[dict[str, dict[str, str]], dict[str, tuple[int, ...]]]:
    """Which weight lies where, as `checkpoints.random_weights` has it, and the shapes of all.

    In every layout the weights are in the same order, so that they are the same random numbers.
    """
    shapes = tensor_shapes(config) | unused_shapes(config)
    factors = {adapter: [name for name in shapes if name.endswith(f".{adapter}.weight")] for adapter in FOLDERS}
    adapted = [name for names in factors.values() for name in names]
    base = [name for name in shapes if name not in set(adapted)]
    if layout == "main":
        return shards({main_name(name): name for name in base + adapted}, shapes, limit), shapes
    files = shards({name: name for name in base}, shapes, limit)
    for adapter, names in factors.items():
        files[f"{FOLDERS[adapter]}/{WEIGHTS}"] = {
            f"base_model.model.{name.removesuffix(f'.{adapter}.weight')}.weight": name for name in names
        }
    return files, shapes

"""The tiny Phi-4-multimodal shaped model as transformers and peft have it: its sizes, made, saved and opened.

Folders have transformers' own layout: config.json and one file of base weights, adapters in folders of their own,
the tokenizer of phi4-tiny with the two tokens that stand for pictures and sound, and what preprocessors read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import nn
from transformers import Phi4MultimodalConfig, Phi4MultimodalForCausalLM
from transformers.utils import logging

from checkpoints.config import ADAPTER
from checkpoints.files import write_json
from checkpoints.lora_settings import WEIGHTS, plain_settings
from checkpoints.phi4mm_config import FOLDERS
from checkpoints.published import LAST, MULTIMODAL
from checkpoints.synthesize_phi4mm import AUDIO_FEATURES, PREPROCESSORS, TARGETS, TOKENIZER, media_config
from checkpoints.tiny_pictures import SIDE
from checkpoints.train_tiny import LONG_FACTOR

VOCAB = 2048
SPECIALS = {token: VOCAB - len(LAST[MULTIMODAL]) + i for i, token in enumerate(LAST[MULTIMODAL])}
PATCH = 14  # pixels
MAX_CROPS = 4  # of a picture, the view of all of it not counted
RANKS = {"vision": 32, "speech": 64}
VISION = {"hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 4, "num_attention_heads": 3}
AUDIO = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_blocks": 3,
    "num_attention_heads": 3,
    "ext_pw_out_channel": 96,
    "depthwise_separable_out_channel": 96,
    "nemo_conv_channels": 32,
    "bias_max_distance": 100,
}


def make(out: Path) -> None:
    """Writes the folder of an untrained model, of random weights that torch's seed decides."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", _config())
    ends = {name: SPECIALS[f"<|{token}|>"] for name, token in (("end", "end"), ("eot", "endoftext"))}
    write_json(
        out / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": ends["eot"],
            "eos_token_id": [ends["end"], ends["eot"]],
            "pad_token_id": ends["eot"],
        },
    )
    _write_tokenizer(out)
    size = {"size": {"height": SIDE, "width": SIDE}, "patch_size": PATCH, "dynamic_hd": MAX_CROPS}
    preprocessors = PREPROCESSORS["native"] | AUDIO_FEATURES | size
    write_json(out / "preprocessor_config.json", preprocessors)
    write_json(out / "processor_config.json", {"processor_class": preprocessors["processor_class"]})
    model = Phi4MultimodalForCausalLM._from_config(
        Phi4MultimodalConfig.from_pretrained(out), dtype=torch.float32, attn_implementation="eager"
    )
    # transformers starts SigLIP's linears with a deviation of 1 and what is before the conformer with 0.02: pictures
    # drown in noise, sound fades to a millionth, and nothing is learned.
    media = model.model.embed_tokens_extend
    for module in [*media.image_embed.img_processor.modules(), *media.audio_embed.encoder.modules()]:
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    for name, rank in RANKS.items():
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS)
        model.add_adapter(lora, adapter_name=name)
    save(model, out)


def _config() -> dict[str, Any]:
    """config.json: Phi-4-multimodal's in transformers' spelling, with the sizes of this module."""
    eot = SPECIALS["<|endoftext|>"]
    text = json.loads(Path(__file__).with_name("phi4-tiny").joinpath("config.json").read_text()) | {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "bos_token_id": eot,
        "eos_token_id": eot,
        "pad_token_id": eot,
        "rope_scaling": {"long_factor": LONG_FACTOR, "short_factor": [1.0] * len(LONG_FACTOR), "type": "longrope"},
    }
    config = media_config(text, SPECIALS, "native", 8, None, None)
    config["vision_config"] |= VISION | {"image_size": SIDE, "crop_size": SIDE, "patch_size": PATCH}
    config["audio_config"] |= AUDIO
    return config


def _write_tokenizer(out: Path) -> None:
    """phi4-tiny's, whose last merges make room for the tokens of pictures and sound before the special ones."""
    source = Path(__file__).with_name("phi4-tiny")
    raw = json.loads((source / "tokenizer.json").read_text("utf-8"))
    plain = VOCAB - len(SPECIALS)
    model = raw["model"]
    dropped = {token for token, number in model["vocab"].items() if number >= plain}
    model["vocab"] = {token: number for token, number in model["vocab"].items() if token not in dropped}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) not in dropped]
    shape = raw["added_tokens"][0]
    raw["added_tokens"] = [shape | {"content": token, "id": number} for token, number in SPECIALS.items()]
    (out / "tokenizer.json").write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    config = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    entry = next(iter(config["added_tokens_decoder"].values()))
    config["added_tokens_decoder"] = {str(i): entry | {"content": token} for token, i in SPECIALS.items()}
    config |= TOKENIZER | {"processor_class": PREPROCESSORS["native"]["processor_class"]}
    write_json(out / "tokenizer_config.json", config)


def save(model: Any, out: Path) -> None:
    """Writes base weights and adapters of a model with both adapters, as bfloat16."""
    base: dict[str, torch.Tensor] = {}
    adapters: dict[str, dict[str, torch.Tensor]] = {name: {} for name in FOLDERS}
    for key, value in model.state_dict().items():
        value = value.detach().bfloat16().contiguous()
        found = [name for name in FOLDERS if key.endswith(f".{name}.weight") and ".lora_" in key]
        if found:
            adapters[found[0]]["base_model.model." + key.removesuffix(f".{found[0]}.weight") + ".weight"] = value
        elif key != "lm_head.weight":
            base[key.replace(".base_layer.", ".")] = value
    save_file(base, out / "model.safetensors", metadata={"format": "pt"})
    for name, place in FOLDERS.items():
        (out / place).mkdir(exist_ok=True)
        save_file(adapters[name], out / place / WEIGHTS, metadata={"format": "pt"})
        settings = plain_settings(RANKS[name], 2 * RANKS[name], 0.0, TARGETS)
        write_json(out / place / ADAPTER, settings)
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)


def open_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model with both adapters loaded and none in use.

    Attention is "eager": with another one transformers 5.23 has SigLIP look at earlier patches only.
    """
    # It takes vision_speech's weights for those of adapters, and says that they are missing there.
    logging.set_verbosity_error()
    model = Phi4MultimodalForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    for name, place in FOLDERS.items():
        model.load_adapter(str(folder / place), adapter_name=name)
    use_adapter(model, None)
    return model.eval()


def use_adapter(model: Any, name: str | None) -> None:
    """Switches to one of the adapters, or to none: what pictures ("vision") or sound alone ("speech") ask for."""
    if name is None:
        model.disable_adapters()
    else:
        model.enable_adapters()
        model.set_adapter(name)

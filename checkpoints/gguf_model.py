"""What llama.cpp calls things: a GGUF file's metadata and tensors as a Phi3ForCausalLM of transformers has them.

Two architectures are dense Phi-3s: "phi3", and "llama" (also Mistral's), whose query and key rows llama.cpp
interleaves for its own rotary embedding; that is undone when rows are read. Names and keys are those that its
converter (convert_hf_to_gguf.py) writes. Knows nothing of tokenizers.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from checkpoints.errors import BadInput, show
from checkpoints.gguf_io import Blocks, read_gguf
from checkpoints.roles import EMBEDDING, HEAD, NORM
from checkpoints.safetensors_io import Entry, read_tensor

WEIGHTS = "model.gguf"  # in the folder of a checkpoint
TOP = {"token_embd.weight": EMBEDDING, "output.weight": HEAD, "output_norm.weight": NORM}
LAYER = re.compile(r"blk\.(\d{1,5})\.(\w+)\.weight")
PARTS = {
    "attn_norm": "input_layernorm", "attn_qkv": "self_attn.qkv_proj", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
FACTORS = {"long_factor": "rope_factors_long.weight", "short_factor": "rope_factors_short.weight"}


def gguf_tensors(file: Path) -> dict[str, Entry]:
    """The weights of a GGUF file by transformers' names, Llama's where projections are apart."""
    metadata, tensors = read_gguf(file)
    architecture = _architecture(file, metadata)
    heads = {}
    if architecture == "llama":
        query = _integer(file, metadata, "llama.attention.head_count")
        heads = {"attn_q": query, "attn_k": _integer(file, metadata, "llama.attention.head_count_kv", query)}
    entries = {}
    for name, entry in tensors.items():
        if name in FACTORS.values() and architecture == "phi3":
            continue
        layer = LAYER.fullmatch(name)
        if layer is None or layer[2] not in PARTS:
            if name not in TOP:
                raise BadInput(f"{file}: {show(name)} is not a tensor of a dense Phi-3 or Llama")
            entries[TOP[name]] = entry
            continue
        part = PARTS[layer[2]]
        if part == "mlp.up_proj" and architecture == "phi3":
            part = "mlp.gate_up_proj"  # Phi-3's is one matrix, which llama.cpp calls ffn_up
        entries[f"model.layers.{layer[1]}.{part}.weight"] = _ordered(file, name, entry, heads.get(layer[2], 0))
    return entries


def gguf_card(metadata: Mapping[str, Any]) -> str:
    """What the metadata say of licence and languages, as the head of a README.md of the hub; JSON is YAML."""
    keys = {
        "license": "license",
        "license_name": "license.name",
        "license_link": "license.link",
        "language": "languages",
    }
    found = {name: metadata.get(f"general.{key}") for name, key in keys.items()}
    return "".join(["---\n", *(f"{name}: {json.dumps(found[name])}\n" for name in found if found[name]), "---\n"])


def gguf_config(file: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Entry]) -> dict[str, Any]:
    """config.json of the model of a GGUF file, as a Phi3ForCausalLM's; BadInput for what is not one.

    `metadata` and `tensors` are those of `read_gguf`. Numbers are the shortest that are the same in float32, as which
    GGUF has them; checking them is left to `checkpoints.config`.
    """
    architecture = _architecture(file, metadata)

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"{architecture}.{key}", default)

    if (scaling := get("rope.scaling.type", "none")) not in ("none", "longrope") or "rope_freqs.weight" in tensors:
        what = "by rope_freqs.weight" if "rope_freqs.weight" in tensors else show(scaling)
        raise BadInput(f"{file}: rotary frequencies are scaled {what}, only longrope's factors can be read")
    if get("expert_count"):
        raise BadInput(f"{file}: {architecture}.expert_count is {get('expert_count')}, only dense models can be read")
    hidden = _integer(file, metadata, f"{architecture}.embedding_length")
    heads = _integer(file, metadata, f"{architecture}.attention.head_count")
    head_dim = get("attention.key_length", hidden // heads)
    rotated = get("rope.dimension_count", head_dim)
    if architecture == "llama" and rotated != head_dim:
        raise BadInput(f"{file}: {rotated} elements of a head of {head_dim} are rotated, Llama rotates whole heads")
    positions = get("context_length")
    embedding = tensors.get("token_embd.weight")
    rope = None
    if FACTORS["long_factor"] in tensors and architecture == "phi3":
        # transformers computes attention_factor from the positions, by the formula of the converter
        rope = {"type": "longrope"} | {key: _factors(file, tensors, name) for key, name in FACTORS.items()}
    return {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_act": "silu",
        "vocab_size": embedding.shape[0] if embedding else get("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": _shortest(get("attention.layer_norm_rms_epsilon", 1e-5)),
        "rope_theta": _shortest(get("rope.freq_base", 10000.0)),
        "partial_rotary_factor": rotated / head_dim,
        "max_position_embeddings": positions,
        "original_max_position_embeddings": get("rope.scaling.original_context_length", positions),
        "rope_scaling": rope,
        "sliding_window": get("attention.sliding_window") or None,  # the converter writes 0 for none
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _stops(metadata),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        "torch_dtype": str(embedding.dtype).removeprefix("torch.") if embedding else "float32",
    }


def _stops(metadata: Mapping[str, Any]) -> list[int]:
    """Ids that end an answer: of a text, a turn and a message."""
    ids = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    return list(dict.fromkeys(token for token in ids if token is not None))


def _architecture(file: Path, metadata: Mapping[str, Any]) -> str:
    found = metadata.get("general.architecture")
    if found not in ("phi3", "llama"):
        raise BadInput(f"{file}: general.architecture is {show(found)}, only phi3 and llama can be read")
    return str(found)


def _integer(file: Path, metadata: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = metadata.get(key, default)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise BadInput(f"{file}: {key} must be a number above 0, it is {show(value)}")
    return value


def _ordered(file: Path, name: str, entry: Entry, heads: int) -> Entry:
    """The entry with its rows in transformers' order: the two halves of each head one after the other."""
    if not heads:
        return entry
    if len(entry.shape) != 2 or entry.shape[0] % (2 * heads):
        raise BadInput(f"{file}: {show(name)} has shape {entry.shape}, not that of {heads} heads of even size")
    if isinstance(entry, Blocks):
        return replace(entry, heads=heads)
    return Blocks(entry.file, entry.begin, entry.end, entry.shape, entry.dtype, None, heads)


def _factors(file: Path, tensors: Mapping[str, Entry], name: str) -> list[float]:
    entry = tensors.get(name)
    if entry is None or entry.dtype != torch.float32 or isinstance(entry, Blocks):
        raise BadInput(f"{file} has no {name} in float32, which longrope needs")
    return [_shortest(value) for value in read_tensor(entry).tolist()]


def _shortest(value: Any) -> Any:
    """The decimal number that was meant by a float32."""
    return float(str(np.float32(value))) if isinstance(value, float) else value

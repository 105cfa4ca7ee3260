"""The dense Phi-3 family on disk: names, roles and shapes of its tensors, as transformers spells them.

Names of other writers come in here and go no further: Llama's, which has projections of their own for q, k, v, gate
and up, and those that wrappers of torch and peft leave.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from checkpoints.config import ModelConfig
from checkpoints.errors import BadInput, show
from checkpoints.roles import DTYPES, EMBEDDING, HEAD, NORM, Rows, usual_name
from checkpoints.safetensors_io import Entry

LAYER = re.compile(r"model\.layers\.([0-9]{1,5})\.")
# Buffers that files written by transformers before 4.40 still carry; they are recomputed, never read.
LEGACY = re.compile(r"model\.layers\.[0-9]{1,5}\.self_attn\.rotary_emb\.inv_freq")
# What torch.compile, DataParallel and FSDP put into names.
UNMERGED = re.compile(r"\.(?:base_layer|lora_\w+|original_module|modules_to_save)\b")


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight, in model order; lm_head.weight only when untied."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.self_attn.qkv_proj.weight"] = (config.qkv_dim, hidden)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, config.q_dim)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.mlp.gate_up_proj.weight"] = (2 * inner, hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
    shapes[NORM] = (hidden,)
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, hidden)
    return shapes


def split_names(config: ModelConfig) -> dict[str, Rows]:
    """Name in Llama's layout, which does not fuse projections -> the rows of the fused weight that it holds."""
    q, kv, inner = config.q_dim, config.kv_dim, config.intermediate_size
    found = {}
    for i in range(config.num_hidden_layers):
        for module, fused, parts in (
            ("self_attn", "qkv_proj", {"q_proj": q, "k_proj": kv, "v_proj": kv}),
            ("mlp", "gate_up_proj", {"gate_proj": inner, "up_proj": inner}),
        ):
            start, layer = 0, f"model.layers.{i}.{module}"
            for part, count in parts.items():
                found[f"{layer}.{part}.weight"] = Rows(f"{layer}.{fused}.weight", start, start + count)
                start += count
    return found


def model_tensors(folder: Path, config: ModelConfig, entries: Mapping[str, Entry]) -> dict[str, tuple[Entry, ...]]:
    """Name of every weight, in model order -> what its rows are stored in; BadInput unless all are those of `config`.

    Names may be Llama's and have prefixes. lm_head.weight is there too where the files have one beside tied
    embeddings, and stands for a missing embedding then, as in transformers.
    """
    if quantization := config.raw.get("quantization_config"):
        raise BadInput(f"{config.path}: these weights are already quantized ({show(quantization)})")
    found: dict[str, Entry] = {}
    raw_names: dict[str, str] = {}
    for raw, entry in entries.items():
        name = usual_name(raw)
        if LEGACY.fullmatch(name):
            continue
        if UNMERGED.search(name):
            raise BadInput(
                f"{entry.file}: {show(raw)} is of an adapter that was not merged: load the model with peft, call "
                f"merge_and_unload() and save that, or save the adapter alone and give it with --adapter"
            )
        if name.endswith(".bias"):
            raise BadInput(f"{entry.file}: {show(raw)} is a bias, dense Phi-3 models have none")
        if name in found:
            raise BadInput(f"{folder} has {name} twice, as {show(raw_names[name])} and as {show(raw)}")
        found[name], raw_names[name] = entry, raw
    layers = {int(match[1]) for name in found if (match := LAYER.match(name))}
    if found and not layers:
        first = show(next(iter(raw_names.values())))
        raise BadInput(f"{folder} has no tensors model.layers.…, as transformers names them, but {first}")
    if len(layers) != config.num_hidden_layers:
        raise BadInput(
            f"{folder} has {len(layers)} layers of tensors, "
            f"config.json says num_hidden_layers {config.num_hidden_layers}"
        )
    if config.tie_word_embeddings and EMBEDDING not in found and HEAD in found:
        found[EMBEDDING] = found[HEAD]

    split = split_names(config)
    pieces: dict[str, list[str]] = {}
    for piece, rows in split.items():
        pieces.setdefault(rows.name, []).append(piece)
    tensors, used = {}, set()
    for name, shape in tensor_shapes(dataclasses.replace(config, tie_word_embeddings=False)).items():
        if name == HEAD and HEAD not in found and config.tie_word_embeddings:
            continue
        parts = pieces.get(name, [])
        if name in found or not any(part in found for part in parts):
            parts = [name]
        for part in parts:
            if part not in found:
                why = f", which {config.told('tie_word_embeddings')} calls for" if name == HEAD else ""
                raise BadInput(f"{folder} has no tensor {part}{why}")
            count = split[part].stop - split[part].start if part in split else shape[0]
            check_entry(part, found[part], (count, *shape[1:]))
        used.update(parts)
        tensors[name] = tuple(found[part] for part in parts)
    for name, entry in found.items():
        if name not in used:
            raise BadInput(f"{entry.file}: {show(raw_names[name])} is not a tensor of a dense Phi-3 model")
    return tensors


def check_entry(name: str, entry: Entry, shape: tuple[int, ...], source: str = "config.json") -> None:
    """Raise BadInput unless a tensor has the shape that `source` makes it, and a dtype that can be read."""
    if entry.shape != shape:
        raise BadInput(f"{entry.file}: {name} has shape {entry.shape}, {source} makes it {shape}")
    if entry.dtype not in DTYPES:
        raise BadInput(f"{entry.file}: {name} is {entry.dtype}, not bfloat16, float16 or float32")

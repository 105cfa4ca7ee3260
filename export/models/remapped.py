"""Checkpoints in ExecuTorch's names, as upstream's own loader reads them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from checkpoints.config import ModelConfig
from checkpoints.errors import BadInput
from checkpoints.files import CHUNK, Progress, copy_rest, tensor_bytes, whole_folder, write_at, write_json
from checkpoints.pickled import write_state_dict
from checkpoints.roles import Rows
from checkpoints.untied import Untied
from export.models.registry import family_of, rows_shape


def params(config: ModelConfig) -> dict[str, Any]:
    """The params file that upstream's llama loader reads beside such a checkpoint (`ModelArgs` in 1.5.1).

    ffn_dim_multiplier stays out: with it upstream's rope table is twice as long, and takes the long factors
    early.
    """
    found: dict[str, Any] = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_dim": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "partial_rotary_factor": config.partial_rotary_factor,
        "use_hf_rope": True,
        "use_scaled_rope": False,
        "attention_qkv_bias": False,
    }
    if config.short_factor is not None and config.long_factor is not None:
        found |= {
            "rope_scaling_short_factor": list(config.short_factor),
            "rope_scaling_long_factor": list(config.long_factor),
            "rope_scaling_attention_factor": config.attention_factor,
            "original_max_position_embeddings": config.original_max_position_embeddings,
            "max_position_embeddings": config.max_position_embeddings,
        }
    return found


def write_remapped(opened: Untied, out: Path, progress: Callable[[int], AbstractContextManager[Progress]]) -> None:
    """Write a checkpoint for upstream's llama loader at `out`; whole or not at all.

    `out` gets consolidated.00.pth, a state dict under ExecuTorch's names with dtypes and values unchanged, and
    params.json; a tied embedding is stored once and found under both names, as upstream's converter leaves it.
    `progress` is told all bytes, then each piece's. Raises BadInput for a taken name and too small a disk.
    """
    if opened.config.multimodal is not None:
        raise BadInput(f"{opened.config.path}: upstream's loader reads text models only")
    if mark := next((mark for mark in ("int8", "8da4w") if mark in str(out)), None):
        raise BadInput(f"--out {out} contains {mark!r}, which upstream's loader takes for quantized weights")
    tensors: dict[str, torch.Tensor] = {}
    alone: dict[Rows, str] = {}  # the rows of a tied embedding are stored under their first name alone
    table = family_of(opened.config).layout(opened.config)
    for name, rows in table.items():
        first = alone.setdefault(Rows(opened.source(rows.name), rows.start, rows.stop), name)
        dtype = opened.dtype(rows.name)
        whole = torch.empty(rows_shape(opened.config, rows), dtype=dtype, device="meta")
        tensors[name] = tensors.get(first, whole)
    total = sum(tensors[name].nbytes for name in alone.values())
    with whole_folder(out, total) as folder, progress(total) as count:
        copy_rest(opened.checkpoint.folder, folder)
        write_json(folder / "params.json", params(opened.config))
        path = folder / "consolidated.00.pth"
        starts = write_state_dict(path, tensors)
        with path.open("r+b", buffering=0) as file:
            for rows, name in alone.items():
                at = starts[name]
                step = max(1, CHUNK // tensors[name][0].nbytes)
                for start in range(rows.start, rows.stop, step):
                    piece = tensor_bytes(opened.rows(rows.name, start, min(start + step, rows.stop)))
                    at = write_at(file.fileno(), piece, at)
                    count(len(piece))
                    opened.release(rows.name)

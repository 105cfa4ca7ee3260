"""Logits of transformers' Phi3ForCausalLM in float32, with one layer in memory at a time.

Several streams go through the layers together, so that every weight is read once for all of them: with the
checkpoint's weights, with those read back from a `.pte`, and with the latter and the roundings a phone makes. The
modules are transformers' own (Phi3DecoderLayer, Phi3RMSNorm, Phi3RotaryEmbedding, masks, attention); the loop over
them is that of Phi3Model.forward in 5.23. Knows nothing of the runtime.

Rotary factors. transformers takes the long factors once a sequence passes original_max_position_embeddings, the short
ones before. A `.pte` has one table, made for its whole context. So each stream tells transformers' own rule which
sequence length to assume: position `rope_length - 1` is shown to Phi3RotaryEmbedding beside the real positions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Phi3Config
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer, Phi3RMSNorm, Phi3RotaryEmbedding

from export.quantize import CHUNK_ELEMENTS, Quantized, Quantizing
from export.readback import FileWeights, Piece
from export.untie import EMBEDDING, HEAD

LOAD_ROWS = 1024  # of a checkpoint's weight at once
# Takes a name, a piece of the file's weight, and the checkpoint's rows in its place.
Compare = Callable[[str, Piece, Tensor], None]


class CheckpointWeights:
    """float32 rows of a checkpoint, seen untied; of one that is quantized already, what its levels stand for."""

    def __init__(self, opened: Quantized) -> None:
        self.opened, self.config = opened, opened.config
        self.float = opened.untied if isinstance(opened, Quantizing) else None

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start … stop of a weight, [rows, columns], or elements of a norm."""
        if self.float:
            return self.float.tensor(name)[start:stop].to(torch.float32)
        pieces = self.opened.rows(name, start, stop)
        return torch.cat([piece.dequantize() if piece.dim() == 2 else piece for piece in pieces])

    def release(self, *names: str) -> None:
        """Let go of what was mapped of these weights."""
        if self.float:
            for name in names:
                self.float.release(name)


@dataclass(frozen=True)
class Stream:
    """One run of the model over the first `length` tokens, of which logits are wanted at `positions`."""

    name: str
    length: int
    positions: tuple[int, ...]
    rope_length: int  # the sequence length, in tokens, by which transformers is to choose rotary factors
    from_file: bool = False  # whose weights
    rounded: bool = False  # with int8 activations and a KV cache of `cache_dtype`


def stream_logits(
    streams: Sequence[Stream],
    tokens: Sequence[int],
    checkpoint: CheckpointWeights,
    file: FileWeights | None = None,
    cache_dtype: torch.dtype = torch.float32,
    compare: Compare | None = None,
    progress: Callable[[int], None] = lambda layers_done: None,
) -> dict[str, Tensor]:
    """Run all streams; stream name -> float32 logits [positions, V].

    `compare` is called with every weight of the file beside the checkpoint's. Memory: a layer in float32 (403 MB for
    Phi-4-mini), hidden states, the activations of one layer, and the logits.
    """
    config = Phi3Config.from_pretrained(checkpoint.config.path.parent, local_files_only=True)
    config._attn_implementation = "sdpa"
    rotary = Phi3RotaryEmbedding(config)
    layer = _layer(config).to_empty(device="cpu")
    rounded = _with_roundings(layer, file.rounds_activations, cache_dtype) if file else layer
    sources = [None] if file is None else [None, file]

    with torch.no_grad():
        hidden = {}
        for stream in streams:
            ids = list(tokens[: stream.length])
            if file and stream.from_file:
                rows = file.embedding_rows(ids)
            else:
                rows = torch.cat([checkpoint.rows(EMBEDDING, token, token + 1) for token in ids])
            hidden[stream.name] = rows.unsqueeze(0)
        around = {stream.name: _around(stream, config, rotary, hidden[stream.name]) for stream in streams}
        for i in range(checkpoint.config.num_hidden_layers):
            for source in sources:
                _load(layer, f"model.layers.{i}.", checkpoint, source, compare)
                for stream in streams:
                    if stream.from_file == (source is not None):
                        module = rounded if stream.rounded else layer
                        hidden[stream.name] = module(hidden[stream.name], **around[stream.name])
            progress(i + 1)

        norm = Phi3RMSNorm(config.hidden_size, eps=config.rms_norm_eps).requires_grad_(False)
        for source in sources:
            _load(norm, "model.norm.", checkpoint, source, compare)
            for stream in streams:
                if stream.from_file == (source is not None):
                    last = norm(hidden[stream.name][0, list(stream.positions)])
                    rounds = stream.rounded and file is not None and file.rounds_activations
                    hidden[stream.name] = round_activations(last) if rounds else last
        return _head(streams, hidden, checkpoint, file, compare)


def round_activations(x: Tensor) -> Tensor:
    """float32 [..., D] as int8 with a scale and zero point for each token (row) keeps it.

    Bit for bit what torchao does before a linear with int8 dynamic activations, and the rule of XNNPACK's qd8.
    """
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).smallest_normal)
    zero = (-128 - torch.round(low / scale)).clamp(-128, 127)
    return ((torch.round(x * (1 / scale)) + zero).clamp(-128, 127) - zero) * scale


def _layer(config: Phi3Config) -> Phi3DecoderLayer:
    """A layer without weights."""
    with torch.device("meta"):
        return Phi3DecoderLayer(config, 0).requires_grad_(False).eval()


def _with_roundings(layer: Phi3DecoderLayer, activations: bool, cache_dtype: torch.dtype) -> Phi3DecoderLayer:
    """A second layer on the same weights whose linears and attention round as the file's do."""
    config = copy.deepcopy(layer.config)
    config._attn_implementation = f"rounded_to_{cache_dtype}"
    twin = _layer(config)
    twin.load_state_dict(layer.state_dict(), assign=True)
    for module in twin.modules():
        if activations and isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, args: (round_activations(args[0]),))

    def attention(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
        q, k, v = (x.to(cache_dtype).to(torch.float32) for x in (q, k, v))
        out, weights = ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, *args, **kwargs)
        return out.to(cache_dtype).to(torch.float32), weights

    ALL_ATTENTION_FUNCTIONS.register(config._attn_implementation, attention)
    return twin


def _around(stream: Stream, config: Phi3Config, rotary: Phi3RotaryEmbedding, hidden: Tensor) -> dict[str, Any]:
    """What a layer takes beside hidden states: mask, positions, and cos and sin, as Phi3Model.forward makes them."""
    positions = torch.arange(stream.length).unsqueeze(0)
    make_mask = create_causal_mask if config.sliding_window is None else create_sliding_window_causal_mask
    mask = make_mask(
        config=config, inputs_embeds=hidden, attention_mask=None, past_key_values=None, position_ids=positions
    )
    shown = torch.cat([positions, torch.tensor([[stream.rope_length - 1]])], dim=1)
    cos, sin = rotary(hidden, position_ids=shown)
    return {
        "attention_mask": mask,
        "position_ids": positions,
        "position_embeddings": (cos[:, : stream.length], sin[:, : stream.length]),
    }


def _load(
    module: nn.Module, prefix: str, checkpoint: CheckpointWeights, file: FileWeights | None, compare: Compare | None
) -> None:
    """Overwrite the module's parameters with the checkpoint's or, if given, the file's, comparing the two."""
    with _one_thread():
        for suffix, parameter in module.named_parameters():
            name = prefix + suffix
            if file is None:
                for at in range(0, len(parameter), LOAD_ROWS):
                    place = parameter[at : at + LOAD_ROWS]
                    place.copy_(checkpoint.rows(name, at, at + len(place)))
                checkpoint.release(name)
                continue
            for piece in file.pieces(name):
                place = parameter[piece.start : piece.start + len(piece.values)]
                if compare:
                    compare(name, piece, place)
                place.copy_(piece.values)


def _head(
    streams: Sequence[Stream],
    hidden: dict[str, Tensor],
    checkpoint: CheckpointWeights,
    file: FileWeights | None,
    compare: Compare | None,
) -> dict[str, Tensor]:
    """Logits of the last hidden states, some rows of lm_head at a time; compares the embedding on the way."""
    config = checkpoint.config
    logits = {stream.name: torch.empty(len(stream.positions), config.vocab_size) for stream in streams}
    head_pieces = file.pieces(HEAD) if file else iter(())
    embedding_pieces = file.pieces(EMBEDDING) if file and compare else iter(())
    step = max(1, CHUNK_ELEMENTS // config.hidden_size)
    count = max(1, LOAD_ROWS // step)
    for start in range(0, config.vocab_size, count * step):
        stop = min(start + count * step, config.vocab_size)
        with _one_thread():
            rows = checkpoint.rows(HEAD, start, stop)
            own = torch.empty_like(rows)
            for piece in islice(head_pieces, count):
                place = slice(piece.start - start, piece.start - start + len(piece.values))
                own[place] = piece.values
                if compare:
                    compare(HEAD, piece, rows[place])
            for piece in islice(embedding_pieces, count):
                if compare:
                    kept = checkpoint.rows(EMBEDDING, piece.start, piece.start + len(piece.values))
                    compare(EMBEDDING, piece, kept)
            checkpoint.release(HEAD, EMBEDDING)
        for stream in streams:
            logits[stream.name][:, start:stop] = hidden[stream.name] @ (own if stream.from_file else rows).T
    return logits


@contextmanager
def _one_thread() -> Iterator[None]:
    """Pieces the size of a cache gain little from a second thread, and wait for it where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

"""Logits of transformers' Phi3ForCausalLM in float32, with one layer in memory at a time.

Several streams go through the layers together, so that every weight is read once for all of them: with the
checkpoint's weights, with those read back from a `.pte`, and with the latter and the roundings a phone makes. The
modules are transformers' own (layer, norm, rotary embedding, masks, attention), named by the family; the loop over
them is that of Phi3Model.forward in 5.23. Knows nothing of the runtime.

Rotary factors. transformers takes the long factors once a sequence passes original_max_position_embeddings, the short
ones before. A `.pte` has one table, made for its whole context. So each stream tells transformers' own rule which
sequence length to assume: position `rope_length - 1` is shown to its rotary embedding beside the real positions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from checkpoints.roles import EMBEDDING, HEAD
from export.models.registry import family_of
from export.ptefile.weights import DecodedRows
from export.quantization.rounding import QuantizedSource, Quantizing, Rounded
from export.workers import workers

LOAD_ROWS = 256  # of a checkpoint's weight at once: float32 rows that fit a cache and the heap, not pages to map
BATCH_TOKENS = 512  # streams longer than this run one by one
# Takes a name, a piece of the file's weight, and the checkpoint's rows in its place.
Compare = Callable[[str, DecodedRows, Tensor], None]


class CheckpointWeights:
    """float32 rows of a checkpoint, seen untied; of one that is quantized already, what its levels stand for."""

    def __init__(self, opened: QuantizedSource) -> None:
        self.opened, self.config = opened, opened.config
        self.float = opened.untied if isinstance(opened, Quantizing) else None

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start … stop of a weight, [rows, columns], or elements of a norm."""
        if self.float:
            return self.float.rows(name, start, stop).to(torch.float32)
        pieces = self.opened.rows(name, start, stop)
        return torch.cat([piece.dequantize() if isinstance(piece, Rounded) else piece for piece in pieces])

    def read_into(self, place: Tensor, name: str, start: int) -> None:
        """Write the rows from `start` on to `place`, float32 and contiguous."""
        stop = start + len(place)
        place.copy_(self.float.rows(name, start, stop) if self.float else self.rows(name, start, stop))

    def prefetch(self, name: str) -> None:
        """Have the weight read in the background."""
        if self.float:
            self.float.prefetch(name)

    def release(self, *names: str) -> None:
        """Let go of what was mapped of these weights."""
        if self.float:
            for name in names:
                self.float.release(name)


class Weights(Protocol):
    """Those of a file, or of a quantized checkpoint in its place; see `export.ptefile.weights.FileWeights`."""

    @property
    def rounds_activations(self) -> bool: ...

    def pieces(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[DecodedRows]: ...

    def embedding_rows(self, tokens: list[int]) -> Tensor: ...

    def prefetch(self, name: str) -> None: ...


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
    file: Weights | None = None,
    cache_dtype: torch.dtype = torch.float32,
    compare: Compare | None = None,
    progress: Callable[[int], None] = lambda layers_done: None,
) -> dict[str, Tensor]:
    """Run all streams; stream name -> float32 logits [positions, V].

    `compare` is called with every weight of the file beside the checkpoint's. Memory: a layer in float32 (403 MB for
    Phi-4-mini), hidden states, the activations of one layer, and the logits.
    """
    modules = family_of(checkpoint.config).reference()
    config = modules.config(**checkpoint.config.as_phi3())
    config._attn_implementation = "sdpa"
    rotary = modules.rotary(config)
    layer = empty_layer(modules.layer, config).to_empty(device="cpu")
    sources = [None] if file is None else [None, file]
    last_layer = checkpoint.config.num_hidden_layers - 1

    with torch.no_grad():
        batches = [
            _Batch(together, tokens, checkpoint, file, layer, rotary, cache_dtype) for together in _together(streams)
        ]
        for i in range(last_layer + 1):
            for source in sources:
                _load(layer, f"model.layers.{i}.", checkpoint, source, compare)
                if source is sources[-1] and i < last_layer:  # the disk works while the processor does
                    _prefetch(layer, f"model.layers.{i + 1}.", checkpoint, file)
                for batch in batches:
                    if batch.from_file == (source is not None):
                        batch.hidden = batch.module(batch.hidden, **batch.around)
            progress(i + 1)

        norm = modules.norm(config.hidden_size, eps=config.rms_norm_eps).requires_grad_(False)
        last = {}
        for source in sources:
            _load(norm, "model.norm.", checkpoint, source, compare)
            for batch in batches:
                if batch.from_file == (source is not None):
                    for stream, hidden in zip(batch.streams, batch.hidden, strict=True):
                        x = norm(hidden[list(stream.positions)])
                        rounds = stream.rounded and file is not None and file.rounds_activations
                        last[stream.name] = round_activations(x) if rounds else x
        return _head(streams, last, checkpoint, file, compare)


class _Batch:
    """Streams of one length on the same weights, run as one batch: matrices are read once for all of them."""

    def __init__(
        self,
        streams: Sequence[Stream],
        tokens: Sequence[int],
        checkpoint: CheckpointWeights,
        file: Weights | None,
        layer: nn.Module,
        rotary: nn.Module,
        cache_dtype: torch.dtype,
    ) -> None:
        self.streams, self.from_file = streams, streams[0].from_file
        ids = list(tokens[: streams[0].length])
        if file and self.from_file:
            rows = file.embedding_rows(ids)
        else:
            rows = torch.cat([checkpoint.rows(EMBEDDING, token, token + 1) for token in ids])
        self.hidden = rows.expand(len(streams), -1, -1)  # [streams, tokens, D]
        self.around = around([stream.rope_length for stream in streams], layer.config, rotary, self.hidden)
        rounded = torch.tensor([stream.rounded for stream in streams])
        self.module = layer
        if file and rounded.any():
            self.module = _with_roundings(layer, rounded, file.rounds_activations, cache_dtype)


def _together(streams: Sequence[Stream]) -> list[list[Stream]]:
    """Streams that may share a batch; long ones stay alone, for their activations' sake."""
    found: dict[tuple[bool, int, str], list[Stream]] = {}
    for stream in streams:
        alone = stream.name if stream.length > BATCH_TOKENS else ""
        found.setdefault((stream.from_file, stream.length, alone), []).append(stream)
    return list(found.values())


def round_activations(x: Tensor) -> Tensor:
    """float32 [..., D] as int8 with a scale and zero point for each token (row) keeps it.

    Bit for bit what torchao does before a linear with int8 dynamic activations, and the rule of XNNPACK's qd8.
    """
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).smallest_normal)
    zero = (-128 - torch.round(low / scale)).clamp(-128, 127)
    return ((torch.round(x * (1 / scale)) + zero).clamp(-128, 127) - zero) * scale


def empty_layer(kind: type[nn.Module], config: PretrainedConfig) -> nn.Module:
    """A layer without weights."""
    with torch.device("meta"):
        return kind(config, 0).requires_grad_(False).eval()


def _with_roundings(layer: nn.Module, rounded: Tensor, activations: bool, cache_dtype: torch.dtype) -> nn.Module:
    """A second layer on the same weights that rounds as the file does, in the rows of a batch that `rounded` marks.

    Linears round their inputs if `activations`, attention q, k, v and its result to `cache_dtype`.
    """
    config: Any = copy.deepcopy(layer.config)
    config._attn_implementation = f"rounded_to_{cache_dtype}_in_{''.join(str(int(row)) for row in rounded)}"
    twin = empty_layer(type(layer), config)
    twin.load_state_dict(layer.state_dict(), assign=True)

    def where_rounded(x: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        if rounded.all():
            return rounding(x)
        x = x.clone()
        x[rounded] = rounding(x[rounded])
        return x

    def as_cached(x: Tensor) -> Tensor:
        return x.to(cache_dtype).to(torch.float32)

    for module in twin.modules():
        if activations and isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, args: (where_rounded(args[0], round_activations),))

    def attention(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
        q, k, v = (where_rounded(x, as_cached) for x in (q, k, v))
        out, weights = ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, *args, **kwargs)
        return where_rounded(out, as_cached), weights

    ALL_ATTENTION_FUNCTIONS.register(config._attn_implementation, attention)
    return twin


def around(
    rope_lengths: Sequence[int], config: PretrainedConfig, rotary: nn.Module, hidden: Tensor
) -> dict[str, Any]:
    """What a layer takes beside hidden states [B, S, D]: mask, positions, cos and sin, as in Phi3Model.forward.

    `rope_lengths` holds for each of the B sequences the length by which to choose rotary factors.
    """
    length = hidden.shape[1]
    positions = torch.arange(length, device=hidden.device).unsqueeze(0)
    make_mask = create_causal_mask if config.sliding_window is None else create_sliding_window_causal_mask
    mask = make_mask(
        config=config, inputs_embeds=hidden, attention_mask=None, past_key_values=None, position_ids=positions
    )
    tables = []
    for rope_length in rope_lengths:
        shown = torch.cat([positions, torch.full_like(positions[:, :1], rope_length - 1)], dim=1)
        tables.append([table[:, :length] for table in rotary(hidden[:1], position_ids=shown)])
    cos, sin = (torch.cat(table) for table in zip(*tables, strict=True))  # [streams, tokens, rotary dims]
    return {"attention_mask": mask, "position_ids": positions, "position_embeddings": (cos, sin)}


def _prefetch(layer: nn.Module, prefix: str, checkpoint: CheckpointWeights, file: Weights | None) -> None:
    """Ask for a layer's bytes, so that they are in memory when `_load` wants them."""
    for suffix, _ in layer.named_parameters():
        checkpoint.prefetch(prefix + suffix)
        if file:
            file.prefetch(prefix + suffix)


def _load(
    module: nn.Module, prefix: str, checkpoint: CheckpointWeights, file: Weights | None, compare: Compare | None
) -> None:
    """Overwrite the module's parameters with the checkpoint's or, if given, the file's, comparing the two."""

    def load(suffix: str, parameter: Tensor) -> None:
        name = prefix + suffix
        if file is None:
            for at in range(0, len(parameter), LOAD_ROWS):
                checkpoint.read_into(parameter[at : at + LOAD_ROWS], name, at)
            checkpoint.release(name)
            return
        for piece in file.pieces(name):
            place = parameter[piece.start : piece.start + len(piece.values)]
            if compare:
                compare(name, piece, place)
            place.copy_(piece.values)

    largest_first = sorted(module.named_parameters(), key=lambda named: -named[1].numel())
    with workers() as pool:
        for done in [pool.submit(load, *named) for named in largest_first]:
            done.result()


def _head(
    streams: Sequence[Stream],
    hidden: dict[str, Tensor],
    checkpoint: CheckpointWeights,
    file: Weights | None,
    compare: Compare | None,
) -> dict[str, Tensor]:
    """Logits of the last hidden states, some rows of lm_head at a time; compares the embedding on the way."""
    config = checkpoint.config
    logits = {stream.name: torch.empty(len(stream.positions), config.vocab_size) for stream in streams}
    step = max(1, LOAD_ROWS * 8)

    def some(start: int) -> None:
        stop = min(start + step, config.vocab_size)
        rows = torch.empty(stop - start, config.hidden_size)
        checkpoint.read_into(rows, HEAD, start)
        for stream in streams:
            if not stream.from_file:
                logits[stream.name][:, start:stop] = hidden[stream.name] @ rows.T
        if file is None:
            return
        for piece in file.pieces(HEAD, start, stop):
            place = rows[piece.start - start : piece.start - start + len(piece.values)]
            if compare:
                compare(HEAD, piece, place)
            place.copy_(piece.values)
        for stream in streams:
            if stream.from_file:
                logits[stream.name][:, start:stop] = hidden[stream.name] @ rows.T
        if compare:
            for piece in file.pieces(EMBEDDING, start, stop):
                compare(EMBEDDING, piece, checkpoint.rows(EMBEDDING, piece.start, piece.start + len(piece.values)))

    with workers() as pool:
        # A few at a time, and then what was mapped of the weights is let go of.
        for first in range(0, config.vocab_size, 16 * step):
            last = min(first + 16 * step, config.vocab_size)
            for done in [pool.submit(some, start) for start in range(first, last, step)]:
                done.result()
            checkpoint.release(HEAD, EMBEDDING)
    return logits

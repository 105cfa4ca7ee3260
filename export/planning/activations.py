"""What a call needs beside weights and KV cache: the arena that ExecuTorch plans, and XNNPACK's workspace.

Both follow from the decoder of `export.models.phi3`, whose tensors are listed here as they come and go. ExecuTorch
1.5.1 plans its arena by `greedy` (executorch.exir.memory_planning): largest tensors first, each into the first bucket
that has room while it lives. The same is done here, so that nothing has to be traced.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from checkpoints.config import ModelConfig
from export.options import ExportOptions

FLOAT, BFLOAT16 = 4, 2  # bytes
ALIGNMENT = 16  # bytes, of a tensor in the arena
PADDING = 64  # bytes behind the arena
STEPS = 30  # of a layer


@dataclass(frozen=True)
class Living:
    """A tensor of the arena: its bytes, and the first and the last step that it is used in."""

    size: int
    first: int
    last: int

    def meets(self, other: Living) -> bool:
        return self.first <= other.last and other.first <= self.last


def activation_bytes(config: ModelConfig, options: ExportOptions) -> int:
    """Bytes of the arena of `forward` without the KV cache; the manifest's `planned.activation_bytes`."""
    living = [Living(-(-one.size // ALIGNMENT) * ALIGNMENT, one.first, one.last) for one in _tensors(config, options)]
    buckets: list[tuple[int, list[tuple[int, Living]]]] = []  # size, and what lies at which offset
    for one in sorted(reversed(living), key=lambda one: -one.size):
        for placed in _places(buckets, one):
            placed.append((0, one))
            break
        else:
            if not _beside_others(buckets, one):
                buckets.append((one.size, [(0, one)]))
    return sum(size for size, _ in buckets) + PADDING


def logits_bytes(config: ModelConfig, options: ExportOptions) -> int:
    """Of the logits that a call of a whole chunk gives, float32; they are part of the arena."""
    return FLOAT * config.vocab_size * (options.logits or options.prefill_chunk)


def workspace_bytes(config: ModelConfig, options: ExportOptions, tokens: int) -> int:
    """Bytes that XNNPACK keeps between the steps of a piece, one for all pieces, after calls of up to so many tokens.

    The widest piece decides, the feed-forward part: two float32 rows of it a token, of which one is kept for a whole
    chunk however few tokens come, and the int8 input. Measured with executorch 1.5.1.
    """
    row = FLOAT * config.intermediate_size
    return row * options.prefill_chunk + (row + config.hidden_size) * tokens


def _places(buckets: list[tuple[int, list[tuple[int, Living]]]], one: Living) -> list[list[tuple[int, Living]]]:
    """Buckets in which nothing lives at the same time."""
    return [held for _, held in buckets if not any(one.meets(other) for _, other in held)]


def _beside_others(buckets: list[tuple[int, list[tuple[int, Living]]]], one: Living) -> bool:
    """Put it behind all that lives at the same time in the first bucket that is long enough."""
    for size, held in buckets:
        behind = max(offset + other.size for offset, other in held if one.meets(other))
        if behind + one.size <= size:
            held.append((behind, one))
            return True
    return False


def _tensors(config: ModelConfig, options: ExportOptions) -> Iterator[Living]:
    """In the order of the decoder's steps, for a whole chunk."""
    end = STEPS * config.num_hidden_layers + 1
    table = FLOAT * options.prefill_chunk * config.head_dim
    rows = FLOAT * config.hidden_size * (options.logits or options.prefill_chunk)
    yield Living(table, 0, end)  # cos and sin of this call's positions
    yield Living(table, 0, end)
    yield Living(FLOAT * options.prefill_chunk * config.hidden_size, 0, 24)  # the embedding's rows
    for layer in range(config.num_hidden_layers):
        for one in _layer(config, options):
            yield Living(one.size, one.first + STEPS * layer, one.last + STEPS * layer)
    for step in range(end, end + 6, 2):  # the last rows of the residual, and steps of the last norm
        yield Living(rows, step, step + 2)
    yield Living(logits_bytes(config, options), end + 6, end + 7)


def _layer(config: ModelConfig, options: ExportOptions) -> list[Living]:
    chunk, narrow = options.prefill_chunk, options.kv_cache == "bf16"  # what is cached is rounded to the cache's type
    hidden, value = FLOAT * chunk * config.hidden_size, FLOAT * chunk * config.kv_dim
    query = FLOAT * chunk * config.q_dim
    both = query + value  # queries and keys
    half = both * (config.rotary_dim // 2) // config.head_dim
    found = [
        (hidden, 2, 3),  # steps of the norm
        (hidden, 6, 7),
        (hidden, 7, 8),
        (both, 8, 12),
        (value, 8, 18 if narrow else 20),
        (half, 9, 13),  # what is rotated, in its new order
        (half, 10, 13),
        (both - 2 * half, 11, 13),  # what is not
        (both, 12, 15),  # times cos
        (both, 13, 14),  # in its new order
        (both, 14, 15),  # times sin
        (both, 15, 16 if narrow else 21),
        (both // 2 * narrow, 16, 21),
        (value // 2 if narrow else value, 17, 19),  # keys
        (value // 2 * narrow, 18, 20),
        (query // 2 if narrow else query, 21, 22),
        (query // 2 if narrow else query, 22, 23 if narrow else 24),  # what attention gives
        (query * narrow, 23, 24),
        (hidden, 24, 31),  # the residual between
        (hidden, 25, 26),  # steps of the norm
        (hidden, 29, 30),
        (hidden, 30, 31),
        (hidden, 31, STEPS + 24),  # the residual after
    ]
    return [Living(*one) for one in found if one[0]]

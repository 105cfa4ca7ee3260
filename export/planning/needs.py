"""What a recipe takes on the disk, and in memory after so many tokens: from config.json and options alone.

Two ways to hold the weights. Our engine maps a file of packed weights: its pages are clean, the system may drop them
and read them again, and no limit of a process counts them. Upstream's runner packs them onto the heap when it loads,
and fills all memory that was planned: private memory, from the first token on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod

from checkpoints.config import ModelConfig
from checkpoints.roles import Role, role
from export.models.kv_cache import CACHE_DTYPES, cache_bytes
from export.models.registry import rows_shape
from export.options import ExportOptions
from export.planning.activations import activation_bytes, logits_bytes, workspace_bytes
from export.planning.places import ALIGNMENT, Placed, end, place, program_room

PAGE = 4096  # bytes; of the machines these sums were checked on. iPhones have 16384, and round the KV cache to more

# Bytes of XNNPACK's graphs in a file. They hold no weights, so that sizes do not matter. Executorch 1.5.1.
LAYER_GRAPHS = {True: 2688 + 1408 + 2432, False: 1920 + 1152 + 1664}  # quantized, or float32; each is padded
HEAD_GRAPH = {4: 880, 8: 848, 32: 560}  # by the bits of lm_head; the last in the file

# Bytes behind each row of a packed weight by its bits, for bias, sums and scales. XNNPACK of executorch 1.5.1.
PACKED_ROW = {4: 8, 8: 8, 32: 4}

# What a loaded program takes of its own, measured with phi4-tiny, SmolLM2-135M and shapes of Phi-4-mini.
RUNTIME_LAYER, RUNTIME_TOKEN, RUNTIME_REST = 64_000, 8, 250_000  # bytes: a layer, an entry of the vocabulary


@dataclass(frozen=True)
class Needs:
    """Of one model with one recipe; all sizes in bytes."""

    config: ModelConfig
    options: ExportOptions

    @cached_property
    def file_bytes(self) -> int:
        """The `.pte`."""
        layers, placed = self.config.num_hidden_layers, place(self.config, self.options.recipe)
        head = next(item for item in placed if role(item.rows.name) is Role.HEAD)
        rope = 4 * self.options.context * self.config.rotary_dim  # cos and sin, float32
        constants = ceil((rope + 1) / ALIGNMENT) * ALIGNMENT  # with scalars, padded
        graphs = layers * LAYER_GRAPHS[self.options.recipe.quantized] + HEAD_GRAPH[self._bits(head)]
        return program_room(self.config) + end(placed) + constants + graphs

    @cached_property
    def packed_bytes(self) -> int:
        """All linears as XNNPACK packs them; in our engine's file each begins on a page of its own."""
        linears = [
            item
            for item in place(self.config, self.options.recipe)
            if role(item.rows.name) in (Role.LINEAR, Role.HEAD)
        ]
        return sum(
            sum(item.sizes.values()) + (item.rows.stop - item.rows.start) * PACKED_ROW[self._bits(item)]
            for item in linears
        )

    @cached_property
    def kv_bytes(self) -> int:
        """The KV cache of the whole context."""
        return cache_bytes(self.config, self.options.context, CACHE_DTYPES[self.options.kv_cache])

    @cached_property
    def activation_bytes(self) -> int:
        """What is planned for a call of a whole chunk, its logits among it."""
        return activation_bytes(self.config, self.options)

    def ours(self, tokens: int, page: int = PAGE) -> int:
        """Private bytes of our engine once `tokens` of the context are in use."""
        chunk = self.options.prefill_chunk
        fed = min(tokens, chunk)
        logits = logits_bytes(self.config, self.options)
        rest = max(0, self.activation_bytes - logits)
        activations = self.activation_bytes - rest * (chunk - fed) // chunk
        return self._cached(tokens, page) + activations + self._beside(fed)

    def stock(self, tokens: int) -> int:
        """Private bytes of upstream's runner: the weights, and all planned memory, whatever the context in use."""
        fed = min(tokens, self.options.prefill_chunk)
        return self.packed_bytes + self.kv_bytes + self.activation_bytes + self._beside(fed)

    def private(self, engine: str, tokens: int, page: int = PAGE) -> int:
        """Of the engine "ours" or "stock"."""
        return self.ours(tokens, page) if engine == "ours" else self.stock(tokens)

    def _bits(self, item: Placed) -> int:
        return 8 * item.sizes["weight"] // prod(rows_shape(self.config, item.rows))

    def _cached(self, tokens: int, page: int) -> int:
        """Pages of the KV cache that are written: each head's keys and values lie apart and begin within a page."""
        config, width = self.config, CACHE_DTYPES[self.options.kv_cache].itemsize
        parts = 2 * config.num_hidden_layers * config.num_key_value_heads
        part = config.head_dim * width
        return parts * min(self.options.context * part, ceil(tokens * part / page) * page + page)

    def _beside(self, fed: int) -> int:
        runtime = (
            RUNTIME_LAYER * self.config.num_hidden_layers + RUNTIME_TOKEN * self.config.vocab_size + RUNTIME_REST
        )
        return workspace_bytes(self.config, self.options, fed) + runtime

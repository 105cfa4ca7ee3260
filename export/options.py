"""What can be chosen about an export, and whether it suits a model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Unpack

from checkpoints.config import ModelConfig
from checkpoints.errors import BadInput
from export.models.kv_cache import CACHE_DTYPES
from export.quantization.recipe import Recipe, RecipeFlags, make_recipe

WHOLE = 1024  # tokens that a multimodal model's decoder takes at once, at least
MOST_CROPS = 36  # what the original was trained with
MIN_CHUNK = 2  # torch.export makes a dynamic length of at least two values


@dataclass(frozen=True)
class ExportOptions:
    """Everything that, with a checkpoint, decides a file's bytes. Lengths in tokens."""

    context: int = 4096  # tokens the KV cache holds
    prefill_chunk: int = 256  # tokens fed at once at most
    kv_cache: str = "bf16"  # a key of `export.models.kv_cache.CACHE_DTYPES`
    speculate: int = 7  # tokens guessed ahead that one call can check: it gives the logits of one more
    full_logits: bool = False  # of all positions of a call
    max_crops: int = 4  # that a picture is cut into at most, beside the whole of it (multimodal)
    recipe: Recipe = field(default_factory=Recipe)
    bos_id: int | None = None  # None and (): the checkpoint's
    eos_ids: tuple[int, ...] = ()

    @property
    def logits(self) -> int | None:
        """How many last tokens of a call have their logits given; None: all."""
        return None if self.full_logits else min(self.speculate + 1, self.prefill_chunk)

    def suited(self, config: ModelConfig) -> ExportOptions:
        """The same for a model that may be multimodal: its decoder takes a picture or a window whole.

        So stock runners call it, and a picture of one crop is 545 tokens. Raises BadInput for a short context.
        """
        if config.multimodal is None:
            return self
        if config.multimodal.vision is not None:
            side = config.multimodal.vision.patches // 2
            if self.context < (least := 2 * side * (side + 1) + 1):
                raise BadInput(f"--context {self.context} does not hold a picture, which is {least} tokens or more")
        return replace(self, prefill_chunk=max(self.prefill_chunk, min(WHOLE, self.context)))

    def check(self, config: ModelConfig) -> None:
        """Raise BadInput where a length or the recipe does not suit the model; ids are checked with its tokenizer."""
        if self.kv_cache not in CACHE_DTYPES:
            raise BadInput(f"--kv-cache {self.kv_cache} is none of {', '.join(CACHE_DTYPES)}")
        longest, context, chunk = config.max_position_embeddings, self.context, self.prefill_chunk
        if not MIN_CHUNK <= context <= longest:
            limit = f"{MIN_CHUNK} to {config.told('max_position_embeddings')}"
            raise BadInput(f"--context {context} is not within {limit}")
        if not MIN_CHUNK <= chunk <= context:
            raise BadInput(f"--prefill-chunk {chunk} is not within {MIN_CHUNK} to {context}, the context")
        if config.sliding_window is not None and config.sliding_window < context:
            raise BadInput(
                f"{config.told('sliding_window')} is shorter than the context {context}, "
                f"and files have no sliding window: give --context {config.sliding_window} or less"
            )
        if self.speculate < 0:
            raise BadInput(f"--speculate {self.speculate} is below 0")
        if not 1 <= self.max_crops <= MOST_CROPS:
            raise BadInput(f"--max-crops {self.max_crops} is not within 1 to {MOST_CROPS}")
        self.recipe.check(config)


class Flags(RecipeFlags, total=False):
    """The same as flags of a command."""

    context: int
    prefill_chunk: int
    kv_cache: str
    speculate: int
    full_logits: bool
    max_crops: int
    quantize: bool
    bos_id: int | None
    eos_ids: tuple[int, ...] | None


def from_flags(**flags: Unpack[Flags]) -> ExportOptions:
    """Options from flags; what is left out keeps its default."""
    given: dict[str, Any] = dict(flags)
    recipe = {name: given.pop(name) for name in ("quantize", *RecipeFlags.__annotations__) if name in given}
    return ExportOptions(**given | {"recipe": make_recipe(**recipe), "eos_ids": tuple(given.get("eos_ids") or ())})

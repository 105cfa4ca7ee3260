"""Gives lm_head a weight of its own, so that the embedding and the head can be quantized differently.

Nothing else changes. The copy is made nowhere: a tied checkpoint reads the embedding's rows under the second name.
"""

from __future__ import annotations

import dataclasses

import torch

from checkpoints.config import ModelConfig
from checkpoints.weights import Checkpoint

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Untied:
    """A checkpoint seen with `lm_head.weight` present and `tie_word_embeddings` false."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.tied = checkpoint.config.tie_word_embeddings
        self.config: ModelConfig = dataclasses.replace(checkpoint.config, tie_word_embeddings=False)

    def source(self, name: str) -> str:
        """The name under which the checkpoint stores `name`."""
        return EMBEDDING if self.tied and name == HEAD else name

    def names(self) -> list[str]:
        return self.checkpoint.names() + ([HEAD] if self.tied else [])

    def shape(self, name: str) -> tuple[int, ...]:
        return self.checkpoint.shape(self.source(name))

    def tensor(self, name: str) -> torch.Tensor:
        """A view into the mapped file; see `Checkpoint.tensor`."""
        return self.checkpoint.tensor(self.source(name))

    def release(self, name: str) -> None:
        self.checkpoint.release(self.source(name))

"""The tokens a calibration looks at: sequences cut from texts, spread evenly over each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.config import ModelConfig
from checkpoints.errors import BadInput
from export.engine.tokenizer import find_tokenizer, load_tokenizer


def sequences(folder: Path, config: ModelConfig, texts: Mapping[str, str], count: int, length: int) -> Tensor:
    """int64 [count, length], the texts taking turns; BadInput where a text is too short for its share.

    They begin without a token that begins a text: most of what a model reads lies within one.
    """
    tokenizer = load_tokenizer(find_tokenizer(folder))
    found: list[list[Tensor]] = []
    for i, (name, text) in enumerate(texts.items()):
        share = len(range(i, count, len(texts)))
        ids = tokenizer.encode(text)
        if len(ids) < share * length:
            raise BadInput(
                f"the text {name} has {len(ids)} tokens, {share} sequences of {length} are to be cut from it"
            )
        if ids and max(ids) >= config.vocab_size:
            raise BadInput(
                f"{tokenizer.path} has token {max(ids)}, {config.path} says vocab_size {config.vocab_size}"
            )
        step = (len(ids) - length) // max(1, share - 1)
        found.append([torch.tensor(ids[at * step : at * step + length]) for at in range(share)])
    return torch.stack([found[i % len(texts)][i // len(texts)] for i in range(count)])

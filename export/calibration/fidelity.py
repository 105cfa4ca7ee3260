"""What quantized weights lose of the original, before there is a file: simulated with the roundings of one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from checkpoints.texts import find_texts
from export.engine.tokenizer import find_tokenizer, load_tokenizer
from export.quantization.rounding import QuantizedSource, Quantizing
from export.reference.kept import KeptWeights
from export.reference.layerwise import CheckpointWeights, Stream, stream_logits
from export.verification.checks import Quality, quality

TOKENS = 64  # of each of our texts for evaluation, of which a calibration reads none


def measure(folder: Path, original: Quantizing, calibrated: QuantizedSource) -> dict[str, Any]:
    """KL, top-1 and perplexity against the original of these weights, and of those rounded to nearest."""
    tokenizer = load_tokenizer(find_tokenizer(folder))
    texts = find_texts("evaluation")
    ids = [token for text in texts.values() for token in tokenizer.encode(text)[:TOKENS]]
    positions = tuple(range(min(len(ids), original.config.max_position_embeddings)))
    following = [ids[p + 1] if p + 1 < len(ids) else None for p in positions]
    streams = [
        Stream("original", len(positions), positions, len(positions)),
        Stream("rounded", len(positions), positions, len(positions), from_file=True, rounded=True),
    ]
    found: dict[str, Any] = {"text": ", ".join(texts)}
    reference: torch.Tensor | None = None
    for kind, weights in (("calibrated", calibrated), ("nearest", original)):
        logits = stream_logits(
            streams if reference is None else streams[1:],
            ids,
            CheckpointWeights(original),
            KeptWeights(weights),
            torch.bfloat16,
        )
        reference = logits.get("original", reference)
        assert reference is not None
        measured: Quality = quality(logits["rounded"], reference, following)
        found[kind] = dataclasses.asdict(measured)
    return found

"""Compares what a multimodal file has beside its text model with transformers: encoders, adapters and their weights.

Inputs are noise from a fixed seed: a crop and one with padding, a clip of several pieces, token ids. Bounds are found
as those of text are, see `checks`: by transformers itself with the file's roundings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from checkpoints.config import ModelConfig
from checkpoints.phi4mm import IMAGE, PROJECTIONS, SOUND
from checkpoints.phi4mm_config import ADAPTERS, AUDIO, VISION
from export.engine.memory import trim
from export.media.prompt import Mode
from export.media.settings import AudioSettings
from export.ptefile.weights import FileWeights
from export.reference.layerwise import CheckpointWeights, Stream, stream_logits
from export.reference.media import AdaptedWeights, crop_features, load_encoder, project, with_roundings
from export.verification import checks
from export.verification.checks import Check, Rounding, WeightComparison, allowance, at_most, pooled_error

FRAMES = 500  # of the clip: two pieces, 63 tokens
SEED = 0


@dataclass(frozen=True)
class Probe:
    """What a file is run on; plain data, for another process."""

    pixels: np.ndarray | None  # float32 [1, 3, side, side]
    valid: tuple[tuple[int, int], ...]  # rows and columns of patches, of each run of the crop
    frames: np.ndarray | None  # float32 [frames, bins]
    audio: AudioSettings | None
    tokens: tuple[int, ...]
    modes: tuple[Mode, ...]


def make_probe(config: ModelConfig, tokens: Sequence[int]) -> Probe:
    """For the modalities of a model."""
    from export.models.phi4mm.settings import audio_settings

    assert config.multimodal is not None
    vision, audio = config.multimodal.vision, config.multimodal.audio
    rng = np.random.default_rng(SEED)
    pixels, frames, settings = None, None, None
    valid: tuple[tuple[int, int], ...] = ()
    modes: list[Mode] = ["text"]
    if vision is not None:
        side = vision.image_size
        pixels = rng.standard_normal((1, 3, side, side), np.float32)
        valid = ((vision.patches, vision.patches), (vision.patches * 3 // 4, vision.patches // 2))
        modes.append("vision")
    if audio is not None:
        frames = 5 + 3 * rng.standard_normal((FRAMES, audio.num_mel_bins), np.float32)
        settings = audio_settings(audio)
        modes.append("speech")
    return Probe(pixels, valid, frames, settings, tuple(tokens), tuple(modes))


def run_media(path: Path, probe: Probe) -> dict[str, np.ndarray]:
    """Run a file's encoders and decoders on a probe; results by what they are of.

    Each in a session of its own, which is back with the system before anything else takes memory.
    """
    found = _run_encoders(path, probe)
    trim()
    found |= _run_decoders(path, probe)
    trim()
    return {name: value.numpy() for name, value in found.items()}


def _run_encoders(path: Path, probe: Probe) -> dict[str, Tensor]:
    from export.engine.encoders import MediaSession

    session = MediaSession(path)
    found = {}
    if probe.pixels is not None:
        pixels = torch.from_numpy(probe.pixels)
        for valid in probe.valid:
            found[_crop(valid)] = session.run("vision_crop", pixels, torch.tensor(valid))
        found["vision_separators"] = session.run("vision_separators")
        found["vision_encoder"] = session.run("vision_encoder", pixels)
    if probe.frames is not None and probe.audio is not None:
        for mode in probe.modes:
            if f"audio_conformer_{mode}" in session.methods:
                found[f"sound, {mode}"] = session.sound(probe.frames, probe.audio, mode)
    return found


def _run_decoders(path: Path, probe: Probe) -> dict[str, Tensor]:
    from export.engine.encoders import MediaSession

    session, found = MediaSession(path), {}
    rows, half = session.embed(list(probe.tokens)), len(probe.tokens) // 2
    for mode in probe.modes:
        session.decode(rows[:half], 0, mode)
        if probe.pixels is not None:  # between two calls, which must leave the cache alone; a call that takes least
            session.run("vision_separators")
        elif probe.frames is not None:
            session.run("audio_subsample", torch.from_numpy(probe.frames[None, :300].copy()))
        steps = [session.decode(rows[i : i + 1], i, mode)[-1:] for i in range(half, len(rows))]
        found[f"logits, {mode}"] = torch.cat(steps)
    return found


def check_media(
    config: ModelConfig,
    probe: Probe,
    run: Callable[[], dict[str, np.ndarray]],
    checkpoint: CheckpointWeights,
    weights: FileWeights,
    kv_dtype: torch.dtype,
    context: int,
) -> list[Check]:
    """Checks of what `run` gives, and of all weights that the text model does not have."""
    weighed = WeightComparison()
    text = {name for name in weights.names() if not name.startswith((IMAGE, SOUND)) and ".lora_" not in name}
    for name in weights.names():
        if name not in text:
            for piece in weights.pieces(name):
                stop = piece.start + len(piece.values)
                weighed(name, piece, checkpoint.rows(name, piece.start, stop))
            checkpoint.release(name)
    found = [replace(check, name=f"media {check.name}") for check in weighed.checks()]
    trim()
    # The running file is gone before an encoder in float32 comes: together they would need more than text ever does.
    results = {name: torch.from_numpy(values) for name, values in run().items()}
    with torch.no_grad():
        wanted = _encoded(config, probe, weights)
        streams = {mode: _logits(mode, probe, checkpoint, weights, kv_dtype, context) for mode in probe.modes}
    for name, (plain, rounded) in wanted.items():
        found.append(_close(name, results[name], plain, rounded))
    half, length = len(probe.tokens) // 2, len(probe.tokens)
    positions = list(range(half, length))
    for mode, (plain, rounded) in streams.items():
        rounding = Rounding(positions, rounded, plain)
        found += checks.same_weights(f"{mode} decoder", results[f"logits, {mode}"], positions, rounding)
    return found


def _encoded(config: ModelConfig, probe: Probe, weights: FileWeights) -> dict[str, tuple[Tensor, Tensor]]:
    """Rows of the embedding as transformers has them, without roundings and with them."""
    found = {}
    if probe.pixels is not None:
        module = load_encoder(config, weights, IMAGE)
        both = (module, with_roundings(module) if weights.rounds_activations else module)
        pixels = torch.from_numpy(probe.pixels)
        for valid in probe.valid:
            found[_crop(valid)] = _pair([crop_features(one, pixels, valid) for one in both])
        ends = [module.global_img_feature_extensor.flatten(), module.sub_img_feature_extensor.flatten()]
        stacked = torch.stack(ends)[None]
        found["vision_separators"] = _pair([project(one, stacked, "img_projection_{}") for one in both])
        found["vision_encoder"] = _pair(
            [
                _whole(crop, ends)
                for crop, ends in zip(found[_crop(probe.valid[0])], found["vision_separators"], strict=True)
            ]
        )
        del module, both
    if probe.frames is not None:
        module = load_encoder(config, weights, SOUND)
        both = (module, with_roundings(module) if weights.rounds_activations else module)
        features = [one.encoder(torch.from_numpy(probe.frames)[None], None) for one in both]
        for mode, name in zip(("speech", "vision"), PROJECTIONS, strict=True):
            if mode in probe.modes:
                rows = [project(one, x, f"{{}}_proj_for_{name}")[0] for one, x in zip(both, features, strict=True)]
                found[f"sound, {mode}"] = _pair(rows)
    return found


def _whole(crop: Tensor, ends: Tensor) -> Tensor:
    """The tokens of a picture that is one crop, from the crop's [1, tokens, D] and the divider and separator."""
    side, width = round(crop.shape[1] ** 0.5), crop.shape[2]
    lines = torch.cat([crop.view(side, side, width), ends[0, 1].expand(side, 1, width)], dim=1).view(1, -1, width)
    return torch.cat([lines, ends[:, :1], lines], dim=1)


def _logits(
    mode: Mode, probe: Probe, checkpoint: CheckpointWeights, weights: FileWeights, kv_dtype: torch.dtype, context: int
) -> tuple[Tensor, Tensor]:
    """Of the second half of the tokens, with the adapter of a mode, without roundings and with them."""
    half, length = len(probe.tokens) // 2, len(probe.tokens)
    adapter = {"vision": ADAPTERS[VISION], "speech": ADAPTERS[AUDIO]}.get(mode)
    adapted = weights if adapter is None else AdaptedWeights(weights, adapter)
    positions = tuple(range(half, length))
    streams = [
        Stream(name, length, positions, context, from_file=True, rounded=name == "rounded")
        for name in ("plain", "rounded")
    ]
    logits = stream_logits(streams, probe.tokens, checkpoint, adapted, kv_dtype)
    return logits["plain"], logits["rounded"]


def _pair(both: list[Tensor]) -> tuple[Tensor, Tensor]:
    plain, rounded = both
    return plain, rounded


def _close(name: str, found: Tensor, plain: Tensor, rounded: Tensor) -> Check:
    bound = allowance(plain.shape[-2]) * pooled_error(rounded, plain) + checks.SUMMATION_ERROR
    return at_most(name, pooled_error(found, plain), bound, "relative", f"{plain.shape[-2]} tokens")


def _crop(valid: tuple[int, int]) -> str:
    return f"crop of {valid[0]} x {valid[1]}"

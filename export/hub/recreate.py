"""The commands that make a file again, from its manifest: every flag that differs from its default."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from checkpoints.source import SMOLLM2
from export.options import ExportOptions

Words = list[str]


def commands(manifest: Mapping[str, Any]) -> list[Words]:
    """What to run, in order, from a checkpoint to the `.pte`; KeyError or TypeError for what is no manifest.

    A calibrated checkpoint that was kept and then exported takes two commands. Folders and adapters are called by
    their names, as the manifest does.
    """
    checkpoint, record = manifest["checkpoint"], manifest.get("calibration")
    options, name = manifest["options"], manifest["file"]["name"]
    out, recipe = ["--out", name], recipe_flags(options["recipe"])
    own = ["python", "-m", "export.pte", *_checkpoint(checkpoint), *option_flags(options, manifest.get("chosen"))]
    if record is None:
        return [[*own, *recipe, *out]]
    levels = [*recipe, *calibration_flags(record)]
    original, revision, adapters = _told(record["checkpoint"])
    if original == checkpoint["name"]:
        return [[*own, *levels, *_adapters(adapters), *out]]
    quantize = ["python", "-m", "export.quantize", "--checkpoint", original, *revision, *_adapters(adapters)]
    if text := checkpoint.get("text_weights"):
        beside = {key: options["recipe"][key] for key in ("lora_bits", "encoder_bits")}
        media = _different(beside, asdict(ExportOptions().recipe))
        return [[*quantize, *levels, "--out", text], [*own, "--text-weights", text, *media, *out]]
    return [[*quantize, *levels, "--out", checkpoint["name"]], [*own, *out]]


def spelled(words: Words) -> str:
    """As it is typed into a shell."""
    return shlex.join(words)


def option_flags(options: Mapping[str, Any], chosen: Mapping[str, Any] | None) -> Words:
    """Of `export.options.ExportOptions`, its recipe left out.

    The ids in a manifest are the file's; `chosen` says which of them were given, which an older manifest does not.
    """
    ids = options if chosen is None else chosen
    given = {key: value for key, value in options.items() if key not in ("recipe", "bos_id", "eos_ids")}
    words = _different(given, asdict(ExportOptions()))
    if ids["bos_id"] is not None:
        words += ["--bos-id", str(ids["bos_id"])]
    if ids["eos_ids"]:
        words += ["--eos-ids", ",".join(map(str, ids["eos_ids"]))]
    return words


def recipe_flags(recipe: Mapping[str, Any]) -> Words:
    """Of `export.quantization.recipe.Recipe`."""
    if not recipe["quantized"]:
        return ["--no-quantize"]
    return _different(recipe, asdict(ExportOptions().recipe))


def calibration_flags(record: Mapping[str, Any]) -> Words:
    """Of `export.calibration.options.Calibration`; texts that are not ours are called by their names."""
    from hashlib import sha256

    from checkpoints.texts import find_texts
    from export.calibration.options import METHODS

    words = ["--calibrate", record["method"]]
    ours = {name: sha256(text.encode()).hexdigest() for name, text in find_texts("calibration", None).items()}
    if record["texts"] != ours:
        words += ["--calibration-text", *record["texts"]]
    if record["sequences"] != METHODS[record["method"]].sequences:
        words += ["--calibration-sequences", str(record["sequences"])]
    return words


def _different(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Words:
    words = []
    for key, value in values.items():
        usual = defaults.get(key)
        if value == usual or (isinstance(value, list) and tuple(value) == usual):
            continue
        words.append(f"--{key.replace('_', '-')}")
        if isinstance(value, list):
            words += map(str, value)
        elif value is not True:
            words.append(str(value))
    return words


def _checkpoint(checkpoint: Mapping[str, Any]) -> Words:
    name = checkpoint["name"]
    if checkpoint["kind"] == "gguf" and name != SMOLLM2:
        name += ".gguf"
    revision = ["--revision", checkpoint["revision"]] if checkpoint["revision"] else []
    modalities = ["--modalities", ",".join(checkpoint["modalities"])] if checkpoint.get("modalities") else []
    merge = ["--merge", checkpoint["merge"]] if checkpoint.get("merge") else []
    return [
        "--checkpoint",
        name,
        *revision,
        *modalities,
        *merge,
        *_adapters([(one["name"], one["scale"]) for one in checkpoint["adapters"]]),
    ]


def _adapters(adapters: list[tuple[str, float]]) -> Words:
    names = [word for name, _ in adapters for word in ("--adapter", name)]
    usual = all(scale == 1 for _, scale in adapters)
    return names + ([] if usual else [word for _, scale in adapters for word in ("--adapter-scale", f"{scale:g}")])


def _told(checkpoint: Mapping[str, Any]) -> tuple[str, Words, list[tuple[str, float]]]:
    """Name, flag of the revision and adapters in what a calibration says of its checkpoint: `str` of its Source."""
    whole, *added = checkpoint["name"].split(" + ")
    name, _, revision = whole.partition("@")
    adapters = [match for one in added if (match := re.fullmatch(r"(\S+) \* (.+)", one))]
    scales = [item["scale"] for item in checkpoint["adapters"]]
    return (
        name,
        ["--revision", revision] if revision else [],
        [(match[2], scale) for match, scale in zip(adapters, scales, strict=True)],
    )

"""The model card of a `.pte`, README.md of its repository: what its manifest, its record and its measurements say.

Nothing stands in it that none of them says, and the same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from checkpoints.errors import BadInput
from export.hub.measured import devices, evaluated, verified
from export.hub.origin import Origin
from export.hub.parcel import KEPT, Item, Parcel
from export.hub.recreate import commands, spelled
from export.hub.tables import megabytes, table
from export.manifest import manifest_path

FILE_KEY = "pocketphi_file"  # in a card's metadata: the file it is about
TAGS = ["executorch", "xnnpack", "pte", "pocketphi"]
PROMPT = "What is the capital of France?"


@dataclass(frozen=True)
class Place:
    """Where the card will stand."""

    repo: str
    revision: str

    @property
    def reference(self) -> str:
        """What our commands call it."""
        return f"hf:{self.repo}" + ("" if self.revision == "main" else f"@{self.revision}")


def make_card(parcel: Parcel, origin: Origin, place: Place, kinds: Mapping[str, int]) -> str:
    """The card's text; `kinds` are bytes of the file by what they are. BadInput where the manifest lacks a fact."""
    try:
        sections = [
            _head(parcel),
            ("Files", _files(parcel.items, parcel)),
            ("Run it", _run(parcel, place)),
            ("How it was made", _made(parcel)),
            ("Size and memory", _sizes(parcel, kinds)),
            ("Is it right?", verified(parcel.manifest.get("verification"), parcel.manifest.get("calibration"))),
            ("How good is it?", evaluated(parcel.evaluation)),
            ("Measured", devices(parcel.results)),
            ("Limits", _limits(parcel.manifest)),
            ("Licence", _licence(origin)),
        ]
        data = _metadata(parcel, origin)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        path = manifest_path(parcel.pte)
        raise BadInput(f"{path} is no manifest of {parcel.pte.name}: {type(problem).__name__} {problem}") from None
    text = "\n\n".join(f"## {name}\n\n{body}" if name else body for name, body in sections if body)
    card = f"---\n{data.to_yaml(line_break=chr(10))}\n---\n\n{text}\n"
    ModelCard(card)  # raises where it would not be read back
    return card


def _metadata(parcel: Parcel, origin: Origin) -> ModelCardData:
    quantized = parcel.manifest["options"]["recipe"]["quantized"]
    more: dict[str, Any] = {FILE_KEY: parcel.pte.name}
    if origin.base_model and quantized:
        more["base_model_relation"] = "quantized"
    return ModelCardData(
        base_model=origin.base_model,
        language=origin.language,
        library_name="executorch",
        license=origin.license,
        license_name=origin.license_name,
        license_link=origin.license_link,
        pipeline_tag=origin.pipeline_tag or "text-generation",
        tags=[*TAGS, *(["8da4w"] if quantized else [])],
        **more,
    )


def _head(parcel: Parcel) -> tuple[str, str]:
    manifest = parcel.manifest
    checkpoint, options = manifest["checkpoint"], manifest["options"]
    revision = f" at commit `{checkpoint['revision']}`" if checkpoint["revision"] else ""
    added = "".join(f", with the adapter `{one['name']}` times {one['scale']:g}" for one in checkpoint["adapters"])
    return "", (
        f"# {parcel.pte.stem}\n\n"
        f"`{checkpoint['name']}`{revision}{added} as a program of ExecuTorch {manifest['packages']['executorch']} "
        f"for phones and computers, computed by XNNPACK. Weights: {manifest['recipe']}. Its context is "
        f"{options['context']} tokens, of which it takes {options['prefill_chunk']} at once."
    )


def _files(items: Sequence[Item], parcel: Parcel) -> str:
    what = {parcel.pte.name: f"the model, sha256 `{parcel.items[0].sha256}`"}
    what |= dict.fromkeys(parcel.companions, "tokenizer and chat template")
    what[manifest_path(parcel.pte).name] = "manifest: inputs with hashes, options, versions, verification"
    what[parcel.pte.with_suffix(".evaluation.json").name] = "what was found of its quality"
    rows = [(f"`{item.path}`", megabytes(item.bytes), what[item.path]) for item in items if item.path in what]
    if kept := [item for item in items if item.path.startswith(f"{KEPT}/")]:
        size = megabytes(sum(item.bytes for item in kept))
        rows.append((f"`{KEPT}/`", size, "the same quantized weights as a checkpoint, for transformers with torchao"))
    return table(["file", "MB", ""], rows)


def _run(parcel: Parcel, place: Place) -> str:
    name, reference = parcel.pte.name, place.reference
    kept = any(item.path.startswith(f"{KEPT}/") for item in parcel.items)
    beside = " ".join([name, manifest_path(parcel.pte).name, *parcel.companions])
    fetch = f"hf download {place.repo} --local-dir model"
    fetch += "" if place.revision == "main" else f" --revision {place.revision}"
    fetch += f' --exclude "{KEPT}/*"' if kept else ""
    lines = [
        "On a computer, in a checkout of Pocketphi:",
        f'    python -m export.generate {reference} "{PROMPT}"\n    python -m export.bench desktop --pte {reference}',
        "On Android, with the app that `android_app/README.md` builds, which also imports the files itself:",
        f"    {fetch}\n    cd model\n    adb shell mkdir -p /data/local/tmp/pocketphi\n"
        f"    adb push {beside} /data/local/tmp/pocketphi/",
        "On an iPhone or iPad, with the app that `ios_app/README.md` builds: **Import** takes these files together.",
        "How fast it is there:",
        f"    python -m export.bench android --pte {reference} --apk app-release.apk\n"
        f"    python -m export.bench ios --pte {reference}",
    ]
    if kept:
        call = f'AutoModelForCausalLM.from_pretrained("{place.repo}", subfolder="{KEPT}"'
        call += ")" if place.revision == "main" else f', revision="{place.revision}")'
        lines += ["The quantized weights in transformers, with torchao:", f"    {call}"]
    return "\n\n".join(lines)


def _made(parcel: Parcel) -> str:
    manifest = parcel.manifest
    packages = ", ".join(f"{name} {version}" for name, version in manifest["packages"].items())
    lines = ["\n".join(f"    {spelled(words)}" for words in commands(manifest))]
    lines.append(
        f"The same input gives the same bytes; the sha256 of every input is in `{manifest_path(parcel.pte).name}`. "
        f"Packages: {packages}."
    )
    if record := manifest.get("calibration"):
        lines.append(
            f"Levels were chosen on text ({record['method']}, {record['sequences']} sequences of "
            f"{record['sequence_tokens']} tokens of {', '.join(record['texts'])}), with {record['device']}: other "
            f"vector instructions may choose a few others."
        )
    return "\n\n".join(lines)


def _sizes(parcel: Parcel, kinds: Mapping[str, int]) -> str:
    manifest, total = parcel.manifest, parcel.items[0].bytes
    rows = [
        (kind, f"{size:,}", f"{100 * size / total:.1f} %")
        for kind, size in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
        if size
    ]
    planned, options = manifest["planned"], manifest["options"]
    return "\n\n".join(
        [
            table(["in the file", "bytes", "share"], [*rows, ("**all**", f"{total:,}", "100.0 %")]),
            f"Planned beside it when it runs: a KV cache of {megabytes(planned['kv_cache_bytes'])} MB "
            f"({options['kv_cache']}) and activations of {megabytes(planned['activation_bytes'])} MB.",
        ]
    )


def _limits(manifest: Mapping[str, Any]) -> str:
    options, verification = manifest["options"], manifest.get("verification") or {}
    release = manifest["packages"]["executorch"]
    limits = [
        f"Prompt and answer together have at most {options['context']} tokens.",
        f"It was exported with ExecuTorch {release}, and an app must be built with a runtime that reads its files.",
    ]
    if (factors := verification.get("rotary_factors")) in ("short", "long"):
        limits.append(f"It has one rotary table, of LongRoPE's {factors} factors, at every length.")
    if not options["speculate"] and not options["full_logits"]:
        limits.append("It gives the logits of one token a call, so guessed tokens cannot be checked.")
    return "\n".join(f"- {limit}" for limit in [*limits, *manifest["notes"]])


def _licence(origin: Origin) -> str:
    if origin.license is None:
        return "That of the base model; nobody said here which."
    name = f"{origin.license} ({origin.license_name})" if origin.license_name else origin.license
    link = f" Its text: {origin.license_link}" if origin.license_link else ""
    return f"That of the base model, `{name}`, {origin.license_source}.{link}"

"""What is sent with a `.pte`, each file read once and found to be what the manifest says."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.errors import BadInput
from checkpoints.files import folder_of, present, sha256
from export.bench.results.result import Document, read_result
from export.evaluation.record import evaluation_path, read_evaluation
from export.manifest import CONFIG_KEYS, Manifest, manifest_path, own_manifest
from export.ptefile.magic import read_head

HELD = 1 << 25  # bytes: a file up to this is sent from memory, as it was when it was checked
KEPT = "quantized"  # the folder of a kept checkpoint in a repository


@dataclass(frozen=True)
class Item:
    """One file of a repository."""

    path: str  # there
    content: Path | bytes
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Parcel:
    """A `.pte` with what goes with it."""

    pte: Path
    manifest: Manifest
    items: tuple[Item, ...]
    evaluation: Mapping[str, Any] | None
    results: tuple[Document, ...]  # of export.bench, not sent: a card shows them
    notes: tuple[str, ...]

    @property
    def companions(self) -> dict[str, str]:
        """sha256 of tokenizer, settings and chat template, by name."""
        return dict(self.manifest["files"])


def gather(pte: Path, quantized: Path | None, bench: Sequence[Path] = (), unverified: bool = False) -> Parcel:
    """Everything to be sent but the card. Raises BadInput where a file is missing, another's, or failed."""
    read_head(pte)
    path = manifest_path(pte)
    manifest = own_manifest(pte)
    if manifest is None:
        how = "is of another file" if path.is_file() else "does not exist"
        raise BadInput(
            f"{path} {how}, and only a file with its manifest beside it is published: export.pte leaves one"
        )
    if not isinstance(manifest.get("files"), dict):
        raise BadInput(f"{path} does not list the tokenizer's files: export {pte.name} again with this version")
    program = _item(pte, pte.name)
    if program.sha256 != (wanted := manifest["file"].get("sha256")):
        raise BadInput(f"{pte} has the sha256 {program.sha256[:12]}…, {path.name} says {str(wanted)[:12]}…")
    _check_verified(pte, manifest, unverified)
    items = [program]
    for name, digest in manifest["files"].items():
        beside = folder_of(pte) / name
        if Path(name).name != name or not present(beside):
            raise BadInput(f"{beside} does not exist, {path.name} lists it beside {pte.name}")
        items.append(found := _item(beside, name))
        if found.sha256 != digest:
            raise BadInput(f"{beside} has the sha256 {found.sha256[:12]}…, {path.name} says {str(digest)[:12]}…")
    items.append(_item(path, path.name))
    evaluation, notes = read_evaluation(pte), []
    if evaluation:
        items.append(_item(evaluation_path(pte), evaluation_path(pte).name))
    elif evaluation_path(pte).is_file():
        notes.append(f"{evaluation_path(pte).name} is of other bytes than {pte.name} has now, and left out")
    results = [_result(pte, program, file) for file in bench] or _results_beside(pte, program, manifest["files"])
    if quantized is not None:
        items += _kept(quantized, manifest)
    return Parcel(pte, manifest, tuple(items), evaluation, tuple(results), tuple(notes))


def card_item(text: str) -> Item:
    """The model card, under the name that the hub shows."""
    return _held("README.md", text.encode())


def _item(source: Path, path: str) -> Item:
    size = source.stat().st_size
    return _held(path, source.read_bytes()) if size <= HELD else Item(path, source, size, sha256(source))


def _held(path: str, data: bytes) -> Item:
    return Item(path, data, len(data), hashlib.sha256(data).hexdigest())


def _check_verified(pte: Path, manifest: Manifest, unverified: bool) -> None:
    verification = manifest.get("verification")
    if unverified or (isinstance(verification, dict) and verification.get("passed") is True):
        return
    how = "was never verified (--no-verify)" if verification is None else "failed its verification"
    raise BadInput(f"{pte} {how}, by {manifest_path(pte).name}: --unverified publishes it nevertheless, and says so")


def _result(pte: Path, program: Item, file: Path) -> Document:
    """A measurement that is this file's: by its sha256, or by its size where a device did not compute one."""
    document = read_result(file)
    model = document["model"]
    if model["sha256"] not in (None, program.sha256) or model["size_bytes"] != program.bytes:
        raise BadInput(
            f"{file} measured another file than {pte}: {model['file']} of {model['size_bytes']} bytes, sha256 "
            f"{str(model['sha256'])[:12]}…, not {program.bytes} bytes, {program.sha256[:12]}…"
        )
    return document


def _results_beside(pte: Path, program: Item, known: Collection[str]) -> list[Document]:
    """Measurements in the file's folder that have its sha256, by their names; not among `known`, large JSON too."""
    found = []
    for file in sorted(folder_of(pte).glob("*.json")):
        if file.name in known:
            continue
        try:
            document = read_result(file)
        except BadInput:  # other JSON
            continue
        if document["model"]["sha256"] == program.sha256:
            found.append(document)
    return found


def _kept(folder: Path, manifest: Manifest) -> list[Item]:
    """A kept checkpoint's files; BadInput unless it has this file's shapes, recipe and calibration."""
    from checkpoints.source import find_source
    from export.quantization.recipe import Recipe
    from export.quantization.saved_reader import Saved, open_quantized, read_record

    if not folder.is_dir():
        raise BadInput(f"--quantized {folder} is not a folder")
    opened = open_quantized(find_source(str(folder)), Recipe())
    if not isinstance(opened, Saved):
        raise BadInput(
            f"--quantized {folder} is not quantized: export.pte --save-quantized and export.quantize make one"
        )
    name = manifest["file"]["name"]
    for key in CONFIG_KEYS:
        if (found := getattr(opened.config, key)) != (wanted := manifest["config"][key]):
            raise BadInput(
                f"--quantized {folder} is not what {name} is of: its {key} is {found}, the file's {wanted}"
            )
    if (found := str(opened.recipe)) != (wanted := manifest["recipe"]):
        raise BadInput(f"--quantized {folder} is not what {name} is of: it is {found}, the file {wanted}")
    if read_record(folder) != manifest.get("calibration"):
        raise BadInput(f"--quantized {folder} is not what {name} is of: its levels were chosen otherwise")
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return [_item(file, f"{KEPT}/{file.name}") for file in files]

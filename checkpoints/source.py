"""Finds the folder of a checkpoint: on this disk, also of a GGUF file, of the small models, or on the hub.

The hub part is `checkpoints.hub`; this module adds the default model and pinned revisions. It does not look inside
what it finds, but for whether a model's adapters lie in folders of their own.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from checkpoints.errors import BadInput
from checkpoints.hub import ask, download, is_id, is_reference, parse_reference

DEFAULT = "microsoft/Phi-4-mini-instruct"
MULTIMODAL = "microsoft/Phi-4-multimodal-instruct"
EMBEDDED = "phi4-tiny"
SMOLLM2 = "smollm2-135m"

PINNED = {
    # main of 2025-12-10, "Update README.md (#43)"; weights and tokenizer are those of the February 2025 release.
    DEFAULT: "cfbefacb99257ffa30c83adab238a50856ac3083",
    # main as many public repositories pin it, some with a note that they found it there in July 2026.
    MULTIMODAL: "93f923e1a7727d1c4f446756212d9d3e8fcc5d81",
}

WAYS_ON = f"pass --checkpoint DIR for a folder you have, or --checkpoint {EMBEDDED} for the small model included"


@dataclass(frozen=True)
class Adapter:
    """A folder of PEFT's with what is to be added to a checkpoint, times `scale`."""

    folder: Path
    scale: float = 1.0


Kind = Literal["hub", "folder", "embedded", "gguf"]


@dataclass(frozen=True)
class Source:
    """Where a checkpoint's files are, what is added to its weights, and what to call it in a manifest."""

    folder: Path
    name: str  # hub id, folder name, a GGUF file's without suffix, "phi4-tiny" or "smollm2-135m"
    revision: str | None  # the commit, for "hub" alone
    kind: Kind
    adapters: tuple[Adapter, ...] = ()
    modalities: tuple[str, ...] | None = None  # what of a multimodal model is read, None: all of it
    own_adapter: str | None = None  # of a multimodal model, merged into its text: "vision" or "speech"
    text_weights: Path | None = None  # of a multimodal model: a folder that has its text model quantized

    @property
    def text_folder(self) -> Path:
        """Where the weights of the text model are, and what says how they were quantized."""
        return self.folder if self.text_weights is None else self.text_weights

    def __str__(self) -> str:
        added = "".join(f" + {adapter.scale:g} * {adapter.folder.resolve().name}" for adapter in self.adapters)
        own = f" + its own {self.own_adapter}" if self.own_adapter else ""
        return self.name + (f"@{self.revision}" if self.revision else "") + own + added


class Given(TypedDict, total=False):
    """What commands have as flags to name a checkpoint's weights, beside --checkpoint."""

    revision: str | None
    adapter: Sequence[str | os.PathLike[str]] | None
    adapter_scale: Sequence[float] | None
    modalities: Sequence[str] | None
    merge: str | None
    text_weights: str | os.PathLike[str] | None


def find_source(checkpoint: str | None, **given: Unpack[Given]) -> Source:
    """`resolve`, with adapters to be merged in order, each times its scale: as many scales as adapters, or none.

    `modalities` and `merge` say what of a multimodal model is read, see `checkpoints.weights.open_checkpoint`;
    `text_weights` is a folder with its text model, quantized.
    """
    folders = [Path(folder) for folder in given.get("adapter") or ()]
    scales = list(given.get("adapter_scale") or [1.0] * len(folders))
    if len(scales) != len(folders):
        raise BadInput(f"--adapter-scale is given {len(scales)} times and --adapter {len(folders)} times")
    if wrong := [scale for scale in scales if not math.isfinite(scale)]:
        raise BadInput(f"--adapter-scale {wrong[0]} is not a finite number")
    adapters = tuple(map(Adapter, folders, scales))
    modalities, weights = given.get("modalities"), given.get("text_weights")
    if weights is not None and (folders or given.get("merge")):
        flag = f"--adapter {folders[0]}" if folders else f"--merge {given['merge']}"
        raise BadInput(f"--text-weights {weights} are quantized already, {flag} needs the original's")
    return replace(
        resolve(checkpoint, given.get("revision")),
        adapters=adapters,
        modalities=None if modalities is None else tuple(modalities),
        own_adapter=given.get("merge"),
        text_weights=None if weights is None else Path(weights),
    )


def resolve(checkpoint: str | None, revision: str | None = None) -> Source:
    """Turn a --checkpoint value into a folder, downloading it from the hub if needed.

    None is Phi-4-mini-instruct at its pinned commit. An existing folder wins over a hub id of the same name. Of a
    GGUF file it is the one that `checkpoints.gguf_folder` makes.
    `revision` is a branch, tag or commit of the hub; other models than the default use main without it. A hub id may
    also be written as hf:USER/NAME[@REVISION][/FOLDER].
    Raises BadInput for a name that is neither, and for a hub that does not answer or does not have it.
    """
    name = DEFAULT if checkpoint is None else checkpoint
    if name == EMBEDDED:
        return _local(Path(__file__).with_name(EMBEDDED), EMBEDDED, revision, "embedded")
    if name == SMOLLM2:
        from checkpoints.gguf_folder import gguf_folder, smollm2_file  # imports torch

        return _local(gguf_folder(smollm2_file()), SMOLLM2, revision, "gguf")
    if os.path.isdir(name):
        return _local(Path(name), Path(name).resolve().name, revision, "folder")
    if os.path.isfile(name) and name.endswith(".gguf"):
        from checkpoints.gguf_folder import gguf_folder

        return _local(gguf_folder(Path(name)), Path(name).stem, revision, "gguf")
    if os.path.exists(name):
        raise BadInput(f"{name} is a file, --checkpoint takes the folder it is in, or a .gguf")
    if is_reference(name):
        return _referred(name, revision)
    if not is_id(name):
        raise BadInput(_neither(name))
    return _from_hub(name, revision or PINNED.get(name, "main"))


def _referred(name: str, revision: str | None) -> Source:
    found = parse_reference(name)
    if found.path and found.path.endswith(".pte"):
        raise BadInput(f"{name} is a .pte, --checkpoint takes the checkpoint that one is made of")
    if revision and found.revision and revision != found.revision:
        raise BadInput(f"{name} names the revision {found.revision}, --revision {revision}")
    wanted = found.revision or revision or PINNED.get(found.repo, "main")
    return _from_hub(found.repo, wanted, found.path and found.path.strip("/"))


def _local(folder: Path, name: str, revision: str | None, kind: Kind) -> Source:
    if revision is not None:
        raise BadInput(f"{name} is on this disk, but the revision {revision} was asked for, as of the hub")
    if not folder.is_dir():
        raise BadInput(f"{folder} is missing from this installation")
    return Source(folder, name, None, kind)


def _from_hub(name: str, revision: str, part: str | None = None) -> Source:
    """The checkpoint at the top of a repository, or in one of its folders."""
    from checkpoints.files import PATTERNS  # imports torch
    from checkpoints.phi4mm_config import FOLDERS

    inside = f"{part}/" if part else ""
    answer = ask(name, revision)
    # Subfolders hold copies of the weights in other formats, and adapters, which the shards may have as well.
    snapshot = download(answer, [inside + pattern for pattern in PATTERNS], [f"{inside}*/*"], WAYS_ON)
    folder = snapshot / inside
    if not folder.is_dir():
        raise BadInput(f"{name}@{revision} has no checkpoint in a folder {part}")
    if _has_adapter_folders(folder):
        download(answer, [f"{inside}{adapter}/adapter_*" for adapter in FOLDERS.values()], [], WAYS_ON)
    # The cache names the folder of a snapshot by its commit.
    return Source(folder, f"hf:{name}/{part}" if part else name, snapshot.name, "hub")


def _has_adapter_folders(folder: Path) -> bool:
    """Whether a model has adapters that lie in folders of their own; what is wrong with its files is told later."""
    from checkpoints.config import read_object  # imports torch
    from checkpoints.phi4mm_config import NATIVE

    try:
        return bool(read_object(folder / "config.json").get("model_type") == NATIVE)
    except BadInput:
        return False


def _neither(name: str) -> str:
    return f"{name!r} is neither an existing folder nor a hub id like {DEFAULT}"

"""What lies beside a `.pte`: which names it takes, whether they are free, and how all of it appears.

A folder may hold several files, and the tokenizer beside them is found by its name. So a second model is refused
where it would replace, or silently use, what belongs to another.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from checkpoints.errors import BadInput
from checkpoints.files import present, publish, sha256, write_whole
from export.engine.tokenizer import COMPANIONS, TOKENIZERS
from export.manifest import Manifest, manifest_path, own_manifest
from export.ptefile.magic import read_head


def check_place(out: Path) -> None:
    """Raise BadInput unless a `.pte` can be written there."""
    folder = out.parent.absolute()
    if out.suffix != ".pte":
        raise BadInput(f"--out {out} does not end in .pte")
    if out.is_dir():
        raise BadInput(f"--out {out} is a folder")
    if not folder.is_dir():
        raise BadInput(f"--out {out}: the folder {folder} does not exist")
    try:  # os.access says yes to root on a read-only disk
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        raise BadInput(f"--out {out}: the folder {folder} cannot be written: {problem.strerror}") from None
    if out.exists():
        read_head(out)  # a file of another kind is not replaced
    path = manifest_path(out)
    if path.exists() and own_manifest(out) is None:
        raise BadInput(f"--out {out}: its manifest would replace {path}, which is none of it")


class Companions:
    """The files that go beside `out`: a checkpoint's tokenizer, its settings and its chat template.

    Raises BadInput where a name is taken by another model's.
    """

    def __init__(self, out: Path, tokenizer: Path) -> None:
        self.out, self.tokenizer = out, out.parent / tokenizer.name
        sources = [tokenizer, *(tokenizer.parent / name for name in COMPANIONS)]
        self.sources = {path.name: path for path in sources if present(path)}
        self.sha256 = {name: sha256(path) for name, path in self.sources.items()}
        mine = (own_manifest(out) or {}).get("files", {})
        others = [
            manifest["files"]
            for path in out.parent.glob("*.pte")
            if path.name != out.name and "files" in (manifest := own_manifest(path) or {})
        ]
        for name in (*TOKENIZERS, *COMPANIONS):
            there = out.parent / name
            found, ours = sha256(there) if there.is_file() else None, self.sha256.get(name)
            if any(other.get(name) != ours for other in others) or found not in (None, ours, mine.get(name)):
                raise BadInput(
                    f"--out {out}: {there} is or would be another model's, and the phone finds it by its name: give "
                    f"each model a folder of its own"
                )
        self.stale = [name for name in mine if name not in self.sources]


def publish_all(partial: Path, companions: Companions, manifest: Manifest) -> Path:
    """Put what goes beside, the manifest and, last, the file under their names; the manifest's path."""
    out = companions.out
    for name in companions.stale:
        (out.parent / name).unlink(missing_ok=True)
    for name, source in companions.sources.items():
        target = out.parent / name
        if not (target.exists() and target.samefile(source)):
            write_whole(target, source.read_bytes())
    manifest["files"] = companions.sha256
    write_whole(manifest_path(out), json.dumps(manifest, indent=2).encode() + b"\n")
    publish(partial, out)
    return manifest_path(out)

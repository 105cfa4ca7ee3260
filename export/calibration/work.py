"""A calibration on the disk while it is made: a file for each finished layer, so that a stopped one can go on.

The folder lies beside the result and stays when the work is stopped; it is begun anew where `plan.json` tells that it
was made from something else.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.files import aside, check_room, publish, tensor_bytes, write_json
from checkpoints.roles import EMBEDDING
from checkpoints.safetensors_io import make_header, read_header
from checkpoints.weights import Checkpoint
from export.quantization.rounding import CHUNK_ELEMENTS, Quantizing, Rounded

PLAN = "plan.json"
LEVELS, SCALES = ".levels", ".scales"  # beside the name of a weight


def work_folder(out: Path) -> Path:
    """Where the work for `out` lies."""
    return out.resolve().parent / f".{out.name}.calibration"


class Work:
    """The folder of one calibration; `plan` is everything that decides its bytes."""

    def __init__(self, folder: Path, plan: dict[str, Any], needed: int) -> None:
        self.folder = folder
        try:
            same = json.loads((folder / PLAN).read_text()) == plan
        except (OSError, ValueError):
            same = False
        if not same:
            check_room(folder, needed)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            write_json(folder / PLAN, plan)
        for left in folder.glob(".*.partial"):
            left.unlink()

    def layers_done(self) -> int:
        """Layers whose results, and the hidden states after them, are there."""
        after = [int(path.stem.removeprefix("hidden-")) for path in self.folder.glob("hidden-*.safetensors")]
        return max(after, default=0)

    def save_layer(self, number: int, weights: dict[str, Rounded | Tensor], hidden: Tensor) -> None:
        """Results of layer `number`, then the hidden states that the next one takes, in the place of those before."""
        self.save(f"layer-{number:05}", weights)
        self.save(f"hidden-{number + 1:05}", {"hidden": hidden})
        (self.folder / f"hidden-{number:05}.safetensors").unlink(missing_ok=True)

    def hidden(self, layers: int) -> Tensor:
        """The hidden states after so many layers, float32 [N, S, D], mapped."""
        return self._open([self.folder / f"hidden-{layers:05}.safetensors"]).tensor("hidden")

    def save(self, name: str, weights: dict[str, Rounded | Tensor]) -> None:
        """One file, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        for key, value in weights.items():
            if isinstance(value, Rounded):
                tensors |= {key + LEVELS: value.levels, key + SCALES: value.scales}
            else:
                tensors[key] = value
        tensors = {key: tensor.cpu() for key, tensor in tensors.items()}
        ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))  # keeps each aligned
        path = self.folder / f"{name}.safetensors"
        with aside(path) as partial:
            with partial.open("wb") as file:
                file.write(make_header(ordered, {})[0])
                for tensor in ordered.values():
                    file.write(tensor_bytes(tensor))
            publish(partial, path)

    def remembered(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` returned, as JSON has it, when this was first asked for."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            made = make()
            with aside(path) as partial:
                write_json(partial, made)
                publish(partial, path)
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def has(self, name: str) -> bool:
        return (self.folder / f"{name}.safetensors").exists()

    def weights(self) -> Checkpoint:
        """All that was saved of weights."""
        return self._open(sorted(p for p in self.folder.glob("*.safetensors") if not p.name.startswith("hidden")))

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def _open(self, files: list[Path]) -> Checkpoint:
        entries = {name: (entry,) for file in files for name, entry in read_header(file)[0].items()}
        return Checkpoint(self.folder, None, files, entries)  # type: ignore[arg-type]  # no model's own


class Calibrated:
    """Finished work as a `QuantizedSource`; the embedding is rounded to nearest, and read from the checkpoint."""

    def __init__(self, work: Work, quantizing: Quantizing) -> None:
        self._weights, self._quantizing = work.weights(), quantizing
        self.config, self.recipe = quantizing.config, quantizing.recipe
        self.notes, self.files = quantizing.notes, quantizing.files

    def rows(self, name: str, start: int, stop: int) -> Iterator[Rounded | Tensor]:
        if name == EMBEDDING:
            yield from self._quantizing.rows(name, start, stop)
            return
        if name in self._weights.names():  # a norm
            yield self._weights.rows(name, start, stop)
            return
        columns = self._weights.shape(name + LEVELS)[1]
        storage = self.recipe.storage(name, columns)
        step = max(1, CHUNK_ELEMENTS // columns)
        for at in range(start, stop, step):
            levels, scales = (self._weights.rows(name + p, at, min(at + step, stop)) for p in (LEVELS, SCALES))
            yield Rounded(levels, scales, storage)
        for part in (LEVELS, SCALES):
            self._weights.release(name + part)


def first_hidden(quantizing: Quantizing, ids: Tensor) -> Tensor:
    """Rows of the rounded embedding for ids [N, S]: float32 [N, S, D]."""
    found: dict[int, Tensor] = {}
    for token in ids.flatten().tolist():
        if token not in found:
            (row,) = quantizing.rows(EMBEDDING, token, token + 1)
            found[token] = row.dequantize()[0] if isinstance(row, Rounded) else row[0]
    return torch.stack([found[token] for token in ids.flatten().tolist()]).view(*ids.shape, -1)

"""Damages a checkpoint in hundreds of ways and exports each: `python -m tests.fuzz --mutations 300`.

Every export must end in one sentence (BadInput) or in a file; never in another exception, and a refused one leaves
nothing. The graph is not built, as it depends on config.json alone and takes seconds; weights are streamed for real.
"""

import argparse
import contextlib
import io
import json
import random
import shutil
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table

from checkpoints.errors import BadInput
from checkpoints.source import resolve
from export import pipeline
from export.program import weight_writer as weights
from export.pte import export_pte
from export.subprocess_call import Job

VALUES: list[Any] = [
    None, "", "x", -1, 0, 1, 3, 2**31, 2**63, 1e308, float("nan"), 0.5, True, [], [1], {}, {"type": "yarn"}, "é" * 99,
]  # fmt: skip


def _edit_json(rng: random.Random, path: Path) -> str:
    """Change one value somewhere in a JSON file."""
    document = json.loads(path.read_text())
    at, parent, key = "", document, None
    while isinstance(parent, (dict, list)) and parent:
        key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
        at += f".{key}"
        if not isinstance(parent[key], (dict, list)) or not parent[key] or rng.random() < 0.3:
            break
        parent = parent[key]
    kind = rng.choice(["delete", "value", "off by one", "extra"])
    if kind == "delete" or not isinstance(parent, (dict, list)):
        del parent[key]
    elif kind == "off by one" and isinstance(parent[key], (int, float)):
        parent[key] += rng.choice([-1, 1])
    elif kind == "extra" and isinstance(parent, dict):
        parent[rng.choice(["num_experts", "attention_bias", "lora_r", "head_dim", "quantization_config", "z"])] = (
            rng.choice(VALUES)
        )
    else:
        parent[key] = rng.choice(VALUES)
    path.write_text(json.dumps(document))
    return f"{path.name}: {kind}"


def _cut(rng: random.Random, path: Path) -> str:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(rng.choice([0, 1, 7, 8, 9, size // 2, size - 1, rng.randrange(size)]))
    return f"{path.name}: cut short"


def _flip(rng: random.Random, path: Path, within: int | None = None) -> str:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 3, 20])):
        data[rng.randrange(min(len(data), within or len(data)))] = rng.randrange(256)
    path.write_bytes(data)
    return f"{path.name}: bytes changed"


def _append(rng: random.Random, path: Path) -> str:
    with path.open("ab") as file:
        file.write(rng.randbytes(rng.choice([1, 8, 4096])))
    return f"{path.name}: bytes added"


def _remove(rng: random.Random, path: Path) -> str:
    path.unlink()
    if rng.random() < 0.5:
        path.mkdir()
        return f"{path.name}: a folder instead"
    return f"{path.name}: missing"


def _header(rng: random.Random, path: Path) -> str:
    """Change the header of a safetensors file consistently with its length."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    name = rng.choice([name for name in header if name != "__metadata__"])
    kind = rng.choice(["drop", "rename", "dtype", "shape", "offsets", "swap", "bias", "layer"])
    if kind == "drop":
        del header[name]
    elif kind == "rename":
        header[rng.choice(["x", name + "s", name.replace("layers.0", "layers.9")])] = header.pop(name)
    elif kind == "dtype":
        header[name]["dtype"] = rng.choice(["F32", "I8", "F16", "BF17", 3])
    elif kind == "shape":
        header[name]["shape"] = rng.choice([header[name]["shape"][::-1], [0], [-1, 4], [2**40, 2**40], "x"])
    elif kind == "offsets":
        header[name]["data_offsets"][rng.randrange(2)] += rng.choice([-2, 2, 2**40, -(2**40)])
    elif kind == "swap":
        other = rng.choice([n for n in header if n != "__metadata__"])
        header[name], header[other] = header[other], header[name]
    else:
        extra = "model.layers.0.mlp.down_proj.bias" if kind == "bias" else "model.layers.77.mlp.down_proj.weight"
        header[extra] = header[name]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return f"{path.name}: header {kind}"


def _not_finite(rng: random.Random, path: Path) -> str:
    """Put a bfloat16 NaN or Inf somewhere into the weights."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        count = (path.stat().st_size - 8 - length) // 2
        file.seek(8 + length + 2 * rng.randrange(count))
        file.write(rng.choice([b"\xc0\x7f", b"\x80\x7f", b"\x80\xff"]))
    return f"{path.name}: NaN or Inf"


def mutate(rng: random.Random, folder: Path) -> str:
    """Damage one file of the folder in one way; what was done."""
    weights = folder / "model.safetensors"
    texts = [folder / name for name in ("config.json", "generation_config.json", "tokenizer.json")]
    choices: list[Callable[[], str]] = [
        *[lambda: _edit_json(rng, folder / "config.json")] * 8,
        lambda: _edit_json(rng, folder / "generation_config.json"),
        lambda: _edit_json(rng, folder / "tokenizer_config.json"),
        *[lambda: _edit_json(rng, folder / "tokenizer.json")] * 2,
        lambda: _cut(rng, rng.choice([weights, *texts])),
        lambda: _flip(rng, rng.choice(texts)),
        lambda: _append(rng, rng.choice([weights, *texts])),
        lambda: _remove(rng, rng.choice([weights, *texts])),
        *[lambda: _header(rng, weights)] * 4,
        lambda: _flip(rng, weights, within=rng.choice([8, 2000])),
        lambda: _not_finite(rng, weights),
    ]
    return rng.choice(choices)()


class Here(nullcontext[Any]):
    """`Pool` in this process, which spares the imports of others."""

    seconds = 0.0

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__(self)

    def start(self, jobs: Sequence[tuple[str, Job]], told: object = None) -> "Here":
        weights._open.cache_clear()  # the folder's name stays, its files do not
        self.jobs = jobs
        return self

    def join(self) -> dict[str, Any]:
        return {name: job() for name, job in self.jobs}


@contextlib.contextmanager
def without_graph() -> Iterator[None]:
    """Exports read, check and write all weights, and make no program around them."""
    with (
        mock.patch.object(pipeline, "Pool", Here),
        mock.patch("export.program.trace.build_graph", lambda *_: SimpleNamespace(planned_bytes=0)),
        mock.patch("export.program.assemble.write_program", lambda *_: None),
    ):
        yield


def fuzz(mutations: int, seed: int = 0) -> tuple[Counter[tuple[str, str]], list[str]]:
    """(kind of damage, outcome) -> count, and what went wrong."""
    rng = random.Random(seed)
    counts: Counter[tuple[str, str]] = Counter()
    wrong = []
    source = resolve("phi4-tiny").folder
    with tempfile.TemporaryDirectory() as place, without_graph():
        for number in range(mutations):
            folder, out = Path(place, "checkpoint"), Path(place, "out")
            shutil.copytree(source, folder)
            out.mkdir()
            damage = mutate(rng, folder)
            began = time.monotonic()
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    export_pte(str(folder), out=out / "f.pte", context=64, prefill_chunk=32, verify=False)
                outcome = "exported"
            except BadInput as problem:
                outcome = "refused"
                if "\n" in str(problem) or len(str(problem)) > 600:
                    wrong.append(f"{number} {damage}: not one sentence: {problem}")
                if list(out.iterdir()):
                    wrong.append(f"{number} {damage}: refused, but left {[path.name for path in out.iterdir()]}")
            except BaseException as problem:
                if isinstance(problem, KeyboardInterrupt):
                    raise
                outcome = "crashed"
                wrong.append(f"{number} {damage}: {type(problem).__name__}: {problem}")
            if time.monotonic() - began > 60:
                wrong.append(f"{number} {damage}: took {time.monotonic() - began:.0f} s")
            counts[damage, outcome] += 1
            shutil.rmtree(folder)
            shutil.rmtree(out)
    return counts, wrong


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n\n")[0])
    parser.add_argument("--mutations", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(argv)
    counts, wrong = fuzz(flags.mutations, flags.seed)
    table = Table("damage", "refused", "exported", "crashed")
    for damage in sorted({damage for damage, _ in counts}):
        table.add_row(damage, *(str(counts[damage, outcome] or "") for outcome in ("refused", "exported", "crashed")))
    outcomes = [
        sum(n for (_, o), n in counts.items() if o == outcome) for outcome in ("refused", "exported", "crashed")
    ]
    table.add_row(f"all {flags.mutations}", *map(str, outcomes), style="bold")
    Console().print(table)
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Plans against what they foretell: files and their manifests, memory of processes, and the README's full size."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from checkpoints.config import read_config
from checkpoints.errors import BadInput
from checkpoints.published import published_config
from checkpoints.source import resolve
from checkpoints.synthesize import synthesize
from export.manifest import Manifest
from export.options import ExportOptions, from_flags
from export.planning.activations import activation_bytes
from export.planning.fit import fits
from export.planning.needs import Needs
from export.planning.phones import PHONES, classes, find_phone, phone_with
from export.pte import export_pte

RECIPES: dict[str, dict[str, Any]] = {
    "plain": {"context": 1024, "prefill_chunk": 32},
    "other": {
        "context": 512,
        "prefill_chunk": 64,
        "group_size": 64,
        "head_bits": 8,
        "embedding_bits": 4,
        "kv_cache": "fp32",
        "speculate": 0,
    },
    "float32": {"context": 256, "prefill_chunk": 32, "quantize": False, "full_logits": True},
}
# Of one process: how much private memory a load and some tokens add, by our engine or by upstream's runtime.
MEASURE = """
import json, sys
from pathlib import Path
from benchmarks import engines, measure
from export.engine.memory import trim
engine, file, packed, *marks = sys.argv[1:]
engines.prepare(engine)
trim()
base, at, found = measure.anonymous_bytes(), 0, []
loaded = engines.load(engine, Path(file), Path(packed), 0)
for mark in map(int, marks):
    while at < mark:
        fed = min(loaded.chunk, mark - at)
        loaded.feed([1 + (at + i) % 100 for i in range(fed)], at)
        at += fed
    found.append(measure.anonymous_bytes() - base)
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Made:
    path: Path
    manifest: Manifest
    needs: Needs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """phi4-tiny exported by each recipe, and what was planned for it."""
    config, found = read_config(resolve("phi4-tiny").folder), {}
    for name, flags in RECIPES.items():
        out = tmp_path_factory.mktemp(name) / "tiny.pte"
        exported = export_pte("phi4-tiny", out=out, verify=False, **flags)
        found[name] = Made(out, exported.manifest, Needs(config, from_flags(**flags)))
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_a_plan_is_the_file(made: dict[str, Made], name: str) -> None:
    one = made[name]
    assert one.needs.file_bytes == one.path.stat().st_size
    assert one.needs.kv_bytes == one.manifest["planned"]["kv_cache_bytes"]
    assert one.needs.activation_bytes == one.manifest["planned"]["activation_bytes"]


@pytest.mark.parametrize(
    ("like", "flags"),
    [
        ("phi4-mini", {}),
        ("phi4-mini", {"prefill_chunk": 16, "kv_cache": "fp32"}),
        ("phi3-mini-4k", {"context": 2047, "speculate": 0}),
    ],
)
def test_activations_are_what_executorch_plans(like: str, flags: dict[str, Any]) -> None:
    from export.program.trace import build_graph

    config, options = published_config(like), from_flags(**flags, bos_id=1, eos_ids=(1,))
    planned = build_graph(config, options).planned_bytes - Needs(config, options).kv_bytes
    assert activation_bytes(config, options) == planned


def measured(engine: str, file: Path, folder: Path, *marks: int) -> list[int]:
    """Private bytes after so many tokens."""
    command = [sys.executable, "-c", MEASURE, engine, str(file), str(folder / "packed"), *map(str, marks)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two wide layers, whose memory is more than what an allocator makes of it; packed by our engine."""
    folder = tmp_path_factory.mktemp("wide")
    checkpoint = synthesize(folder / "checkpoint", layers=2, hidden=1024, intermediate=4096, heads=8, vocab=8192)
    out = folder / "wide.pte"
    exported = export_pte(str(checkpoint), out=out, context=2048, verify=False)
    measured("ours", out, folder, 1)
    return Made(out, exported.manifest, Needs(read_config(checkpoint), from_flags(context=2048)))


def test_our_engine_takes_what_is_planned(wide: Made) -> None:
    marks = (256, 2000)
    for tokens, found in zip(marks, measured("ours", wide.path, wide.path.parent, *marks), strict=True):
        assert wide.needs.ours(tokens) == pytest.approx(found, rel=0.1), tokens


def test_upstreams_runner_takes_what_is_planned(wide: Made) -> None:
    marks = (1, 256)
    for tokens, found in zip(marks, measured("wheel", wide.path, wide.path.parent, *marks), strict=True):
        assert wide.needs.stock(tokens) == pytest.approx(found, rel=0.1), tokens


def test_packed_weights_are_as_long_as_planned(wide: Made) -> None:
    (file,) = (wide.path.parent / "packed").glob("*.packed")
    linears = 7 * 2 + 1
    assert 0 <= file.stat().st_size - wide.needs.packed_bytes < linears * 2 * 4096 + 4096  # each begins on a page


def test_full_size_is_as_the_readme_has_it() -> None:
    """Figures that were measured at full size: bytes to the last, memory within 3 % where there is much of it."""
    needs = Needs(published_config(), ExportOptions())
    assert needs.file_bytes == 2_776_283_632
    assert needs.kv_bytes == pytest.approx(536.9e6, rel=1e-3)
    assert needs.activation_bytes == pytest.approx(20.0e6, rel=5e-3)
    for tokens, megabytes in ((640, 129), (2000, 307), (3000, 439)):
        assert needs.ours(tokens) == pytest.approx(megabytes * 1e6, rel=0.03), tokens
    for tokens, megabytes in ((1, 2726), (200, 2753), (2000, 2772)):
        assert needs.stock(tokens) == pytest.approx(megabytes * 1e6, rel=0.02), tokens


def test_whether_it_fits() -> None:
    config, options = published_config(), ExportOptions()
    twelve, fifteen = find_phone("iphone 12"), find_phone("iPhone 15 Pro")
    yes, no = fits(config, options, fifteen), fits(config, options, twelve, engine="stock")
    assert yes.fits and yes.headroom_bytes == fifteen.limit_bytes - yes.private_bytes
    assert not no.fits and no.reason == (
        "upstream's runner takes 2.74 GB at 4096 tokens, iPhone 12 lets an app have 2.40 GB"
    )
    mapped = fits(config, options, twelve)  # within the limit, but its weights would not stay in memory
    assert not mapped.fits and mapped.headroom_bytes > 0 and "maps 2.17 GB" in mapped.reason
    limit = Needs(config, options).ours(640)
    assert fits(config, options, phone_with(f"{limit}B"), used=640).fits
    assert not fits(config, options, phone_with(f"{limit - 1}B"), used=640).fits


def test_phones() -> None:
    assert len({phone.name for phone in PHONES}) == len(PHONES)
    assert all(phone.source and phone.limit_bytes < (phone.ram_bytes or 0) for phone in PHONES)
    assert [phone.name for phone in classes()][:2] == ["iPhone 12", "iPhone 12 Pro"]
    with pytest.raises(BadInput, match="'iPhone 15 Por' is not known, the nearest are iPhone 15 Pro"):
        find_phone("iPhone 15 Por")
    for wrong in ("", "GB", "0GB", "4 Go", "-1GB"):
        with pytest.raises(BadInput, match="is no size such as 4GB"):
            phone_with(wrong)

"""Fixtures shared by the tests; each test module says what it checks."""

import shutil
from pathlib import Path

import pytest

from checkpoints.synthesize import synthesize


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights like Phi-4-mini: 2 layers of 64, 512 tokens, 3 shards; not to be written to."""
    out = tmp_path_factory.mktemp("tiny") / "checkpoint"
    return synthesize(out, layers=2, hidden=64, intermediate=96, heads=4, vocab=512, max_shard_gb=1e-4)


@pytest.fixture
def tiny(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_folder` to damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def tiny_pte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """phi4-tiny exported with 256 tokens of context, 32 at once, tokenizer and manifest beside; not to be changed."""
    from export.pte import export_pte

    out = tmp_path_factory.mktemp("tiny_pte") / "tiny.pte"
    return export_pte("phi4-tiny", out=out, context=256, prefill_chunk=32, verify=False).path


@pytest.fixture(scope="session")
def multimodal_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights like Phi-4-multimodal, in transformers' layout; not to be written to."""
    sizes = {"layers": 2, "vision_layers": 3, "audio_layers": 2, "scale": 8, "hidden": 384, "intermediate": 768}
    heads = {"heads": 6, "kv_heads": 2, "vocab": 700}
    out = tmp_path_factory.mktemp("multimodal") / "checkpoint"
    return synthesize(out, "phi4-multimodal", **sizes, **heads, layout="native")


@pytest.fixture(scope="session")
def multimodal_pte(multimodal_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`multimodal_folder` in float32 with 4096 tokens of context; not to be changed."""
    from export.pte import export_pte

    out, source = tmp_path_factory.mktemp("multimodal_pte") / "multimodal.pte", str(multimodal_folder)
    return export_pte(source, out=out, quantize=False, kv_cache="fp32", context=4096, verify=False).path

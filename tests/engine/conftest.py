"""Models and engines for the tests of the C++ engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from export.engine.native import NativeEngine, Packing
from export.engine.session import Session
from export.pte import export_pte
from tests.engine.native import PROMPT, greedy, load_and_answer, need_compiler


@pytest.fixture(scope="session")
def compiler() -> None:
    need_compiler()


@pytest.fixture(scope="session")
def expected(tiny_pte: Path) -> list[int]:
    return greedy(Session(tiny_pte), PROMPT, 32)


@pytest.fixture(scope="session")
def other_pte(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, other shapes, and a context that plans more memory than all else takes."""
    out = tmp_path_factory.mktemp("other") / "other.pte"
    return export_pte(tiny_folder, out=out, context=1 << 17, prefill_chunk=16, verify=False).path


@pytest.fixture(scope="session")
def packed(compiler: None, tiny_pte: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packed weights of tiny_pte; not to be changed."""
    folder = tmp_path_factory.mktemp("packed") / "cache"
    assert load_and_answer(tiny_pte, folder)[0].packing == Packing.PACKED
    return folder


@pytest.fixture
def engine(compiler: None) -> Iterator[NativeEngine]:
    with NativeEngine() as engine:
        yield engine

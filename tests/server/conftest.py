"""For the tests of the server: hypothesis without a folder of its own, and phi4-tiny served."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from export.pte import export_pte
from tests.server.running import Server, serving

settings.register_profile("server", database=None, deadline=None)
settings.load_profile("server")


@pytest.fixture(scope="session")
def served_pte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """phi4-tiny with room for tools in its prompt: a context of 512, 32 at once."""
    out = tmp_path_factory.mktemp("served") / "tiny.pte"
    return export_pte("phi4-tiny", out=out, context=512, prefill_chunk=32, verify=False).path


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the packed weights of all servers."""
    return tmp_path_factory.mktemp("packed") / "cache"


@pytest.fixture(scope="module")
def server(served_pte: Path, packed: Path) -> Iterator[Server]:
    """tiny.pte with two conversations, as model `tiny`."""
    with serving(served_pte, "--parallel", "2", "--packed", packed) as found:
        yield found

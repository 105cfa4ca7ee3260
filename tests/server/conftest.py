"""For the tests of the server: hypothesis without a folder of its own, and phi4-tiny served."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.server.running import Server, serving

settings.register_profile("server", database=None, deadline=None)
settings.load_profile("server")


@pytest.fixture(scope="module")
def server(tiny_pte: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """tiny.pte with two conversations, as model `tiny`."""
    packed = tmp_path_factory.mktemp("packed") / "cache"
    with serving(tiny_pte, "--parallel", "2", "--packed", packed) as found:
        yield found

"""For the tests of the server: hypothesis without a folder of its own, and phi4-tiny served."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from checkpoints.synthesize import synthesize
from export.pte import export_pte
from tests.network import unchanged
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


@pytest.fixture(scope="session")
def media_pte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Phi-4-multimodal of noise, with a template that knows tools."""
    base = tmp_path_factory.mktemp("media")
    sizes = {"layers": 2, "vision_layers": 2, "audio_layers": 2, "scale": 8, "hidden": 384, "heads": 6, "kv_heads": 2}
    folder = synthesize(base / "noise", "phi4-multimodal", **sizes, intermediate=768, vocab=700)  # type: ignore[arg-type]
    words = json.loads((folder / "tokenizer_config.json").read_text())
    words["chat_template"] = "{% if tools %}{{ tools | tojson }}{% endif %}" + words["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    return export_pte(str(folder), out=base / "noise.pte", context=4096, verify=False).path


@pytest.fixture(scope="session")
def media_server(media_pte: Path, packed: Path) -> Iterator[Server]:
    """noise.pte with two conversations and the page, as model `noise`."""
    with serving(media_pte, "--parallel", "2", "--packed", packed, "--ui") as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, with a microphone that beeps each second; for tests that import `tests.server.browsing`."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as started:
        found = started.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        yield found
        found.close()


@pytest.fixture
def same_network() -> Iterator[None]:
    with unchanged():
        yield

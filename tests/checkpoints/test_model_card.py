"""What a checkpoint's card says, read as huggingface_hub writes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCardData

from checkpoints.gguf_model import gguf_card
from checkpoints.model_card import read_card
from checkpoints.source import resolve


def test_the_embedded_model_says_its_licence() -> None:
    found = read_card(resolve("phi4-tiny").folder)
    assert found == {"license": "mit", "language": "en", "pipeline_tag": "text-generation"}


def test_words_and_lists_of_words(tmp_path: Path) -> None:
    data = ModelCardData(license="mit", language=["en", "de"], base_model="a/b", tags=["x"], license_name=None)
    (tmp_path / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n# x\n")
    assert read_card(tmp_path) == {"license": "mit", "language": ["en", "de"], "base_model": "a/b"}


@pytest.mark.parametrize(
    "text", [None, b"", b"# x", b"---\nlicense: [\n---\n", b"---\nlicense: 3\n---\n", b"\xff\xfe"]
)
def test_nothing_to_be_read(text: bytes | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "README.md").write_bytes(text)
    assert read_card(tmp_path) == {}


def test_a_gguf_files_metadata(tmp_path: Path) -> None:
    metadata = {"general.license": "apache-2.0", "general.languages": ["en"], "general.license.link": 'a "b": c'}
    (tmp_path / "README.md").write_text(gguf_card(metadata))
    found = {"license": "apache-2.0", "language": ["en"], "license_link": 'a "b": c'}
    assert read_card(tmp_path) == found
    (tmp_path / "README.md").write_text(gguf_card({}))
    assert read_card(tmp_path) == {}

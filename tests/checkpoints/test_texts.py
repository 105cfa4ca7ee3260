"""The texts: small, of several kinds, with nothing that is in both uses; a user's own in their place."""

from pathlib import Path

import pytest

from checkpoints import texts
from checkpoints.errors import BadInput
from checkpoints.texts import find_texts


def test_kinds_are_the_same_and_nothing_is_in_both() -> None:
    calibration, evaluation = find_texts("calibration"), find_texts("evaluation")
    assert calibration.keys() == evaluation.keys() and len(evaluation) >= 4
    lines = [
        {line.strip() for text in found.values() for line in text.splitlines()} for found in (calibration, evaluation)
    ]
    assert not [line for line in lines[0] & lines[1] if len(line) > 60]  # shorter ones are imports and headings


def test_size_and_source() -> None:
    folder = Path(texts.__file__).parent
    files = sorted(folder.glob("*/*.txt"))
    assert sum(file.stat().st_size for file in files) <= 200_000
    readme = (folder / "README.md").read_text()
    assert all(f"`{file.stem}`" in readme for file in files)


def test_own_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Zürich\n", encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"Z\xfcrich\n")
    assert find_texts("evaluation", [tmp_path / "a.txt"]) == {"a.txt": "Zürich\n"}
    for files, sentence in (
        (["b.txt"], "b.txt is not text in UTF-8"),
        (["c.txt"], "c.txt cannot be read: No such file"),
        (["a.txt", "a.txt"], "a.txt has the name of another text"),
    ):
        with pytest.raises(BadInput, match=sentence):
            find_texts("calibration", [tmp_path / file for file in files])

"""Packed weights between starts: whatever became of them, the engine answers as without."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from export.engine.native import Loaded, NativeEngine, Packing, _library
from export.engine.session import Session
from tests.engine.native import GREEDY, PROMPT, flip, greedy, load_and_answer, only, pool

NOBODY = 65534

pytestmark = pytest.mark.usefixtures("compiler")


def flip_in_secret(path: Path) -> None:
    """As the file was, by size and by the times a program can set."""
    before = path.stat()
    flip(path, before.st_size // 2, 4096)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def of_another_model(path: Path) -> None:
    """The file and its check fit each other, but not the name."""
    check = path.with_suffix(".check")
    check.write_text(check.read_text().replace(path.name[:16], "0123456789abcdef"))


def lose_check(path: Path) -> None:
    path.with_suffix(".check").unlink()


def of_another_version(path: Path) -> None:
    for file in (path, path.with_suffix(".check")):
        file.rename(file.with_name(file.name.replace("-1.5.1-", "-1.4.0-")))


def left_partial(path: Path) -> None:
    lose_check(path)
    path.rename(path.with_name(path.name + ".partial"))


FAULT_NAMES = [
    "flipped",
    "secret",
    "cut",
    "foreign",
    "check",
    "digest",
    "gone",
    "unchecked",
    "renamed",
    "stale",
    "partial",
]
FAULTS: list[Callable[[Path], object]] = [
    lambda path: flip(path, path.stat().st_size // 2, 200_000),
    flip_in_secret,
    lambda path: os.truncate(path, path.stat().st_size // 2),
    lambda path: path.write_bytes(b"of another program" * 100),
    lambda path: path.with_suffix(".check").write_text("nonsense"),
    lambda path: flip(path.with_suffix(".check"), 10),
    Path.unlink,
    lose_check,
    of_another_model,
    of_another_version,
    left_partial,
]


@pytest.mark.parametrize("fault", FAULTS, ids=FAULT_NAMES)
def test_a_faulty_packed_file_is_packed_again(
    fault: Callable[[Path], object], tiny_pte: Path, packed: Path, expected: list[int], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(packed, tmp_path / "cache"))
    sound = only(folder, ".packed").read_bytes()
    assert load_and_answer(tiny_pte, folder)[0].packing == Packing.REUSED  # the check is of this copy's times now
    fault(only(folder, ".packed"))
    (folder / "mine.txt").write_text("not the engine's")
    loaded, found = load_and_answer(tiny_pte, folder)
    assert (loaded.packing, found) == (Packing.PACKED, expected)
    assert only(folder, ".packed").stat().st_size == len(sound)
    assert sorted(path.suffix for path in folder.iterdir()) == [".check", ".packed", ".txt"]
    assert load_and_answer(tiny_pte, folder)[0].packing == Packing.REUSED


def test_a_copied_packed_file_is_read_once_and_used(tiny_pte: Path, packed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(packed, tmp_path / "cache"))
    os.utime(only(folder, ".packed"))
    before = only(folder, ".check").read_text()
    assert load_and_answer(tiny_pte, folder)[0].packing == Packing.REUSED
    after = only(folder, ".check").read_text()
    assert after != before and after.split()[:2] == before.split()[:2]
    content = only(folder, ".packed").read_bytes()
    assert load_and_answer(tiny_pte, folder)[0].packing == Packing.REUSED
    assert (only(folder, ".check").read_text(), only(folder, ".packed").read_bytes()) == (after, content)


def killed_while_packing(model: Path, folder: Path) -> None:
    def progress(done: int, total: int) -> None:
        if done > total / 2:
            os.kill(os.getpid(), signal.SIGKILL)

    NativeEngine().load(model, folder, on_progress=progress)


def test_a_first_load_that_is_killed_leaves_nothing_that_counts(
    tiny_pte: Path, expected: list[int], tmp_path: Path
) -> None:
    with pool() as processes, pytest.raises(BrokenProcessPool):
        processes.submit(killed_while_packing, tiny_pte, tmp_path / "cache").result()
    (partial,) = (tmp_path / "cache").iterdir()
    assert partial.name.endswith(".packed.partial")
    loaded, found = load_and_answer(tiny_pte, tmp_path / "cache")
    assert (loaded.packing, found) == (Packing.PACKED, expected)
    assert not partial.exists()


def test_two_processes_pack_once_and_share(tiny_pte: Path, expected: list[int], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with pool(2) as processes:
        answers = [processes.submit(load_and_answer, tiny_pte, folder) for _ in range(2)]
        results = [answer.result() for answer in answers]
    assert sorted(loaded.packing for loaded, _ in results) == [Packing.PACKED, Packing.REUSED]
    assert [ids for _, ids in results] == [expected] * 2
    with NativeEngine() as engine, pool() as processes:
        assert engine.load(tiny_pte, folder).packing == Packing.REUSED
        loaded, found = processes.submit(load_and_answer, tiny_pte, folder).result()
        assert (loaded.packing, found) == (Packing.REUSED, expected)


def as_nobody(model: Path, folders: list[Path]) -> list[tuple[Loaded, list[int]]]:
    _library()  # compiled and loaded by root
    os.setuid(NOBODY)
    return [load_and_answer(model, folder) for folder in folders]


@pytest.fixture
def public(tiny_pte: Path) -> Iterator[Path]:
    """A folder that nobody may read, but not write to, with model.pte."""
    if os.getuid() != 0:
        pytest.skip("only root can become nobody")
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        shutil.copyfile(tiny_pte, Path(name, "model.pte"))
        yield Path(name)


def test_without_permission_it_runs_unpacked_and_says_so(public: Path, expected: list[int]) -> None:
    (public / "closed").mkdir(0o700)
    (public / "readable").mkdir(0o755)
    (public / "file").touch()
    sentences = {
        "closed": "closed cannot be opened: Permission denied",
        "readable": "readable cannot be written to: Permission denied",
        "new": "new cannot be made: Permission denied",
        "file": "file cannot be opened: Not a directory",
        "x" * 240: "is longer than XNNPACK's option takes",
    }
    with pool() as processes:
        folders = [public / name for name in sentences]
        results = processes.submit(as_nobody, public / "model.pte", folders).result()
    for (loaded, found), sentence in zip(results, sentences.values(), strict=True):
        assert (loaded.packing, found) == (Packing.UNPACKED, expected)
        assert loaded.packed_note.endswith(sentence)


def test_a_folder_that_is_only_readable_serves_what_it_has(public: Path, expected: list[int]) -> None:
    folder = public / "cache"
    assert load_and_answer(public / "model.pte", folder)[0].packing == Packing.PACKED
    os.chmod(folder, 0o755)
    for file in folder.iterdir():
        os.chmod(file, 0o644)
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    with pool() as processes:  # their times are new, so that the file is read, but the check cannot be written again
        ((loaded, found),) = processes.submit(as_nobody, public / "model.pte", [folder]).result()
    assert (loaded.packing, found) == (Packing.REUSED, expected)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def on_a_small_disk(model: Path, place: Path, size: str) -> tuple[Loaded, list[int], list[str]]:
    new_namespace = 0x00020000  # CLONE_NEWNS: the disk is gone with this process
    assert ctypes.CDLL(None).unshare(new_namespace) == 0
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], check=True)
    loaded, found = load_and_answer(model, place / "cache")
    return loaded, found, [file.name for file in (place / "cache").iterdir()]


def test_a_full_disk_is_known_before(tiny_pte: Path, expected: list[int], tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can mount a small disk")
    with pool() as processes:
        loaded, found, left = processes.submit(on_a_small_disk, tiny_pte, tmp_path, "2m").result()
    assert (loaded.packing, found, left) == (Packing.UNPACKED, expected, [])
    assert "bytes free, packed weights may need" in loaded.packed_note


def test_models_share_a_folder_and_never_weights(
    tiny_pte: Path, other_pte: Path, expected: list[int], tmp_path: Path
) -> None:
    folder, place = tmp_path / "cache", tmp_path / "model.pte"
    other = greedy(Session(other_pte), PROMPT, 16)
    with NativeEngine() as first, NativeEngine() as second:
        first.load(tiny_pte, folder)
        second.load(other_pte, folder)
        assert list(second.generate(PROMPT, GREEDY).token_ids) == other
        assert list(first.generate(PROMPT, GREEDY).token_ids) == expected
    for model, wanted in ((tiny_pte, expected), (other_pte, other)):
        loaded, found = load_and_answer(model, folder)
        assert (loaded.packing, found) == (Packing.REUSED, wanted)
    shutil.rmtree(folder)
    for model, wanted in ((tiny_pte, expected), (other_pte, other)):  # an export that takes the place of another
        shutil.copyfile(model, place)
        loaded, found = load_and_answer(place, folder)
        assert (loaded.packing, found) == (Packing.PACKED, wanted)
        assert only(folder, ".packed").stat().st_size == loaded.packed_bytes  # what was of the one before is gone

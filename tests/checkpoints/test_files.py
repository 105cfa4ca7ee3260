"""checkpoints.files: whole or not at all, also where an interruption is swallowed on its way."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

from checkpoints.files import aside, publish


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_that_a_library_swallows_is_one_all_the_same(number: int, tmp_path: Path) -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        before = signal.getsignal(number)
        with pytest.raises(KeyboardInterrupt), aside(tmp_path / "file") as partial:
            partial.write_text("half")
            with contextlib.suppress(BaseException):  # as some libraries do while they are imported
                os.kill(os.getpid(), number)
            raise ImportError("half a module")
        assert list(tmp_path.iterdir()) == [] and signal.getsignal(number) is before
    finally:
        signal.signal(signal.SIGINT, handler)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ImportError), aside(tmp_path / "file"):
        raise ImportError
    with aside(tmp_path / "file") as partial:
        partial.write_text("whole")
        publish(partial, tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "whole"

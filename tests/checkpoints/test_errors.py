"""run: the exit codes and the single line of every command."""

import errno
from collections.abc import Sequence

import pytest

from checkpoints.errors import BadInput, run


@pytest.mark.parametrize(
    ("outcome", "code", "line"),
    [
        (None, 0, ""),
        (3, 3, ""),
        (BadInput("a\nb"), 2, "error: a b\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.pte"),
            2,
            "error: no space left on the disk while writing x.pte\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(
    outcome: int | BaseException | None, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: Sequence[str] | None) -> int | None:
        assert argv == ["--flag"]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    with pytest.raises(SystemExit) as left:
        run(main, ["--flag"])
    assert left.value.code == code
    assert capsys.readouterr().err == line


def test_bugs_keep_their_traceback() -> None:
    def main(argv: Sequence[str] | None) -> None:
        raise PermissionError(errno.EACCES, "denied")

    with pytest.raises(PermissionError):
        run(main)

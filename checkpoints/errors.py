"""What a user did wrong, told in one sentence, and the exit codes of every command.

Knows exceptions and exit codes; knows nothing of checkpoints.
"""

import errno
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn


class BadInput(Exception):
    """Something the user gave (a file, a flag, a name) cannot be used.

    The message is one sentence naming the file, the key and, where two numbers disagree, both numbers.
    """

    exit_code = 2


def show(value: Any) -> str:
    """A foreign JSON value for such a sentence, short and printable."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def run(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Call `main(argv)` and leave the process: what every command's `if __name__ == "__main__"` does.

    Exit codes: main's own (None is 0); BadInput's, and 2 for a full disk, as one `error: ...` line on stderr;
    130 for Ctrl-C. Any other exception is a bug of ours and keeps its traceback.
    """
    try:
        code = main(argv)
    except BadInput as problem:
        _leave(str(problem), problem.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as problem:
        if problem.errno != errno.ENOSPC:
            raise
        _leave(f"no space left on the disk while writing {problem.filename or 'a file'}", BadInput.exit_code)
    sys.exit(code or 0)


def _leave(sentence: str, code: int) -> NoReturn:
    print("error:", " ".join(sentence.split()), file=sys.stderr)
    sys.exit(code)

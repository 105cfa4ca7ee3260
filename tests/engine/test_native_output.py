"""export.engine.native_output: C's prints stay away, Python's do not, and the last of the log survives a crash."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
START = """
import ctypes, functools, os, sys
from checkpoints.errors import BadInput
from export.engine.native_output import hushed
C = ctypes.CDLL(None)
quietly = functools.partial(hushed, "it crashed")
def noise():
    C.printf(b"C's stdout\\n"); os.write(2, b"C's log\\n"); print("answer", end=""); print("note", file=sys.stderr)
"""


def run(rest: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", START + rest], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("rest", "code", "log"),
    [
        ("with quietly(): noise()", 0, ""),
        ("with quietly(verbose=True): noise()", 0, "C's log\nC's stdout\n"),
        ("try:\n  with quietly(): noise(); raise BadInput('x')\nexcept BadInput: pass", 0, ""),
        ("try:\n  with quietly(): noise(); raise ValueError('x')\nexcept ValueError: pass", 0, "C's log\n"),
        (
            "import subprocess\ntry:\n  with quietly():\n    subprocess.Popen(['sleep', '600'])\n"
            "    noise(); raise ValueError"
            "\nexcept ValueError: os.system('pkill -P %d sleep' % os.getpid())",
            0,
            "C's log\n",
        ),
        ("with quietly():\n  noise(); sys.stdout.flush(); C.abort()", -6, "C's log\nerror: it crashed\n"),
        ("with quietly():\n  noise()\nwith quietly():\n  pass", 0, ""),
    ],
    ids=["fine", "verbose", "bad input", "bug", "bug beside a child", "crash", "twice"],
)
def test_hushed(rest: str, code: int, log: str) -> None:
    done = run(rest)
    assert (done.returncode, done.stdout) == (code, "answer")
    assert sorted(done.stderr.replace("note\n", "").split("\n")) == sorted(log.split("\n"))
    assert done.stderr.count("note\n") == 1


def test_streams_are_as_before() -> None:
    done = run("with quietly(): noise()\nprint(' after'); C.printf(b'C\\n'); os.write(2, b'end\\n')")
    assert sorted(done.stdout.split()) == ["C", "after", "answer"] and done.stderr == "note\nend\n"

"""export.verify --cpu: the wheel's arm64 code, emulated, computes what transformers does; wrong files fail there."""

import json
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from checkpoints.errors import BadInput, run
from export.engine.session import Feed, run_feeds
from export.subprocess_call import ChildDied
from export.verification.arm64 import toolchain
from export.verification.emulated import run_emulated
from export.verify import main
from tests.tools import need
from tests.verification.test_verify import changed, exchange_graphs

CPUS = ["cortex-a53", "cortex-a76", "max"]  # plain NEON; dot products; whatever qemu knows


@pytest.fixture(scope="module")
def arm64() -> None:
    need("arm64", toolchain.missing())


def test_a_right_file_passes_on_every_cpu(tiny_pte: Path, arm64: None, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [str(tiny_pte), "--checkpoint", "phi4-tiny", "--short", "--json"]
    assert main([*flags, "--cpu", ",".join(CPUS)]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert [report["cpu"] for report in reports] == CPUS
    for report in reports:
        measured = {check["name"]: check["measured"] for check in report["checks"]}
        assert report["passed"] and report["tokens"] == 40
        assert 0.003 < measured["logits, prefill and decode"] < 0.025 and report["quality"]["top1_agreement"] > 0.7


def test_cpus_differ_in_their_kernels_not_in_what_they_compute(tiny_pte: Path, arm64: None) -> None:
    """Positions and logits [positions, V] as on this machine; equal bits would mean that the CPU is not passed on."""
    tokens = [31 * i * i % 2000 for i in range(40)]
    feeds = [Feed("mixed", (32, 5, 1, 1, 1)), Feed("last of each", (20, 20), every=False)]
    here = run_feeds(tiny_pte, tokens, feeds)
    plain, dotprod = (run_emulated(cpu, tiny_pte, tokens, feeds) for cpu in CPUS[:2])
    for (positions, ours), (theirs, found), (_, other) in zip(here, plain, dotprod, strict=True):
        assert theirs == positions and found.dtype == np.float32 and found.shape == ours.shape
        assert np.linalg.norm(found - ours) < 0.05 * np.linalg.norm(ours)
        assert not np.array_equal(found, other)


def test_exchanged_layers_fail_on_every_cpu(
    tiny_pte: Path, tmp_path: Path, arm64: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """All weights are right, so that only running the file tells; exit code 1, and a table for each CPU."""
    wrong = changed(tiny_pte, tmp_path / "x.pte", exchange_graphs)
    assert main([str(wrong), "--checkpoint", "phi4-tiny", "--short", "--cpu", "cortex-a76,max"]) == 1
    one, other = capsys.readouterr().out.split("x.pte on an emulated ")[1:]
    for cpu, table in (("cortex-a76", one), ("max", other)):
        assert table.startswith(cpu) and re.search(r"logits, prefill and .*FAIL", table)
        assert not re.search(r"weights, .*FAIL", table)


# what goes wrong is one sentence


def complaint(flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        run(main, flags)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_an_unknown_cpu(tiny_pte: Path, arm64: None, capsys: pytest.CaptureFixture[str]) -> None:
    error = complaint([str(tiny_pte), "--cpu", "max,snapdragon"], capsys)
    assert "--cpu snapdragon is none of" in error and "cortex-a53" in error
    assert "(empty)" in complaint([str(tiny_pte), "--cpu", ""], capsys)


def test_missing_tools_are_named(
    tiny_pte: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("POCKETPHI_CACHE", str(tmp_path))
    error = complaint([str(tiny_pte), "--cpu", "max"], capsys)
    assert f"needs qemu-aarch64, aarch64-linux-gnu-g++, {tmp_path}/executorch-" in error
    assert error.endswith("run tests/install_tools arm64\n")


def test_what_the_runtime_refuses_and_dies_of(tiny_pte: Path, tmp_path: Path, arm64: None) -> None:
    cut = tmp_path / "cut.pte"
    cut.write_bytes(tiny_pte.read_bytes()[:100_000])
    with pytest.raises(BadInput, match=r"cut\.pte: ExecuTorch's runtime on max refuses it \(.*100000"):
        run_emulated("max", cut, [1, 2], [Feed("a", (2,))])
    with pytest.raises(BadInput, match=r"fails on 33 tokens at position 2 \(.*input 0"):
        run_emulated("max", tiny_pte, range(35), [Feed("a", (2, 33))])
    with pytest.raises(ChildDied, match=r"^max, Aborted: .*99999 must be in range"):
        run_emulated("max", tiny_pte, [1, 99999], [Feed("a", (1, 1))])


def test_the_emulator_ends_with_who_started_it(tiny_pte: Path, arm64: None) -> None:
    """Its stdin stays open: it is not told, and would wait for another call for ever."""
    started = ["sh", "-c", 'exec 3<&0; "$@" <&3 & echo $!; wait', "sh", *toolchain.command("max"), str(tiny_pte)]
    with subprocess.Popen(started, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as shell:
        assert shell.stdin and shell.stdout
        emulator = psutil.Process(int(shell.stdout.readline()))
        shell.stdin.write(b"0 1\n")
        shell.stdin.flush()
        assert len(shell.stdout.read(16)) == 16
        shell.kill()
        assert not psutil.wait_procs([emulator], timeout=60)[1]


# the runner's cache


def test_two_at_once_build_one_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm64: None) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadPoolExecutor() as pool:
        one, other = pool.map(toolchain.command, CPUS[:2])
    assert one[-1] == other[-1] and Path(one[-1]).is_relative_to(tmp_path)
    [built] = (tmp_path / "pocketphi").glob("[!.]*")
    assert sorted(os.listdir(built)) == sorted([*toolchain.STUB, "run"])
    before = built.stat().st_ctime_ns
    toolchain.command("max")
    assert built.stat().st_ctime_ns == before, "it was built again"


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / toolchain.COMPILER
    compiler.write_text(
        "#!/bin/sh\necho In file included from x >&2\necho 'run.cpp:1: fatal error: no y.h' >&2\nexit 1"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(BadInput, match=r"g\+\+ fails: run\.cpp:1: fatal error: no y\.h$"):
        toolchain.command("max")
    assert os.listdir(tmp_path / "cache" / "pocketphi") == [".lock"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BadInput, match=r"file/pocketphi cannot be written to: Not a directory"):
        toolchain.command("max")

"""What the benchmarks' numbers stand on: a child's memory is seen, and a limit on it holds."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from benchmarks import measure
from benchmarks.measure import GIB, Measured
from benchmarks.report import print_export

MIB = 1 << 20
HOLD = "block = bytearray({} << 20); import time; time.sleep(0.4)"


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


@pytest.fixture(scope="module")
def held() -> Measured:
    """300 MiB, in a child of the child."""
    inner = HOLD.format(300)
    return measure.run(python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"))


def test_memory_of_all_processes_is_counted(held: Measured) -> None:
    assert held.failure is None
    assert 300 * MIB < held.private_peak_bytes < 400 * MIB
    assert 0.4 < held.wall_s < 60
    assert held.limit_bytes is None


def test_the_kernel_counts_the_same(held: Measured) -> None:
    if held.cgroup_peak_bytes is None:
        pytest.skip("no memory cgroup can be made by this user here")
    assert 300 * MIB < held.cgroup_peak_bytes < 450 * MIB


@pytest.mark.parametrize("wanted_mib, fits", [(100, True), (600, False)])
def test_a_limit_holds(wanted_mib: int, fits: bool) -> None:
    done = measure.run(python(HOLD.format(wanted_mib)), 256 * MIB)
    if done.limit_bytes is None:
        assert done.limited_by == "nothing"
        pytest.skip("no memory limit can be enforced by this user here")
    assert (done.failure is None) is fits
    assert done.oom_killed is not fits
    if not fits:
        assert done.failure == "killed for memory at 0.25 GiB"
        assert done.private_peak_bytes < 300 * MIB


def test_exit_code_and_output_come_back() -> None:
    done = measure.run(python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"))
    assert (done.exit_code, done.failure, done.oom_killed) == (3, "exit code 3", False)
    assert sorted(done.tail.split()) == ["err", "out"]


def test_what_a_command_leaves_running_is_ended() -> None:
    group = measure._Group.make(None)
    if group is None:
        pytest.skip("no memory cgroup can be made by this user here")
    left = subprocess.Popen((*measure.JOIN, str(group.folder / "cgroup.procs"), "sleep", "60"))
    while not group.members():
        time.sleep(0.01)
    group.close()
    assert left.wait(10) == -signal.SIGKILL
    assert not group.folder.exists()


def test_a_failed_stage_is_in_the_table() -> None:
    stage = {
        "wall_s": 1.0,
        "cpu_s": 1.0,
        "private_peak_bytes": GIB,
        "cgroup_peak_bytes": None,
        "limit_bytes": 4 * GIB,
        "limited_by": "cgroup v1",
        "failure": None,
    }
    text = io.StringIO()
    report = {
        "machine": {"cores": 2},
        "checkpoint": {"bytes": 10**9, "layers": 2, "hidden": 256, "vocab": 1024},
        "options": {"context": 512, "chunk": 128, "peer_chunk": 128},
        "stages": {"ours: export": stage, "upstream: export": stage | {"failure": "killed for memory at 20.00 GiB"}},
        "files": {"ours": dict.fromkeys(
            ("bytes", "other_bytes", "kv_cache_bytes", "planned_activation_bytes", "delegates"), 10**6)},
        "where_s": {"graph": 2.5},
        "limits": {},
    }  # fmt: skip
    print_export(report, Console(file=text, width=200))
    assert "upstream: export: killed for memory" in text.getvalue()
    assert "graph 2.5 s" in text.getvalue()

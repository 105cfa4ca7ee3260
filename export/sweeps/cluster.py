"""Steps on Ray (2.60): a local one for the time of a sweep, or a cluster that is there already.

Ray's resources decide what runs beside what: each step takes cores and memory, and what is timed takes all cores of
the one node that has the resource `bench`. The dashboard and usage statistics are off, logs stay in Ray's folder,
which goes at the end. Ray is imported nowhere else.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.errors import BadInput
from export.engine.memory import memory_left

# Read when Ray is imported.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
PREFIX = "pocketphi-ray-"  # and the process's number: the folder of a killed sweep is known by it
STORE = 80_000_000  # bytes for objects: results are small
BENCH = "bench"


@dataclass(frozen=True)
class Cluster:
    """What a running Ray offers; `submit` and `finished` are all that is done with it."""

    ray: Any
    cores: int  # of the node with the fewest
    bench_cores: int  # of the node that times
    memory: int  # bytes, of the node with the most

    def submit(
        self,
        function: Callable[..., dict[str, Any]],
        arguments: Sequence[Any],
        after: Sequence[Any],
        cores: int,
        memory: int,
        timed: bool,
    ) -> Any:
        """A step to be done when those of `after` are; its reference."""
        options: dict[str, Any] = {
            "num_cpus": self.bench_cores if timed else min(cores, self.cores),
            "memory": memory,
        }
        if timed:
            options["resources"] = {BENCH: 1}
        remote = self.ray.remote(max_retries=0, **options)(_call)
        return remote.remote(function, list(arguments), *after)

    def finished(self, running: Sequence[Any], seconds: float = 0.5) -> list[tuple[Any, dict[str, Any]]]:
        """Those that ended within some time, with what they returned; `problem` is why one has no result."""
        done, _ = self.ray.wait(list(running), num_returns=1, timeout=seconds)
        return [(one, self._result(one)) for one in done]

    def _result(self, reference: Any) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self.ray.get(reference)
            return found
        except self.ray.exceptions.OutOfMemoryError:
            return {"problem": "the machine ran out of memory and Ray ended the step: give --parallel 1"}
        except self.ray.exceptions.WorkerCrashedError:
            return {"problem": "the process of the step died"}
        except self.ray.exceptions.RayTaskError as problem:
            cause = problem.cause if isinstance(problem.cause, Exception) else problem
            return {"problem": f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"}


def _call(function: Callable[..., dict[str, Any]], arguments: list[Any], *before: dict[str, Any]) -> dict[str, Any]:
    """In a worker: a step whose forerunners failed is not begun, and what is wrong with its input is a result."""
    for one in before:
        if "problem" in one:
            return one
    try:
        return function(*arguments)
    except BadInput as problem:
        return {"problem": str(problem)}


@contextmanager
def running(address: str | None, cores: int | None = None) -> Iterator[Cluster]:
    """Ray, started here on so many cores, by default all, or found at `address`; BadInput where there is none."""
    os.environ.update(SETTINGS)
    try:
        import ray
        from ray._private import ray_constants
    except ImportError:
        raise BadInput("a sweep needs the package ray: `uv sync --extra sweep`") from None
    # Ray 2.60 reads this setting when it is imported, which others may have done before. Below `uv run` it would
    # start its workers by the same words in a copy of the current folder, where .uv/bin/uv is not, and wait forever.
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    _remove_left()
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "include_dashboard": False}
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir="/tmp"))  # sockets' paths must be short
    try:
        if address is None:
            ray.init(
                num_cpus=cores or os.cpu_count(),
                num_gpus=0,
                resources={BENCH: 1},
                object_store_memory=STORE,
                _memory=memory_left(),
                _temp_dir=str(folder),
                **quiet,
            )
        else:
            try:
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
            except (ConnectionError, ValueError, RuntimeError) as problem:
                raise BadInput(f"--address {address}: {' '.join(str(problem).split())[:200]}") from None
        with _ended():
            yield _facts(ray, address)
    finally:
        with suppress(Exception):
            ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _ended() -> Iterator[None]:
    """SIGTERM is like Ctrl-C: Ray's own handler prints a page of C++."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _facts(ray: Any, address: str | None) -> Cluster:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    timing = [node for node in nodes if node.get(BENCH)]
    if not timing:
        raise BadInput(
            f"--address {address}: no node has the resource {BENCH}, which tells where files are timed: start one "
            f"with ray start --resources='{{\"{BENCH}\": 1}}'"
        )
    cores = int(min(node["CPU"] for node in nodes))
    return Cluster(ray, cores, int(timing[0]["CPU"]), int(max(node["memory"] for node in nodes)))


def _remove_left() -> None:
    """Folders of sweeps that were killed."""
    for folder in Path("/tmp").glob(f"{PREFIX}*"):
        number = folder.name.removeprefix(PREFIX).split("-")[0]
        if number.isdecimal() and not Path(f"/proc/{number}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)

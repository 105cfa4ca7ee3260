"""Calls functions in another Python process: for work beside this one, or code that may end its process.

Unlike multiprocessing's spawn, the new process imports nothing of the caller's script, so scripts need no main guard;
it finds modules where this one does, whatever lies in the current folder; and how it died can be told.
Imports nothing heavy: a new process is to be at work before its parent has imported torch.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from types import MappingProxyType
from typing import IO, Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
NOTHING: Mapping[str, str] = MappingProxyType({})
Job = Callable[[], Any]  # picklable: a partial

BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from export.subprocess_call import _serve; _serve()"


class ChildDied(Exception):
    """The process ended without a result; the message is the last line it wrote to stderr."""


class ChildKilled(ChildDied):
    """By SIGKILL: by the system, for memory, or by somebody."""


class Child:
    """A new process that imports the modules named `imports` and then calls functions, one after another.

    `environment` is added to this process's.

    A context manager: leaving it ends the process, whatever it is doing.
    """

    def __init__(self, *imports: str, environment: Mapping[str, str] = NOTHING) -> None:
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", BOOT, json.dumps([path or os.getcwd() for path in sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | environment,
        )
        self._threads = ThreadPoolExecutor(1)
        self._told: Callable[[Any], object] = lambda message: None
        self._imported = self.start(_import, imports)

    def __enter__(self) -> Child:
        return self

    def kill(self) -> None:
        """End the process; what it was doing raises ChildDied."""
        self._process.kill()

    def __exit__(self, *error: object) -> None:
        self.kill()
        self._process.wait()
        self._threads.shutdown()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            assert pipe is not None
            with suppress(BrokenPipeError):  # it still held something for a process that is gone
                pipe.close()

    def start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call a picklable function with picklable arguments, in the background.

        The future raises what the function raises, or ChildDied where the process ends without a result.
        """
        return self._threads.submit(self._call, function, args, kwargs)

    def listen(self, told: Callable[[Any], object]) -> None:
        """Have what functions `tell` from now on passed to `told`, in a thread."""
        self._told = told

    def _call(self, function: Callable[P, T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        self._send((function, args, kwargs))
        while True:
            kind, value = self._receive()
            if kind == "told":
                self._told(value)
            elif kind == "raised":
                raise value
            else:
                return value

    def _send(self, request: object) -> None:
        assert self._process.stdin is not None
        try:
            _write(self._process.stdin, request)
        except OSError:
            raise self._death() from None

    def _receive(self) -> tuple[str, Any]:
        assert self._process.stdout is not None
        try:
            return pickle.load(self._process.stdout)
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):  # the pipe's end, or half a message before it
            raise self._death() from None

    def _death(self) -> ChildDied:
        code = self._process.wait()
        self._log.seek(0)
        return (ChildKilled if code == -signal.SIGKILL else ChildDied)(last_line(self._log.read()))


class Pool:
    """Several Childs that take jobs from one list.

    A context manager: leaving it ends them, whatever they are doing.
    """

    def __init__(self, count: int, *imports: str, environment: Mapping[str, str] = NOTHING) -> None:
        self._stack, self._lock = ExitStack(), threading.Lock()
        self._children = [self._stack.enter_context(Child(*imports, environment=environment)) for _ in range(count)]
        self._threads = self._stack.enter_context(ThreadPoolExecutor(count))
        self._stack.callback(self._kill)  # first of all, as the threads wait for them

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def start(self, jobs: Iterable[tuple[str, Job]], told: Callable[[Any], object] = lambda message: None) -> Jobs:
        """Begin named jobs, in order, each as soon as a process is free; `told` gets what they `tell`."""
        waiting = iter(jobs)

        def listen(message: Any) -> None:
            with self._lock:
                told(message)

        def work(child: Child) -> dict[str, Any]:
            results: dict[str, Any] = {}
            while True:
                with self._lock:
                    name, job = next(waiting, (None, None))
                if name is None or job is None:
                    return results
                results[name] = child.start(job).result()

        for child in self._children:
            child.listen(listen)
        return Jobs([self._threads.submit(work, child) for child in self._children])

    def _kill(self) -> None:
        for child in self._children:
            child.kill()


class Jobs:
    """Jobs of a Pool under way."""

    def __init__(self, working: Sequence[Future[dict[str, Any]]]) -> None:
        self._working, self._began, self.seconds = working, time.monotonic(), 0.0
        for future in working:
            future.add_done_callback(self._time)

    def _time(self, _: object) -> None:
        self.seconds = time.monotonic() - self._began  # from start to end, known once done

    def join(self) -> dict[str, Any]:
        """Wait for the end; name of each job -> its result. Raises what went wrong in one of them."""
        return {name: result for future in self._working for name, result in future.result().items()}


def tell(message: object) -> None:
    """In a function that a Child calls: pass a picklable message to the parent's `listen`; elsewhere nothing."""
    if _answers is not None:
        _write(_answers, ("told", message))


def last_line(log: str) -> str:
    """The last line that says something, cut to 300 characters."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it wrote nothing to stderr"


# ---- the other process

_answers: IO[bytes] | None = None


def _import(modules: tuple[str, ...]) -> None:
    for module in modules:
        importlib.import_module(module)


def _serve() -> None:
    global _answers
    from export.progress import quiet

    requests, _answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what C++ code prints is for the log
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    threading.Thread(target=_leave_with_the_parent, args=(os.getppid(),), daemon=True).start()
    quiet(verbose=False)
    while True:
        try:
            function, args, kwargs = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = ("returned", function(*args, **kwargs))
        except Exception as problem:
            answer = ("raised", problem)
        _write(_answers, answer)


def _write(pipe: IO[bytes], message: object) -> None:
    pickle.dump(message, pipe)
    pipe.flush()


def _leave_with_the_parent(parent: int) -> None:
    while os.getppid() == parent:  # else it was killed without a chance to end us
        time.sleep(0.5)
    os._exit(1)

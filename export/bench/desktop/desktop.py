"""This machine: a C++ engine in a process of its own, measured from outside.

Memory is the whole process's, Python and torch with it. What the kernel keeps count of (anonymous, file, swapped) is
asked for all the time; what it must walk through all pages for (PSS, private dirty) once loaded and after an answer,
while the process waits: the walk would disturb decoding.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import psutil

from checkpoints.cache import cache_folder
from checkpoints.errors import BadInput
from export.bench.contract import MEMORY
from export.bench.files import local_file
from export.bench.memory import nothing, parse_memory, sample, with_peak
from export.bench.model import make_model
from export.bench.outcome import Outcome, Watch
from export.bench.plan import Plan
from export.bench.process import lines
from export.bench.results import result
from export.bench.results.numbers import size
from export.subprocess_call import last_line

KINDS = tuple(metric.place[-1] for metric in MEMORY)
WAITS = ("idle", "encoded")  # phases that the worker stays in until it has been looked at
INTERVAL_S = 0.02
MOST = 0.05  # of the time may go into asking: a large process's tables take long to walk
ROOT = Path(__file__).resolve().parents[3]
WORKER = ["-m", "export.bench.desktop.worker"]
Keep = Callable[[int, dict[str, Any]], object]  # gets a configuration's index and a repeat of it


@dataclass(frozen=True)
class Desktop:
    """What only this machine is asked for; BadInput for what does not go together."""

    engine: Literal["runner", "ours"] = "runner"
    packed: Path | None = None  # where our engine keeps packed weights; by default nowhere after the measurement
    draft_tokens: int = 0  # guessed ahead at most

    def __post_init__(self) -> None:
        if self.draft_tokens < 0:
            raise BadInput(f"--draft-tokens {self.draft_tokens} is below 0")
        if self.engine != "ours":
            for flag, given in (("packed", self.packed is not None), ("draft-tokens", self.draft_tokens > 0)):
                if given:
                    raise BadInput(f"--{flag} is for --engine ours")

    @property
    def engine_name(self) -> str:
        """As the result calls it."""
        return {"runner": "TextLLMRunner", "ours": "pocketphi"}[self.engine]

    @contextmanager
    def folder(self) -> Iterator[Path | None]:
        """For packed weights. Without one given a new one, so that every measurement starts with a cold load and a
        file of the size of the model does not stay."""
        if self.engine != "ours" or self.packed is not None:
            yield self.packed
            return
        with tempfile.TemporaryDirectory(prefix="bench-", dir=cache_folder()) as made:
            yield Path(made, "packed")


class Sampler:
    """Asks for a process's memory until stopped; samples carry seconds of the monotonic clock."""

    def __init__(self, pid: int) -> None:
        self._process, self._stop = psutil.Process(pid), threading.Event()
        self.taken: list[tuple[float, dict[str, int | None]]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            begun = time.monotonic()
            memory = self._ask(walk=False)
            if memory is None or self._stop.is_set():
                return
            self.taken.append((begun, memory))
            if self._stop.wait(max(INTERVAL_S, (time.monotonic() - begun) / MOST)):
                return

    def take(self, at: float) -> None:
        """One more sample with everything, of a process that waits."""
        if (memory := self._ask(walk=True)) is not None:
            self.taken.append((at, memory))

    def _ask(self, walk: bool) -> dict[str, int | None] | None:
        try:
            if sys.platform == "linux":
                files = ["status", "smaps_rollup"] if walk else ["status"]
                memory = parse_memory(
                    "".join(Path(f"/proc/{self._process.pid}/{name}").read_text() for name in files)
                )
            elif walk:
                info = self._process.memory_full_info()
                memory = nothing() | {"rss_bytes": info.rss, "private_dirty_bytes": info.uss}
            else:
                memory = nothing() | {"rss_bytes": self._process.memory_info().rss}
            return memory | {"available_bytes": psutil.virtual_memory().available}
        except (OSError, psutil.Error):
            return None

    def between(self, begin: float, end: float) -> list[tuple[float, dict[str, int | None]]]:
        return sorted((entry for entry in list(self.taken) if begin <= entry[0] <= end), key=lambda entry: entry[0])

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


class Run:
    """One worker under way: its events become repeats."""

    def __init__(
        self,
        plan: Plan,
        watch: Watch,
        on_repeat: Keep = lambda index, repeat: None,
        options: Desktop = Desktop(),
    ) -> None:
        self.plan, self.watch, self.options, self.on_repeat = plan, watch, options, on_repeat
        self.repeats: list[list[dict[str, Any]]] = [[] for _ in plan.configurations()]
        self._phases: list[tuple[float, str]] = []
        self._before: dict[str, Any] = {}
        self._doing = "starting"

    def follow(self) -> str | None:
        """Run to the end; what went wrong, in a sentence. KeyboardInterrupt ends the worker and goes on."""
        with self.options.folder() as packed:
            return self._follow(packed)

    def _follow(self, packed: Path | None) -> str | None:
        plan, options = self.plan, self.options
        keys = ("new_tokens", "repeats", "warmups", "cooldown_s", "load_mode", "prompt_tokens", "modes")
        spec = {key: getattr(plan, key) for key in keys} | {"pte": str(plan.pte), "tokenizer": str(plan.tokenizer)}
        spec |= {"engine": options.engine, "packed": str(packed), "draft_tokens": options.draft_tokens}
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            worker = subprocess.Popen(
                [sys.executable, *WORKER, json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                start_new_session=True,  # Ctrl-C is for us
            )
            sampler = Sampler(worker.pid)
            try:
                problem = self._events(worker, sampler)
            finally:
                worker.kill()
                code = worker.wait()
                sampler.stop()
            log.seek(0)
            if problem == "":
                last = f"last seen with {size(sampler.taken[-1][1]['rss_bytes'] or 0)}" if sampler.taken else ""
                why = f"signal {-code} ended it, {last}" if code < 0 else last_line(log.read())
                return f"{plan.pte.name}: the runner's process died while {self._doing}: {why}"
            return problem

    def _events(self, worker: subprocess.Popen[str], sampler: Sampler) -> str | None:
        """None at the end, a sentence, or "" where the worker fell silent because it is gone."""
        heard = time.monotonic()
        for line in lines(worker):
            rest = self.plan.cooldown_s if self._phases and self._phases[-1][1] == "idle" else 0
            if line is None:
                if time.monotonic() - heard > self.plan.timeout_s + rest:
                    waited = f"nothing happened for {self.plan.timeout_s:g} s while {self._doing}"
                    return f"{self.plan.pte.name}: {waited}: time-out"
                continue
            heard = time.monotonic()
            event = json.loads(line)
            if event["event"] == "refused":
                raise BadInput(event["message"])
            if event["event"] == "done":
                return None
            self._take(event, sampler)
            if event.get("phase") in WAITS:  # it has been looked at and may go on
                assert worker.stdin is not None
                with suppress(BrokenPipeError):
                    worker.stdin.write("\n")
                    worker.stdin.flush()
        worker.wait()
        return ""

    def _take(self, event: dict[str, Any], sampler: Sampler) -> None:
        match event["event"]:
            case "phase":
                self._phases.append((event["at"], event["phase"]))
                if event["phase"] in WAITS:  # what a load, an encoder or an answer left, however short it was
                    sampler.take(event["at"])
                self._doing = {"load": "loading the model", "idle": "resting", "encode": "encoding"}.get(
                    event["phase"], "answering"
                )
            case "begin":
                self._before = thermal()
            case "loaded":
                self.watch.say("desktop", f"loaded in {event['load_ms']:,} ms")
            case "warmup":
                self.watch.say("desktop", f"warm-up {event['warmup'] + 1} of {self.plan.warmups}")
            case "repeat":
                self._keep(event, sampler)

    def _keep(self, event: dict[str, Any], sampler: Sampler) -> None:
        begun, end, index = event["begun"], event["at"], event["configuration"]
        samples = self._loading(begun, sampler) if event["measures"]["load_ms"] is not None else []
        after = samples[-1]["at_ms"] if samples else 0.0
        samples += [
            sample(after + 1e3 * (at - begun), self._phase(at), memory) for at, memory in sampler.between(begun, end)
        ]
        if not samples and sampler.taken:  # shorter than the time between two samples
            samples = [sample(1e3 * (end - begun), "decode", sampler.taken[-1][1])]
        repeat = result.make_repeat(
            event["measures"] | encoding_memory(samples),
            **event["counted"],
            **event["told"],
            new_tokens=self.plan.new_tokens,
            memory=with_peak(samples),
            thermal={"before": self._before, "after": thermal()},
        )
        self.repeats[index].append(repeat)
        self.on_repeat(index, repeat)
        self.watch.say("desktop", self.plan.repeat_line(index, event["repeat"], repeat))

    def _loading(self, begun: float, sampler: Sampler) -> list[dict[str, Any]]:
        """The samples of a load that ended before the repeat that carries it began."""
        loads = [(at, end) for (at, phase), (end, _) in pairwise(self._phases) if phase == "load" and end <= begun]
        if not loads:
            return []
        start, end = loads[-1]
        return [sample(1e3 * (at - start), "load", memory) for at, memory in sampler.between(start, end)]

    def _phase(self, at: float) -> str:
        phase = next((phase for begun, phase in reversed(self._phases) if begun < at), "idle")
        return "encode" if phase == "encoded" else phase


def encoding_memory(samples: Sequence[Mapping[str, Any]]) -> dict[str, int | None]:
    """The most while something was encoded, and what was left of it, in bytes of the first kind that is known."""
    seen = [sample["memory"] for sample in samples if sample["phase"] == "encode"]
    name = next((name for name in KINDS if seen and seen[-1].get(name) is not None), None)
    if name is None:
        return {}
    return {"encode_peak_bytes": max(one[name] or 0 for one in seen), "encoded_bytes": seen[-1][name]}


def thermal() -> dict[str, Any]:
    """What a desktop tells: at most the battery's charge."""
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return {
        "status": "unknown",
        "battery_celsius": None,
        "battery_percent": battery and min(100.0, max(0.0, float(battery.percent))),
        "low_power_mode": None,
    }


def device_facts() -> dict[str, Any]:
    """This machine, as the result wants it."""
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "kind": "desktop",
        "model": model,
        "soc": None,
        "ram_bytes": psutil.virtual_memory().total,
        "os": platform.system(),
        "os_version": platform.release(),
        "abi": platform.machine(),
        "cores": os.cpu_count(),
        "serial": None,
    }


def measure(plan: Plan, watch: Watch, options: Desktop = Desktop()) -> Outcome:
    """Measure on this machine; finished repeats are kept whatever happens after them.

    BadInput where file, tokenizer, plan and options do not go together.
    """
    run, interrupted = Run(plan, watch, options=options), False
    try:
        problem = run.follow()
    except KeyboardInterrupt:
        problem, interrupted = "stopped by Ctrl-C", True
    if not any(run.repeats):
        return Outcome("desktop", None, problem, interrupted)
    version, drafts = importlib.metadata.version, options.draft_tokens
    document = result.make_document(
        device=device_facts(),
        build={
            "app": "export.bench",
            "app_version": version("pocketphi"),
            "engine": options.engine_name,
            "executorch": version("executorch"),
        },
        model=make_model(plan.pte, plan.tokenizer, local_file(plan.pte).sha256),
        runs=[
            (configuration | ({"draft_tokens": drafts} if drafts else {}), repeats)
            for configuration, repeats in zip(plan.configurations(), run.repeats, strict=True)
        ],
        problem=problem,
    )
    return Outcome("desktop", document, problem, interrupted)

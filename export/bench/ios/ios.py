"""A plan on iPhones and iPads by our app, through devicectl: files copied, app launched and followed, result fetched.

What the app promises is in docs/ios_protocol.md.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from checkpoints.errors import BadInput
from export.bench.app_run import AppRun, Event
from export.bench.files import Local, local_file
from export.bench.ios.devicectl import GONE, Apple, Devicectl
from export.bench.model import beside
from export.bench.outcome import Failed, Interrupted, Outcome, TimedOut, Unplugged, Watch, wait_for
from export.bench.plan import Plan
from export.bench.process import lines
from export.bench.results.numbers import size
from export.bench.results.result import Document

BUNDLE = "org.pocketphi.bench"
# Everything is copied into Documents itself: nobody says that devicectl makes folders there.
RESULTS = "results"  # the app's, in its Documents
SLOWEST_BYTES_PER_S = 1e6  # below that a copy is given up
SIGNAL = re.compile(r"(?:signal|SIG)\D{0,12}(\d+)", re.IGNORECASE)
KILLED = 9


@dataclass(frozen=True)
class Ios:
    """How to measure on Apple's devices."""

    serials: tuple[str, ...] = ()  # identifiers or names
    app: Path | None = None  # Pocketphi.app, as Xcode built and signed it


def measure(plan: Plan, options: Ios, watch: Watch) -> list[Outcome]:
    """Measure on every device at once; one outcome each, in the order of the serials.

    BadInput where no device can be used at all. Ctrl-C stops all of them, and what they finished is returned.
    """
    from export.bench.prompts import write_prompts  # imports torch

    if options.app is not None and not (options.app / "Info.plist").is_file():
        raise BadInput(f"--app {options.app} is no app built by Xcode: it has no Info.plist")
    stop = threading.Event()
    devices = Devicectl(stop).choose(options.serials)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(devices)) as pool:
        prompts = write_prompts(plan.tokenizer, plan.prompt_tokens, Path(folder))
        job = Job(plan, local_file(plan.pte), tuple(prompts), options.app, watch)
        futures = [pool.submit(IosRun(Devicectl(stop), device, job).outcome) for device in devices]
        wait_for(futures, stop)
        return [future.result() for future in futures]


@dataclass(frozen=True)
class Job:
    """What every device gets."""

    plan: Plan
    model: Local
    prompts: tuple[Path, ...]
    app: Path | None
    watch: Watch


class IosRun(AppRun):
    """One run of the app on one device."""

    left = "left to it"

    def __init__(self, control: Devicectl, device: Apple, job: Job) -> None:
        super().__init__(job.plan, job.model, device.name, device.identifier)
        self.control, self.device, self.job, self.app = control, device, job, job.app
        self.doing = "asked for its apps"

    def outcome(self) -> Outcome:
        """In a thread of its own: whatever happens here is no concern of other devices."""
        try:
            return Outcome(self.device.name, self._measure())
        except Interrupted:
            sentence = "stopped by Ctrl-C"
            return Outcome(self.device.name, self.finished(sentence), sentence, interrupted=True)
        except BadInput as problem:
            return Outcome(self.device.name, self.finished(str(problem)), str(problem))

    def _measure(self) -> Document:
        try:
            self._install()
            self._copy_files()
            return self._run()
        except Unplugged as problem:
            raise Failed(f"{self.device.name} was lost while it was {self.doing}: {problem}") from None
        except TimedOut as problem:
            raise Failed(
                f"{self.device.name} did not answer while it was {self.doing}: time-out of {problem}"
            ) from None

    def say(self, text: str) -> None:
        self.job.watch.say(self.device.name, text)

    def read_result(self) -> str | None:
        return self._fetch_text(f"{RESULTS}/{self.name}.json")

    def _call(self, *arguments: str, timeout_s: float = 60.0) -> tuple[bool, str]:
        """Whether a command of devicectl's for this device worked, and its reason if not."""
        done = self.control.call(*arguments, "--device", self.device.identifier, timeout_s=timeout_s)
        return done.code == 0, done.reason

    def _install(self) -> None:
        done = self.control.call("device", "info", "apps", "--device", self.device.identifier, "--bundle-id", BUNDLE)
        if done.code:
            raise BadInput(f"{self.device.name} does not tell its apps: {done.reason}")
        found = [item for item in done.result.get("apps", []) if item.get("bundleIdentifier") == BUNDLE]
        if self.app is None:
            if not found:
                raise BadInput(
                    f"{self.device.name} does not have the app {BUNDLE}: run it from Xcode once, or give --app"
                )
            return
        self.doing = f"given {self.app.name}"
        worked, reason = self._call("device", "install", "app", str(self.app), timeout_s=300)
        if not worked:
            raise BadInput(f"{self.device.name}: {self.app.name} could not be installed: {reason}")
        self.say(f"{self.app.name} installed")

    def _copy_files(self) -> None:
        """Model, tokenizer and manifest, unless the device has them, and the prompts."""
        for file in [self.model, *map(local_file, beside(self.plan.pte, self.plan.tokenizer))]:
            self._copy(file)
        for prompt in self.job.prompts:
            self._copy_to(prompt, prompt.name, prompt.stat().st_size)

    def _copy(self, file: Local) -> None:
        """A file, and after it a mark with its hash: a mark is only there where a whole file was copied."""
        mark = f"{file.name}.sha256"
        if self._fetch_text(mark) == file.sha256:
            self.say(f"{file.name} is there already")
            return
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder, "mark")
            written.write_text("being copied")
            self._copy_to(written, mark, 0)
            self.say(f"{file.name}: copying {size(file.size_bytes)}")
            self._copy_to(file.path, file.name, file.size_bytes)
            if local_file(file.path).sha256 != file.sha256:
                raise BadInput(f"{file.path} changed while it was copied to {self.device.name}")
            written.write_text(file.sha256)
            self._copy_to(written, mark, 0)

    def _copy_to(self, local: Path, remote: str, size_bytes: int) -> None:
        self.doing = f"given {local.name}"
        worked, reason = self._container(
            "to", str(local), f"Documents/{remote}", 60 + size_bytes / SLOWEST_BYTES_PER_S
        )
        if not worked:
            raise BadInput(
                f"{self.device.name}: {local.name} ({size(local.stat().st_size)}) could not be copied: {reason}"
            )

    def _fetch_text(self, remote: str) -> str | None:
        """The text of a file in the app's Documents; None where there is none."""
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder, "fetched")
            worked, _ = self._container("from", f"Documents/{remote}", str(local))
            return local.read_text(encoding="utf-8", errors="replace") if worked and local.is_file() else None

    def _container(self, way: str, source: str, destination: str, timeout_s: float = 60.0) -> tuple[bool, str]:
        """Copy a file to or from what belongs to the app."""
        where = ["--domain-type", "appDataContainer", "--domain-identifier", BUNDLE]
        paths = ["--source", source, "--destination", destination]
        return self._call("device", "copy", way, *paths, *where, timeout_s=timeout_s)

    def _run(self) -> Document:
        plan = self.plan
        self.doing = "launching the app"
        arguments = {
            "run": self.name,
            "model": self.model.name,
            "tokenizer": plan.tokenizer.name,
            "model-sha256": self.model.sha256,
            "prompt-tokens": ",".join(map(str, plan.prompt_tokens)),
            "prompt-files": ",".join(prompt.name for prompt in self.job.prompts),
            "new-tokens": plan.new_tokens,
            "repeats": plan.repeats,
            "warmups": plan.warmups,
            "cooldown": plan.cooldown_s,
            "load-mode": plan.load_mode,
        }
        if plan.modes != ("text",):  # older apps know no modes
            arguments["modes"] = ",".join(plan.modes)
        launch = [
            "device",
            "process",
            "launch",
            "--device",
            self.device.identifier,
            "--terminate-existing",
            "--console",
        ]
        flags = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
        process = self.control.start(*launch, BUNDLE, *flags)
        try:
            self._follow(process)
            return self.fetched(f"{RESULTS}/{self.name}.json")
        finally:
            if process.poll() is None:  # devicectl ends the app with itself, where --console tied them
                process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()

    def _follow(self, process: subprocess.Popen[str]) -> None:
        """Read the app's lines until it says that it is done."""
        said = ""
        self.step(rests=False)
        for line in lines(process):
            if self.control.stop.is_set():
                raise Interrupted
            if line is None:
                self.check_time()
                continue
            event = self._event(line)
            if event is None:
                said = line.strip() or said
            elif self.heard(event):
                return
        raise BadInput(f"{self.device.name}: {self._why_it_ended(said)}")

    def _event(self, line: str) -> Event | None:
        try:
            event = json.loads(line)
        except ValueError:
            return None
        return event if isinstance(event, dict) and event.get("run") == self.name else None

    def _why_it_ended(self, said: str) -> str:
        """The app is gone without a word of its own; `said` is the last line of devicectl or of the system."""
        if self.doing == "launching the app":
            return f"the app could not be launched: {said[:300] or 'devicectl says nothing'}"
        if GONE.search(said):
            return f"the device was lost while it was {self.doing}: {said[:300]}"
        signal = SIGNAL.search(said)
        if signal and int(signal[1]) == KILLED:
            return f"iOS killed the app (signal {KILLED}), {self.memory}"
        return f"the app crashed: {said[:300] or 'it ended without a word'}; {self.memory}"

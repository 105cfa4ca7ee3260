"""A plan on iPhones and iPads by our app, through devicectl: files copied, app launched and followed, result fetched.

What the app promises is in docs/ios_protocol.md.
"""

from __future__ import annotations

import contextlib
import json
import queue
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.errors import BadInput
from export.bench.android.app import new_run
from export.bench.app_run import STEPS, completed, repeat_line, whole
from export.bench.files import Local, local_file
from export.bench.ios.devicectl import GONE, Apple, Devicectl
from export.bench.outcome import Failed, Interrupted, Outcome, TimedOut, Unplugged, Watch, size, wait_for
from export.bench.plan import Plan
from export.bench.results import result
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
    from export.bench.prompts import make_prompts  # imports torch

    if options.app is not None and not (options.app / "Info.plist").is_file():
        raise BadInput(f"--app {options.app} is no app built by Xcode: it has no Info.plist")
    stop = threading.Event()
    control = Devicectl(stop)
    devices = control.choose(options.serials)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(devices)) as pool:
        prompts = []
        for length, text in zip(plan.prompt_tokens, make_prompts(plan.tokenizer, plan.prompt_tokens), strict=True):
            path = Path(folder, f"prompt-{length}.txt")
            path.write_bytes(text.encode())
            prompts.append(path)
        model = local_file(plan.pte)
        runs = [IosRun(Devicectl(stop), device, plan, model, prompts, options.app, watch) for device in devices]
        futures = [pool.submit(run.outcome) for run in runs]
        wait_for(futures, stop)
        return [future.result() for future in futures]


class IosRun:
    """One run of the app on one device."""

    def __init__(
        self,
        control: Devicectl,
        device: Apple,
        plan: Plan,
        model: Local,
        prompts: Sequence[Path],
        app: Path | None,
        watch: Watch,
    ) -> None:
        self.control, self.device, self.plan, self.model = control, device, plan, model
        self.prompts, self.app, self.watch = prompts, app, watch
        self.name = new_run()
        self.kept: Document | None = None  # the newest result fetched while the app ran
        self.doing = "asked for its apps"
        self.memory = "and nothing was known of its memory"

    def outcome(self) -> Outcome:
        """In a thread of its own: whatever happens here is no concern of other devices."""
        try:
            return Outcome(self.device.name, self._measure())
        except Interrupted:
            sentence = "stopped by Ctrl-C"
            return Outcome(self.device.name, self._finished(sentence), sentence, interrupted=True)
        except BadInput as problem:
            return Outcome(self.device.name, self._finished(str(problem)), str(problem))

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

    def _finished(self, problem: str) -> Document | None:
        """The repeats that finished, as an incomplete result; None where there are none."""
        if self.kept is None or not result.count_repeats(self.kept):
            return None
        return result.incomplete(self._completed(self.kept), problem)

    def _say(self, text: str) -> None:
        self.watch.say(self.device.name, text)

    def _call(self, *arguments: str, timeout_s: float = 60.0, **options: str) -> tuple[bool, str]:
        """Whether a command of devicectl's for this device worked, and its reason if not."""
        flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
        done = self.control.call(*arguments, "--device", self.device.identifier, *flags, timeout_s=timeout_s)
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
        self._say(f"{self.app.name} installed")

    def _copy_files(self) -> None:
        """Model, tokenizer and manifest, unless the device has them, and the prompts."""
        files = [self.model, local_file(self.plan.tokenizer)]
        if (manifest := self.plan.pte.with_suffix(".json")).is_file() and manifest.name != self.plan.tokenizer.name:
            files.append(local_file(manifest))
        for file in files:
            self._copy(file)
        for prompt in self.prompts:
            self._copy_to(prompt, prompt.name, prompt.stat().st_size)

    def _copy(self, file: Local) -> None:
        """A file, and after it a mark with its hash: a mark is only there where a whole file was copied."""
        mark = f"{file.name}.sha256"
        if self._fetch_text(mark) == file.sha256:
            self._say(f"{file.name} is there already")
            return
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder, "mark")
            written.write_text("being copied")
            self._copy_to(written, mark, 0)
            self._say(f"{file.name}: copying {size(file.size_bytes)}")
            self._copy_to(file.path, file.name, file.size_bytes)
            if local_file(file.path).sha256 != file.sha256:
                raise BadInput(f"{file.path} changed while it was copied to {self.device.name}")
            written.write_text(file.sha256)
            self._copy_to(written, mark, 0)

    def _copy_to(self, local: Path, remote: str, size_bytes: int) -> None:
        self.doing = f"given {local.name}"
        worked, reason = self._call(
            "device", "copy", "to", source=str(local), destination=f"Documents/{remote}",
            domain_type="appDataContainer", domain_identifier=BUNDLE,
            timeout_s=60 + size_bytes / SLOWEST_BYTES_PER_S,
        )  # fmt: skip
        if not worked:
            raise BadInput(
                f"{self.device.name}: {local.name} ({size(local.stat().st_size)}) could not be copied: {reason}"
            )

    def _fetch_text(self, remote: str) -> str | None:
        """The text of a file in the app's Documents; None where there is none."""
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder, "fetched")
            worked, _ = self._call(
                "device", "copy", "from", source=f"Documents/{remote}", destination=str(local),
                domain_type="appDataContainer", domain_identifier=BUNDLE,
            )  # fmt: skip
            return local.read_text(encoding="utf-8", errors="replace") if worked and local.is_file() else None

    def _run(self) -> Document:
        plan = self.plan
        self.doing = "launching the app"
        process = self.control.start(
            "device", "process", "launch", "--device", self.device.identifier, "--terminate-existing", "--console",
            BUNDLE,
            "--run", self.name,
            "--model", self.model.name, "--tokenizer", plan.tokenizer.name,
            "--model-sha256", self.model.sha256,
            "--prompt-tokens", ",".join(map(str, plan.prompt_tokens)),
            "--prompt-files", ",".join(prompt.name for prompt in self.prompts),
            "--new-tokens", str(plan.new_tokens), "--repeats", str(plan.repeats), "--warmups", str(plan.warmups),
            "--cooldown", str(plan.cooldown_s), "--load-mode", plan.load_mode,
        )  # fmt: skip
        try:
            self._follow(process)
            return self._fetched()
        finally:
            if process.poll() is None:  # devicectl ends the app with itself, where --console tied them
                process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()

    def _follow(self, process: subprocess.Popen[str]) -> None:
        """Read the app's lines until it says that it is done."""
        step, rest, said = time.monotonic(), 0, ""
        for line in _lines(process):
            if self.control.stop.is_set():
                raise Interrupted
            now = time.monotonic()
            if line is None:
                if now - step > self.plan.timeout_s + rest:
                    raise BadInput(
                        f"{self.device.name}: nothing happened for {self.plan.timeout_s:g} s "
                        f"while it was {self.doing}: time-out"
                    )
                continue
            event = self._event(line)
            if event is None:
                said = line.strip() or said
                continue
            kind = event.get("event")
            if kind in STEPS:
                step, rest = now, self.plan.cooldown_s if kind in ("loaded", "warmup", "repeat") else 0
            if kind == "done":
                return
            if kind == "error":
                raise BadInput(f"{self.device.name}: {event.get('message')}")
            self._heard(str(kind), event)
        raise BadInput(f"{self.device.name}: {self._why_it_ended(said)}")

    def _event(self, line: str) -> dict[str, Any] | None:
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
            return f"iOS killed the app, most likely for its memory, {self.memory}"
        return f"the app crashed: {said[:300] or 'it ended without a word'}; {self.memory}"

    def _heard(self, kind: str, event: dict[str, Any]) -> None:
        plan = self.plan
        match kind:
            case "started":
                self.doing = "measured"
            case "loaded":
                self._say(f"loaded in {event.get('load_ms')} ms")
            case "warmup":
                self._say(f"warm-up {event.get('warmup', 0) + 1} of {plan.warmups}")
            case "memory":
                used, free = event.get("footprint_bytes"), event.get("available_bytes")
                known = [f"{size(used)} of the app" if used else "", f"{size(free)} left to it" if free else ""]
                self.memory = f"last seen: {', '.join(filter(None, known)) or 'nothing'} ({event.get('phase')})"
            case "low_memory":
                self._say(f"iOS warns of low memory, {self.memory}")
            case "repeat":
                self._say(repeat_line(event, plan))
                self._keep()  # now: later the device may be gone

    def _keep(self) -> None:
        """Keep the app's result as it is by now, unless it is none."""
        remote = f"{RESULTS}/{self.name}.json"
        text = self._fetch_text(remote)
        with contextlib.suppress(BadInput):
            if text is not None:
                self.kept = result.parse(text, remote)

    def _fetched(self) -> Document:
        """The complete result; BadInput where it is none."""
        self.doing, remote = "asked for its result", f"{RESULTS}/{self.name}.json"
        text = self._fetch_text(remote)
        if text is None:
            raise BadInput(f"{self.device.name}: the app is done, and {remote} does not exist")
        document = whole(text, self.plan, self.device.name, remote)
        if (there := document["model"]["size_bytes"]) != self.model.size_bytes:
            raise BadInput(
                f"{self.device.name} measured a model of {there} bytes, {self.plan.pte} has {self.model.size_bytes}"
            )
        return self._completed(document)

    def _completed(self, document: Document) -> Document:
        return completed(document, self.plan, self.model, self.device.identifier)


def _lines(process: subprocess.Popen[str]) -> Iterator[str | None]:
    """Lines as they come, and None a few times a second when there is none; ends with the process."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=0.25)
        except queue.Empty:
            yield None
            continue
        if line is None:
            return
        yield line

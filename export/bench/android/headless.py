"""A plan on a device by the Android app: started, followed, its result fetched, checked and completed."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from checkpoints.errors import BadInput
from export.bench.android.app import ABIS, PACKAGE, RESULTS, Apk, Order, install
from export.bench.android.follow import QUIET_S, Follow
from export.bench.android.phone import FOLDER, Phone
from export.bench.android.post_mortem import alive, post_mortem, was_killed
from export.bench.app_run import AppRun, Event
from export.bench.files import Local
from export.bench.model import manifest_facts
from export.bench.outcome import Failed, Interrupted, TimedOut, Unplugged
from export.bench.plan import Plan
from export.bench.results.result import Document

LATE_S = 2.0  # lines of a dead app may still be on their way through the log


@dataclass(frozen=True)
class Files:
    """What a device is given, hashed once for all of them."""

    model: Local
    others: tuple[Local, ...]  # the tokenizer, and the manifest where there is one
    prompts: tuple[Local, ...]


class HeadlessRun(AppRun):
    """One run of the app on one phone."""

    def __init__(self, phone: Phone, plan: Plan, files: Files, apk: Apk | None) -> None:
        super().__init__(plan, files.model, phone.serial, phone.serial)
        self.phone, self.files, self.apk = phone, files, apk
        self.file, self.lines = f"{RESULTS}/{self.name}.json", f"{RESULTS}/{self.name}.progress.jsonl"
        self.pid: int | None = None
        self.begun = False  # then the app is ours to stop
        self.ignore_memory = False
        self.follow: Follow | None = None

    def measure(self, ignore_memory: bool) -> Document:
        """The whole run. Failed with the finished repeats, BadInput where it could not begin."""
        phone, facts = self.phone, manifest_facts(self.plan.pte)
        self.ignore_memory = ignore_memory
        try:
            with phone.told():
                phone.look()
                phone.check_system(ABIS, "the app")
                phone.check_memory(
                    self.model.size_bytes, facts["planned_memory_bytes"] if facts else None, ignore_memory
                )
                install(phone, self.apk)
                phone.sync([self.model, *self.files.others, *self.files.prompts])
                return self._run()
        except BadInput as problem:
            raise Failed(str(problem), self.finished(str(problem))) from None
        finally:
            self._clean()

    def finished(self, problem: str) -> Document | None:
        if self.pid is not None:
            self.phone.device.cleaning = True
            with contextlib.suppress(Unplugged, TimedOut):
                self.keep()
        return super().finished(problem)

    def say(self, text: str) -> None:
        self.phone.say(text)

    def read_result(self) -> str | None:
        return self.phone.device.read(self.file)

    def heard(self, event: Event) -> bool:
        if event.get("event") == "started":
            self.pid, self.phone.doing = event.get("pid"), "measured"
        return super().heard(event)

    def about_error(self) -> str:
        self.begun = False  # it has ended; another run may be under way
        assert self.follow is not None
        killed = was_killed(self.phone.device, self.follow.since, self.pid)
        return f" (the system killed the app to free memory, {self.memory})" if killed else ""

    def _order(self) -> Order:
        plan = self.plan
        extras: dict[str, str | int] = {
            "model": f"{FOLDER}/{self.model.name}",
            "tokenizer": f"{FOLDER}/{plan.tokenizer.name}",
            "model_sha256": self.model.sha256,
            "prompt_tokens": ",".join(map(str, plan.prompt_tokens)),
            "prompt_files": ",".join(f"{FOLDER}/{prompt.name}" for prompt in self.files.prompts),
        }
        if plan.modes != ("text",):  # older apps know no modes
            extras["modes"] = ",".join(plan.modes)
        keys = ("new_tokens", "repeats", "warmups", "cooldown_s", "load_mode")
        if self.ignore_memory:  # the app looks at it too
            extras["ignore_memory"] = 1
        return Order(self.name, extras | {key: getattr(plan, key) for key in keys})

    def _run(self) -> Document:
        phone = self.phone
        phone.doing = self.doing = "starting the app"
        self.follow = Follow(phone.device, self.name, self.lines)
        try:
            self.begun = True
            # With the screen off the app would be in the background.
            phone.device.ask("input keyevent KEYCODE_WAKEUP")
            done = phone.device.shell(self._order().command())
            said = [line.strip() for line in (done.out + done.err).splitlines() if line.strip()]
            if done.code or any(line.startswith("Error") for line in said):
                line = next((line for line in said if line.startswith(("Error", "java."))), f"exit code {done.code}")
                raise BadInput(f"{phone.serial}: the app could not be started: {line[:300]}")
            self._until_done(self.follow)
            phone.doing = "asked for its result"
            return self.fetched(self.file)
        finally:
            self.follow.close()

    def _until_done(self, follow: Follow) -> None:
        """Follow the app to its last line, or to its whole result where no line comes."""
        device, gone = self.phone.device, None
        self.step(rests=False)
        looked = time.monotonic()
        for event in follow.events():
            if device.stop.is_set():
                raise Interrupted
            now = time.monotonic()
            if event is not None:
                looked = now
                if self.heard(event):
                    return
                continue
            self.check_time()
            if gone is not None and now - gone > LATE_S:
                if any(self.heard(event) for event in follow.ask()) or self._result_ended():
                    return
                why = post_mortem(device, follow.since, self.pid, self.memory)
                raise BadInput(f"{self.phone.serial}: {why}")
            if gone is None and now - looked > QUIET_S:
                looked = now
                if self._result_ended():
                    return
                gone = None if alive(device) else time.monotonic()

    def _result_ended(self) -> bool:
        """Whether the result's file is the last, for phones and apps of which no line comes."""
        if self.keep():
            self.step(rests=True)
        return self.ended()

    def _clean(self) -> None:
        device = self.phone.device
        device.cleaning = True
        with contextlib.suppress(Unplugged, TimedOut):
            if self.begun:
                device.shell(f"am force-stop {PACKAGE}", timeout_s=20)
            # A result that did not come over stays, for a person to look at.
            result = [self.file] if self.kept is not None else []
            device.shell(f"rm -f {' '.join([*result, f'{self.file}.partial', self.lines])}", timeout_s=20)
            self.phone.remove([prompt.name for prompt in self.files.prompts])

"""A plan on a device by the Android app: started, followed, its result fetched, checked and completed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from checkpoints.errors import BadInput
from export.bench.android.app import (
    ABIS,
    PACKAGE,
    QUIET_S,
    RESULTS,
    Apk,
    Follow,
    Order,
    alive,
    install,
    new_run,
    post_mortem,
    was_killed,
)
from export.bench.android.phone import FOLDER, Phone
from export.bench.app_run import STEPS, completed, repeat_line, whole
from export.bench.files import Local
from export.bench.outcome import Failed, Interrupted, TimedOut, Unplugged, size
from export.bench.plan import Plan
from export.bench.results import result
from export.bench.results.result import Document

LATE_S = 2.0  # lines of a dead app may still be on their way through the log


class AppRun:
    """One run of the app on one phone."""

    def __init__(
        self,
        phone: Phone,
        plan: Plan,
        model: Local,
        files: Sequence[Local],
        prompts: Sequence[Local],
        apk: Apk | None,
    ) -> None:
        self.phone, self.plan, self.model, self.apk = phone, plan, model, apk
        self.files, self.prompts = files, prompts
        self.name = new_run()
        self.file = f"{RESULTS}/{self.name}.json"
        self.kept: Document | None = None  # the newest result fetched while the app ran
        self.pid: int | None = None
        self.begun = False  # then the app is ours to stop
        self.memory = "and nothing was known of its memory"

    def measure(self, ignore_memory: bool) -> Document:
        """The whole run. Failed with the finished repeats, BadInput where it could not begin."""
        phone, facts = self.phone, result.manifest_facts(self.plan.pte)
        try:
            with phone.told():
                phone.look()
                phone.check_system(ABIS, "the app")
                phone.check_memory(
                    self.model.size_bytes, facts["planned_memory_bytes"] if facts else None, ignore_memory
                )
                install(phone, self.apk)
                phone.sync([*self.files, *self.prompts])
                return self._run()
        except BadInput as problem:
            raise Failed(str(problem), self.finished(str(problem))) from None
        finally:
            self._clean()

    def finished(self, problem: str) -> Document | None:
        """The repeats that finished, as an incomplete result; None where there are none."""
        if self.pid is not None:
            self.phone.device.cleaning = True
            with contextlib.suppress(Unplugged, TimedOut):
                self._fetch()
        if self.kept is None or not result.count_repeats(self.kept):
            return None
        return result.incomplete(self._completed(self.kept), problem)

    def _order(self) -> Order:
        plan = self.plan
        return Order(self.name, {
            "model": f"{FOLDER}/{self.model.name}",
            "tokenizer": f"{FOLDER}/{plan.tokenizer.name}",
            "model_sha256": self.model.sha256,
            "prompt_tokens": ",".join(map(str, plan.prompt_tokens)),
            "prompt_files": ",".join(f"{FOLDER}/{prompt.name}" for prompt in self.prompts),
            "new_tokens": plan.new_tokens, "repeats": plan.repeats, "warmups": plan.warmups,
            "cooldown_s": plan.cooldown_s, "load_mode": plan.load_mode,
        })  # fmt: skip

    def _run(self) -> Document:
        phone = self.phone
        phone.doing = "starting the app"
        follow = Follow(phone.device, self.name)
        try:
            self.begun = True
            phone.device.ask(
                "input keyevent KEYCODE_WAKEUP"
            )  # with the screen off the app would be in the background
            done = phone.device.shell(self._order().command())
            said = [line.strip() for line in (done.out + done.err).splitlines() if line.strip()]
            if done.code or any(line.startswith("Error") for line in said):
                line = next((line for line in said if line.startswith(("Error", "java."))), f"exit code {done.code}")
                raise BadInput(f"{phone.serial}: the app could not be started: {line[:300]}")
            return self._fetched(self._until_done(follow))
        finally:
            follow.close()

    def _until_done(self, follow: Follow) -> str:
        """Follow the app's lines to the last; the path of its result."""
        phone, plan = self.phone, self.plan
        heard = step = time.monotonic()
        rest, gone = 0, None
        for event in follow.events():
            if phone.device.stop.is_set():
                raise Interrupted
            now = time.monotonic()
            if event is None:
                if gone is not None and now - gone > LATE_S:
                    why = post_mortem(phone.device, follow.since, self.pid, self.memory)
                    raise BadInput(f"{phone.serial}: {why}")
                if gone is None and now - heard > QUIET_S:
                    heard = now
                    gone = None if alive(phone.device) else now
                if now - step > plan.timeout_s + rest:
                    raise BadInput(
                        f"{phone.serial}: nothing happened for {plan.timeout_s:g} s "
                        f"while it was {phone.doing}: time-out"
                    )
                continue
            heard = now
            kind = event.get("event")
            if kind in STEPS:
                step, rest = now, plan.cooldown_s if kind in ("loaded", "warmup", "repeat") else 0
            if kind == "done":
                return str(event.get("file"))
            if kind == "error":
                self.begun = False  # it has ended; another run may be under way
                killed = was_killed(phone.device, follow.since, self.pid)
                why = f" (the system killed the app to free memory, {self.memory})" if killed else ""
                raise BadInput(f"{phone.serial}: {event.get('message')}{why}")
            self._heard(str(kind), event)
        raise AssertionError  # events() has no end

    def _heard(self, kind: str, event: dict[str, Any]) -> None:
        phone, plan = self.phone, self.plan
        match kind:
            case "started":
                self.pid = event.get("pid")
                phone.doing = "measured"
            case "loaded":
                phone.say(f"loaded in {event.get('load_ms')} ms")
            case "warmup":
                phone.say(f"warm-up {event.get('warmup', 0) + 1} of {plan.warmups}")
            case "memory":
                pss, free = event.get("pss_bytes"), event.get("available_bytes")
                known = [f"{size(pss)} of the app" if pss else "", f"{size(free)} free" if free else ""]
                self.memory = f"last seen: {', '.join(filter(None, known)) or 'nothing'} ({event.get('phase')})"
            case "low_memory":
                phone.say(f"the system warns of low memory (level {event.get('level')}), {self.memory}")
            case "repeat":
                phone.say(repeat_line(event, plan))
                self._fetch()  # now: later the phone may be unplugged

    def _fetch(self) -> None:
        """Keep the app's result as it is by now, unless it is none."""
        text = self.phone.device.read(self.file)
        with contextlib.suppress(BadInput):
            if text is not None:
                self.kept = result.parse(text, self.file)

    def _fetched(self, file: str) -> Document:
        """The complete result; BadInput where it is none."""
        phone = self.phone
        phone.doing = "asked for its result"
        text = phone.device.read(file)
        if text is None:
            raise BadInput(f"{phone.serial}: the app said that its result is in {file}, which does not exist")
        return self._completed(whole(text, self.plan, phone.serial, file))

    def _completed(self, document: Document) -> Document:
        return completed(document, self.plan, self.model, self.phone.serial)

    def _clean(self) -> None:
        device = self.phone.device
        device.cleaning = True
        with contextlib.suppress(Unplugged, TimedOut):
            if self.begun:
                device.shell(f"am force-stop {PACKAGE}", timeout_s=20)
            device.shell(f"rm -f {self.file} {self.file}.partial", timeout_s=20)
            self.phone.remove([prompt.name for prompt in self.prompts])

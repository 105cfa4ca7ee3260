"""A run of one of our apps on a device: what it says meanwhile, and the result it leaves. The same for all phones.

Knows neither adb nor devicectl: how lines and files come from the device is the subclass's.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from abc import ABC, abstractmethod
from typing import Any

from checkpoints.errors import BadInput
from export.bench.contract import HOT, MEMORY, goes_on
from export.bench.files import Local
from export.bench.model import manifest_facts
from export.bench.plan import Plan
from export.bench.results import result
from export.bench.results.numbers import size
from export.bench.results.result import Document

Event = dict[str, Any]  # a line of docs/app_protocol.md or docs/ios_protocol.md
STEPS = ("started", "loading", "loaded", "warmup", "repeat")  # events that a time-out counts from
RESTS = ("loaded", "warmup", "repeat")  # after these the app may rest


class AppRun(ABC):
    """One run of the app on one device; `device` begins its sentences, `serial` is for the result."""

    left = "free"  # what the app's available_bytes are

    def __init__(self, plan: Plan, model: Local, device: str, serial: str) -> None:
        self.plan, self.model, self.device_name, self.serial = plan, model, device, serial
        self.name = f"bench-{secrets.token_hex(6)}"  # that no other run has
        self.kept: Document | None = None  # the newest result fetched while the app ran
        self.memory = "nothing was known of its memory"
        self.doing = "asked what it is"
        self._step, self._rest = time.monotonic(), 0

    @abstractmethod
    def say(self, text: str) -> None:
        """Tell a person."""

    @abstractmethod
    def read_result(self) -> str | None:
        """The text of the result as it is by now; None where there is none."""

    def heard(self, event: Event) -> bool:
        """Take an event of the app's; True where it was the last. BadInput where that is an error."""
        kind, plan = event.get("event"), self.plan
        if kind in STEPS:
            self.step(rests=kind in RESTS)
        match kind:
            case "done":
                return True
            case "error":
                raise BadInput(f"{self.device_name}: {event.get('message')}{self.about_error()}")
            case "started":
                self.doing = "measured"
            case "loaded":
                self.say(f"loaded in {event.get('load_ms')} ms")
            case "warmup":
                self.say(f"warm-up {event.get('warmup', 0) + 1} of {plan.warmups}")
            case "memory":
                kinds = (metric.place[-1] for metric in MEMORY)
                used, free = next(filter(None, map(event.get, kinds)), None), event.get("available_bytes")
                known = [f"{size(used)} of the app" if used else "", f"{size(free)} {self.left}" if free else ""]
                self.memory = f"last seen: {', '.join(filter(None, known)) or 'nothing'} ({event.get('phase')})"
            case "low_memory":
                self.say(f"the system warns of low memory (level {event.get('level')}), {self.memory}")
            case "repeat":
                heat = event.get("thermal")
                hot = f", hot ({heat})" if heat in HOT else ""
                self.say(plan.repeat_line(event.get("configuration", 0), event.get("repeat", 0), event) + hot)
                self.keep()  # now: later the device may be gone
        return False

    def about_error(self) -> str:
        """What the device adds to the app's own word of an error."""
        return ""

    def step(self, *, rests: bool) -> None:
        """Something happened that a time-out counts from; `rests`: a rest may follow."""
        self._step, self._rest = time.monotonic(), self.plan.cooldown_s if rests else 0

    def check_time(self) -> None:
        """Raise BadInput where nothing happened for too long."""
        if time.monotonic() - self._step > self.plan.timeout_s + self._rest:
            raise BadInput(
                f"{self.device_name}: nothing happened for {self.plan.timeout_s:g} s "
                f"while it was {self.doing}: time-out"
            )

    def keep(self) -> bool:
        """Keep the app's result as it is by now, unless it is none; True where it is another than before."""
        text = self.read_result()
        with contextlib.suppress(BadInput):
            if text is not None:
                before, self.kept = self.kept, result.parse(text, self.name)
                return self.kept != before
        return False

    def ended(self) -> bool:
        """Whether the result that is kept is the last; BadInput where it says that the run failed."""
        if self.kept is None or goes_on(self.kept["problem"]):
            return False
        if self.kept["problem"] is not None:
            raise BadInput(f"{self.device_name}: {self.kept['problem']}")
        return True

    def fetched(self, file: str) -> Document:
        """The complete result; BadInput where it is none, lacks repeats or is of another model."""
        self.doing = "asked for its result"
        text = self.read_result()
        if text is None:
            raise BadInput(f"{self.device_name}: the app said that its result is in {file}, which does not exist")
        document = result.parse(text, f"{self.device_name}: {file}")
        wanted, found = self.plan.repeats * len(self.plan.configurations()), result.count_repeats(document)
        if document["status"] != "complete" or found != wanted:
            raise BadInput(
                f"{self.device_name}: {file} is {document['status']} and has {found} repeats, {wanted} were asked for"
            )
        if (there := document["model"]["size_bytes"]) != self.model.size_bytes:
            raise BadInput(
                f"{self.device_name} measured a model of {there} bytes, {self.plan.pte} has {self.model.size_bytes}"
            )
        self.kept = document
        return self._completed(document)

    def finished(self, problem: str) -> Document | None:
        """The repeats that finished, as an incomplete result; None where there are none."""
        if self.kept is None or not result.count_repeats(self.kept):
            return None
        return result.incomplete(self._completed(self.kept), problem)

    def _completed(self, document: Document) -> Document:
        """With what the app could not know."""
        model = document["model"]
        facts = model["manifest"] or manifest_facts(self.plan.pte)
        return document | {
            "device": document["device"] | {"serial": self.serial},
            "model": model | {"manifest": facts, "sha256": model["sha256"] or self.model.sha256},
        }

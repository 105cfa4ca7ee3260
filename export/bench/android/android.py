"""Android devices over adb, side by side: what the app and the command-line runner have in common."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from checkpoints.errors import BadInput
from export.bench.android.adb import Adb, Device
from export.bench.android.app import Apk, build_apk, read_apk
from export.bench.android.headless import Files, HeadlessRun
from export.bench.android.native import NativeRun, check_binary
from export.bench.android.phone import Phone
from export.bench.files import local_file
from export.bench.model import beside
from export.bench.outcome import Failed, Interrupted, Outcome, TimedOut, Unplugged, Watch, wait_for
from export.bench.plan import Plan

APP_FOLDER = Path(__file__).resolve().parents[3] / "android_app"


@dataclass(frozen=True)
class Android:
    """How to measure on Android devices."""

    serials: tuple[str, ...] = ()
    apk: Path | None = None
    native: Path | None = None
    build: bool = False
    remove: bool = False  # model and tokenizer from the device, at the end
    ignore_memory: bool = False


def measure(plan: Plan, options: Android, watch: Watch) -> list[Outcome]:
    """Measure on every device at once; one outcome each, in the order of the serials.

    BadInput where no device can be used at all. Ctrl-C stops all of them, and what they finished is returned.
    """
    if options.native is not None:
        if options.apk is not None or options.build:
            raise BadInput("--native runs without the app: leave --apk and --build away")
        check_binary(options.native)
    elif options.apk is not None and options.build:
        raise BadInput("--build makes the APK that --apk would give: leave one of them away")
    adb = Adb()
    serials = adb.choose(options.serials)
    path = build_apk(APP_FOLDER) if options.build else options.apk
    apk = None if path is None else read_apk(path)
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(serials)) as pool:
        job = _Job(plan, options, apk, Path(folder), watch)
        futures = [pool.submit(job.outcome, Device(adb, serial, stop)) for serial in serials]
        wait_for(futures, stop)
        return [future.result() for future in futures]


class _Job:
    """What every device gets: the files, hashed once."""

    def __init__(self, plan: Plan, options: Android, apk: Apk | None, folder: Path, watch: Watch) -> None:
        from export.bench.prompts import write_prompts  # imports torch

        self.plan, self.options, self.apk, self.watch = plan, options, apk, watch
        prompts = tuple(map(local_file, write_prompts(plan.tokenizer, plan.prompt_tokens, folder)))
        self.files = Files(local_file(plan.pte), tuple(map(local_file, beside(plan.pte, plan.tokenizer))), prompts)
        self.binary = None if options.native is None else local_file(options.native)

    def outcome(self, device: Device) -> Outcome:
        """One device, in a thread of its own: whatever happens there is no concern of the others'."""
        phone = Phone(device, self.watch)
        run: HeadlessRun | NativeRun
        if self.binary is None:
            run = HeadlessRun(phone, self.plan, self.files, self.apk)
        else:
            run = NativeRun(phone, self.plan, self.files, self.binary)
        try:
            return Outcome(device.serial, run.measure(self.options.ignore_memory))
        except Failed as problem:
            return Outcome(device.serial, problem.document, str(problem))
        except Interrupted:
            return Outcome(device.serial, run.finished("stopped by Ctrl-C"), "stopped by Ctrl-C", interrupted=True)
        finally:
            if self.options.remove:
                self._remove(phone)

    def _remove(self, phone: Phone) -> None:
        phone.device.cleaning = True
        extra = [self.binary] if self.binary else []
        with contextlib.suppress(Unplugged, TimedOut):
            phone.remove([file.name for file in [self.files.model, *self.files.others, *extra]])

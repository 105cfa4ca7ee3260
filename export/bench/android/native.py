"""A plan on a device by ExecuTorch's command-line runner, `llama_main`, for those who have no app to install.

A process for every repeat, so every repeat loads. Its statistics are totals in whole milliseconds, one line beginning
with PyTorchObserver; its memory is read from /proc beside it, on the device.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoints.errors import BadInput
from export.bench.android.headless import Files
from export.bench.android.phone import FOLDER, Phone
from export.bench.files import Local
from export.bench.memory import kib_of, parse_memory, sample, with_peak
from export.bench.model import make_model, manifest_facts
from export.bench.outcome import Failed, Interrupted, TimedOut, Unplugged
from export.bench.plan import Plan
from export.bench.process import lines
from export.bench.results import result
from export.bench.results.numbers import size
from export.bench.results.result import Document

MACHINES = {183: "arm64-v8a", 62: "x86_64", 40: "armeabi-v7a", 3: "x86"}  # e_machine of ELF
MARK = "pocketphi:"
MOMENTS = ("model_load_start_ms", "model_load_end_ms", "inference_start_ms", "prompt_eval_end_ms")
STATISTICS = {"prompt_tokens", "generated_tokens", *MOMENTS, "first_token_ms", "inference_end_ms"}
# Everything of a process in one shell: lines of its memory while it lives, then its exit code and what it printed.
# Memory is what the kernel keeps count of: for PSS it would walk through all pages, in the middle of what is timed.
SCRIPT = """cd {folder} && chmod 755 {binary} || exit 125
{command} >{name}.out 2>{name}.err & p=$!
echo "{mark}pid $p"
while kill -0 $p 2>/dev/null; do
  grep -E "VmHWM:|VmRSS:|RssAnon:|RssFile:|VmSwap:" /proc/$p/status 2>/dev/null || break
  grep MemAvailable: /proc/meminfo
  echo "{mark}sample"
  sleep 0.1
done
wait $p
echo "{mark}exit $?"
cat {name}.out; echo
tail -n 5 {name}.err
rm -f {name}.out {name}.err"""


@dataclass
class Process:
    """What a run of the binary left behind."""

    pid: int | None = None
    code: int | None = None
    samples: list[tuple[float, dict[str, int | None]]] = field(default_factory=list)  # seconds since the start
    highest_rss_bytes: int | None = None
    lines: list[str] = field(default_factory=list)  # after the end


def check_binary(path: Path) -> str:
    """The ABI of a program; BadInput where it is none."""
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError as problem:
        raise BadInput(f"{path} cannot be read: {problem.strerror}") from None
    if head[:4] != b"\x7fELF" or len(head) < 20:
        raise BadInput(f"{path} is no program of Android's: its first bytes are {head[:4]!r}, not b'\\x7fELF'")
    (machine,) = struct.unpack("<H", head[18:20])
    if machine not in MACHINES:
        raise BadInput(f"{path} is for machine {machine} of ELF, which is none of {', '.join(MACHINES.values())}")
    return MACHINES[machine]


class NativeRun:
    """The repeats on one phone."""

    def __init__(self, phone: Phone, plan: Plan, files: Files, binary: Local) -> None:
        self.phone, self.plan, self.files, self.binary = phone, plan, files, binary
        self.model, self.prompts = files.model, files.prompts
        self.repeats: list[list[dict[str, Any]]] = [[] for _ in files.prompts]
        self.device_facts: dict[str, Any] = {}

    def measure(self, ignore_memory: bool) -> Document:
        """The whole run. Failed with the finished repeats, BadInput where it could not begin."""
        phone, facts = self.phone, manifest_facts(self.plan.pte)
        try:
            with phone.told():
                phone.look()
                phone.check_system([check_binary(self.binary.path)], self.binary.name)
                phone.check_memory(
                    self.model.size_bytes, facts["planned_memory_bytes"] if facts else None, ignore_memory
                )
                phone.sync([self.model, *self.files.others, *self.prompts, self.binary])
                self.device_facts = phone.facts()
                phone.doing = "measured"
                self._run()
            return self._document(None)
        except BadInput as problem:
            raise Failed(str(problem), self.finished(str(problem))) from None
        finally:
            phone.device.cleaning = True
            with contextlib.suppress(Unplugged, TimedOut):
                phone.remove([prompt.name for prompt in self.prompts])

    def finished(self, problem: str) -> Document | None:
        """The repeats that finished, as an incomplete result; None where there are none."""
        return self._document(problem) if any(self.repeats) else None

    def _document(self, problem: str | None) -> Document:
        # Whatever was asked for, a process a repeat loads every time.
        configurations = [configuration | {"load_mode": "each"} for configuration in self.plan.configurations()]
        return result.make_document(
            device=self.device_facts,
            build={
                "app": self.binary.name,
                "app_version": f"sha256 {self.binary.sha256[:12]}",
                "engine": "llama_main",
                "executorch": None,
            },
            model=make_model(self.plan.pte, self.plan.tokenizer, self.model.sha256),
            runs=list(zip(configurations, self.repeats, strict=True)),
            problem=problem,
        )

    def _run(self) -> None:
        worked = False
        for index, prompt in enumerate(self.prompts):
            for warmup in range(self.plan.warmups):
                self._process(prompt)
                worked = True
                self.phone.say(f"warm-up {warmup + 1} of {self.plan.warmups}")
            for number in range(self.plan.repeats):
                if worked and self.phone.device.stop.wait(self.plan.cooldown_s):
                    raise Interrupted
                worked = True
                before = self.phone.thermal()
                repeat = self._repeat(self._process(prompt), before)
                self.repeats[index].append(repeat)
                self.phone.say(self.plan.repeat_line(index, number, repeat))

    def _repeat(self, process: Process, before: dict[str, Any]) -> dict[str, Any]:
        took = parse_statistics(process.lines)
        if took is None:
            raise BadInput(
                f"{self.phone.serial}: {self.binary.name} printed no line PyTorchObserver {{…}} of its statistics"
            )
        load_ms = took["model_load_end_ms"] - took["model_load_start_ms"]
        prefill_ms = took["prompt_eval_end_ms"] - took["inference_start_ms"]
        decode_ms = took["inference_end_ms"] - took["prompt_eval_end_ms"]
        new = took["generated_tokens"] + 1  # upstream leaves out the one that prefill gave

        def phase(at_ms: float) -> str:
            return "load" if at_ms < load_ms else "prefill" if at_ms < load_ms + prefill_ms else "decode"

        samples = [sample(1e3 * at, phase(1e3 * at), memory) for at, memory in process.samples]
        memory = with_peak(samples)
        if process.highest_rss_bytes is not None:
            memory["peak"]["rss_bytes"] = max(process.highest_rss_bytes, memory["peak"]["rss_bytes"] or 0)
        measures = {
            "load_ms": load_ms,
            "time_to_first_token_ms": took["first_token_ms"] - took["inference_start_ms"],
            "prefill_tokens_per_s": 1e3 * took["prompt_tokens"] / prefill_ms if prefill_ms > 0 else None,
            "decode_tokens_per_s": 1e3 * (new - 1) / decode_ms if decode_ms > 0 else None,
        }
        return result.make_repeat(
            measures,
            prompt_tokens=took["prompt_tokens"],
            generated_tokens=new,
            new_tokens=self.plan.new_tokens,
            token_ms=[],
            memory=memory,
            thermal={"before": before, "after": self.phone.thermal()},
        )

    def _process(self, prompt: Local) -> Process:
        """Run the binary once, to its end."""
        plan = self.plan
        flags = {
            "model_path": self.model.name,
            "tokenizer_path": plan.tokenizer.name,
            "prompt_file": prompt.name,
            "max_new_tokens": plan.new_tokens,
            "temperature": 0,
        }
        command = shlex.join([f"./{self.binary.name}", *(f"--{name}={value}" for name, value in flags.items())])
        script = SCRIPT.format(
            folder=shlex.quote(FOLDER),
            binary=shlex.quote(self.binary.name),
            command=command,
            name=shlex.quote(Path(prompt.name).stem),
            mark=MARK,
        )
        process = self._watch(script)
        if process.code:
            raise BadInput(f"{self.phone.serial}: {self._failure(process)}")
        return process

    def _watch(self, script: str) -> Process:
        device, process = self.phone.device, Process()
        adb = device.start("shell", script)
        begun, block = time.monotonic(), list[str]()
        try:
            for line in lines(adb):
                if device.stop.is_set():
                    raise Interrupted
                if process.code is None and time.monotonic() - begun > self.plan.timeout_s:
                    raise BadInput(
                        f"{self.phone.serial}: {self.binary.name} took over {self.plan.timeout_s:g} s: time-out"
                    )
                if line is not None:
                    _take(process, line, block, time.monotonic() - begun)
            if process.code is None:
                if not device.connected():
                    raise Unplugged(device.serial)
                raise BadInput(
                    f"{self.phone.serial}: the shell that ran {self.binary.name} ended without its exit code"
                )
            return process
        finally:
            if process.code is None and process.pid is not None:
                device.cleaning = True
                with contextlib.suppress(Unplugged, TimedOut):
                    device.shell(f"kill -9 {process.pid}", timeout_s=10)
                device.cleaning = False
            adb.kill()
            adb.wait()

    def _failure(self, process: Process) -> str:
        last = process.samples[-1][1] if process.samples else {}
        used = last.get("private_bytes") or last.get("rss_bytes") or 0
        seen = f"last seen with {size(used)}, {size(last.get('available_bytes') or 0)} free"
        said = next((line.strip() for line in reversed(process.lines) if line.strip()), "it said nothing")[:300]
        match process.code:
            case 137:
                return f"{self.binary.name} was killed by signal 9, {seen}"
            case 126 | 127:
                return f"{self.binary.name} cannot be run on this phone: {said}"
            case code if code is not None and code > 128:
                return f"{self.binary.name} crashed with signal {code - 128}: {said}"
            case code:
                return f"{self.binary.name} ended with exit code {code}: {said}"


def _take(process: Process, line: str, block: list[str], at: float) -> None:
    """One line of SCRIPT's output."""
    if process.code is not None:
        process.lines.append(line)
    elif line.startswith(f"{MARK}pid "):
        process.pid = int(line.split()[1])
    elif line.startswith(f"{MARK}exit "):
        process.code = int(line.split()[1])
    elif line == f"{MARK}sample":
        text = "\n".join(block)
        process.samples.append((at, parse_memory(text)))
        process.highest_rss_bytes = kib_of(text, "VmHWM") or process.highest_rss_bytes
        block.clear()
    else:
        block.append(line)


def parse_statistics(lines: Sequence[str]) -> dict[str, Any] | None:
    """The statistics that the binary prints at its end; None where no line has them all."""
    for line in reversed(lines):
        if match := re.search(r"PyTorchObserver (\{.*\})", line):
            with contextlib.suppress(ValueError):
                found = json.loads(match[1])
                if found.keys() >= STATISTICS:
                    return dict(found)
    return None

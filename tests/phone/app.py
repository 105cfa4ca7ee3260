"""A stand-in for the Android app, which keeps to docs/app_protocol.md: intent extras in, log lines and a result out.

It measures nothing: its numbers are made from its own clock, and prompts are counted by words. With "socket" in
/phone/behaviour.json it asks the tests' process on the host, which runs the pushed files with the wheel's runner, and
passes those numbers on. Further keys there make it go wrong, at the repeat of that number over all configurations:
crash, native_crash, killed (for memory), brought_back (after that), vanish (listed: for this reason, in the system's
list of exits, described so), stall, error, hot. And rubbish (what kind), slow (seconds a repeat), beat_s, old
(without the file of its lines).
"""

import json
import os
import signal
import socket
import statistics
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, "/usr/lib/phone")
import system

PACKAGE = "org.pocketphi.bench"
RESULTS = Path(f"/sdcard/Android/data/{PACKAGE}/files/results")
TAG = "Pocketphi"
COOL = {"status": "none", "battery_celsius": 30.4, "battery_percent": 81, "low_power_mode": False}
KEYS = ("pss_bytes", "rss_bytes", "private_dirty_bytes", "native_heap_bytes", "footprint_bytes", "available_bytes")


def summary_of(values: list) -> dict | None:
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    quarters = statistics.quantiles(known, n=4, method="inclusive") if len(known) > 1 else known * 3
    return dict(zip(("min", "p25", "median", "p75", "max"), (known[0], *quarters, known[-1]), strict=True))


def summarise(repeats: list) -> dict:
    good = [repeat for repeat in repeats if repeat["stop_reason"] != "error"]
    names = ("load_ms", "time_to_first_token_ms", "prefill_tokens_per_s", "decode_tokens_per_s")
    summary = {name: summary_of([repeat[name] for repeat in good]) for name in names}
    summary["token_ms"] = summary_of([ms for repeat in good for ms in repeat["token_ms"]])
    for name in ("pss_bytes", "rss_bytes", "private_dirty_bytes", "footprint_bytes"):
        summary[f"peak_{name}"] = summary_of([repeat["memory"]["peak"][name] for repeat in good])
    return summary


class App:
    def __init__(self, extras: dict) -> None:
        self.extras, self.behaviour = extras, system.state("behaviour.json")
        self.run, self.count, self.phase = extras["run"], 0, "idle"
        self.file, self.lines = RESULTS / f"{self.run}.json", RESULTS / f"{self.run}.progress.jsonl"
        self.lengths = [int(part) for part in extras["prompt_tokens"].split(",")]
        modes = extras.get("modes", "text").split(",")
        self.runs = [(length, "text") for length in self.lengths if "text" in modes]
        self.runs += [(self.lengths[0], mode) for mode in modes if mode != "text"]
        self.repeats: list[list] = [[] for _ in self.runs]
        self.memory = dict.fromkeys(KEYS) | {"pss_bytes": 900_000_000, "rss_bytes": 1_000_000_000}
        self.memory |= {"private_dirty_bytes": 800_000_000, "available_bytes": 2_000_000_000}

    def tell(self, event: str, **more: object) -> None:
        line = json.dumps({"run": self.run, "event": event, **more})
        system.log("I", TAG, line)
        if not self.behaviour.get("old"):
            RESULTS.mkdir(parents=True, exist_ok=True)
            with self.lines.open("a") as file:
                file.write(line + "\n")

    def beat(self) -> None:
        while True:
            memory = {key: self.memory[key] for key in ("pss_bytes", "available_bytes")}
            self.tell("memory", **memory, phase=self.phase)
            time.sleep(self.behaviour.get("beat_s", 2))

    def main(self) -> None:
        self.tell("started", app_version="0.1.0", pid=os.getpid())
        for key in ("model", "tokenizer"):
            if not Path(self.extras[key]).is_file():
                self.tell("error", message=f"{self.extras[key]} does not exist")
                return
        threading.Thread(target=self.beat, daemon=True).start()
        self.tell("loading")
        if path := self.behaviour.get("socket"):
            self.real(path)
        else:
            self.made_up()
        self.write("complete")
        if self.behaviour.get("rubbish") == "file":
            self.file.write_text('{"schema": "pocketphi-result/1", "created":')
        self.tell("done", file=str(self.file))

    def made_up(self) -> None:
        time.sleep(0.05)
        self.tell("loaded", load_ms=50)
        texts = [Path(path).read_text() for path in self.extras["prompt_files"].split(",")]
        assert len(texts) == len(self.lengths) and all(texts)
        for index, (length, mode) in enumerate(self.runs):
            for warmup in range(self.extras["warmups"]):
                self.tell("warmup", configuration=index, warmup=warmup)
            for number in range(self.extras["repeats"]):
                if self.count:
                    time.sleep(self.extras["cooldown_s"])
                self.count += 1
                self.fail()
                self.keep(index, number, self.measured(length, mode))

    def measured(self, length: int, mode: str) -> dict:
        new, begun = self.extras["new_tokens"], time.monotonic()
        self.phase = "prefill"
        time.sleep(self.behaviour.get("slow", 0.02) / 2)
        first = time.monotonic()
        self.phase = "decode"
        time.sleep(self.behaviour.get("slow", 0.02) / 2)
        rest = time.monotonic() - first
        self.phase = "idle"
        hot = self.behaviour.get("hot") == self.count
        after = COOL | ({"status": "severe", "battery_celsius": 44.1} if hot else {})
        sample = {"at_ms": 1e3 * (first - begun), "phase": "decode", "memory": self.memory}
        return {
            "load_ms": 50 if self.count == 1 else None, "prompt_tokens": length, "generated_tokens": new,
            "time_to_first_token_ms": 1e3 * (first - begun), "prefill_tokens_per_s": length / (first - begun),
            "decode_tokens_per_s": (new - 1) / rest, "token_ms": [1e3 * rest / (new - 1)] * (new - 1),
            "memory": {"samples": [sample], "peak": self.memory}, "thermal": {"before": COOL, "after": after},
            "throttled": hot, "low_memory_events": 0, "stop_reason": "new_tokens", "notes": [],
            **({} if mode == "text" else {"encode_ms": 40, "encoded_bytes": 900_000_000, "media_tokens": 545}),
        }  # fmt: skip

    def real(self, path: str) -> None:
        """The same, from the host's process at the other end of a Unix socket."""
        with socket.socket(socket.AF_UNIX) as host:
            host.connect(path)
            host.sendall((json.dumps(self.extras) + "\n").encode())
            for line in host.makefile():
                event = json.loads(line)
                if "problem" in event:
                    self.tell("error", message=event["problem"])
                    sys.exit(1)
                self.keep(event["configuration"], event["number"], event["repeat"])

    def keep(self, index: int, number: int, repeat: dict) -> None:
        self.repeats[index].append(repeat)
        self.write("incomplete")
        peak, thermal = repeat["memory"]["peak"], repeat["thermal"]["after"]["status"]
        self.tell(
            "repeat", configuration=index, repeat=number, thermal=thermal, peak_pss_bytes=peak["pss_bytes"],
            available_bytes=peak["available_bytes"], decode_tokens_per_s=repeat["decode_tokens_per_s"],
            prefill_tokens_per_s=repeat["prefill_tokens_per_s"],
            time_to_first_token_ms=repeat["time_to_first_token_ms"],
        )  # fmt: skip

    def fail(self) -> None:
        """Whatever the behaviour wants of this repeat."""
        due = {name for name, count in self.behaviour.items() if count == self.count and name != "hot"}
        me = os.getpid()
        if "crash" in due:
            system.log("E", "AndroidRuntime", "FATAL EXCEPTION: bench\nProcess: com.example.other, PID: 77")
            system.log("E", "AndroidRuntime", "java.lang.Error: another app's")
            lines = ["FATAL EXCEPTION: bench", f"Process: {PACKAGE}, PID: {me}"]
            lines += ["java.lang.IllegalStateException: the engine was closed"]
            lines += ["\tat org.pocketphi.bench.LlmEngine.generate(LlmEngine.kt:41)", "\tat java.lang.Thread.run"]
            system.log("E", "AndroidRuntime", "\n".join(lines), me)
            os.kill(me, signal.SIGKILL)
        if "native_crash" in due:
            system.log("F", "libc", f"Fatal signal 11 (SIGSEGV), code 1 (SEGV_MAPERR) in tid {me}, pid {me} (bench)")
            system.log("F", "DEBUG", "      #00 pc 00000000001c2d40  libexecutorch.so (xnn_run+64)")
            os.kill(me, signal.SIGSEGV)
        if "killed" in due:
            system.log(
                "I", "lowmemorykiller", f"Kill '{PACKAGE}' ({me}), uid 10234, oom_score_adj 0 to free 900000kB"
            )
            system.log("I", "ActivityManager", f"Process {PACKAGE} (pid {me}) has died: fg TOP")
            os.kill(me, signal.SIGKILL)
        if "brought_back" in due:
            system.log(
                "I", "lowmemorykiller", f"Kill '{PACKAGE}' ({me}), uid 10234, oom_score_adj 0 to free 900000kB"
            )
            self.tell("error", message="The system ended the app during the run.")
            os.kill(me, signal.SIGKILL)
        if "vanish" in due:
            if reason := self.behaviour.get("listed"):
                described = self.behaviour.get("described")
                record = f"ApplicationExitInfo #0:\n pid={me} reason=3 ({reason})\n description={described}\n"
                older = "ApplicationExitInfo #1:\n pid=1 reason=13 (OTHER)\n description=MemoryLimiter:AnonSwap\n"
                (system.STATE / "exits.txt").write_text(record + older)
            os.kill(me, signal.SIGKILL)
        if "stall" in due:
            time.sleep(3600)
        if "error" in due:
            problem = "The model could not be run: the memory is not enough (code 0x21)."
            self.write("incomplete", problem)
            self.tell("error", message=problem)
            sys.exit(1)
        if "low_memory" in due:
            self.tell("low_memory", level="running_critical")

    def write(self, status: str, problem: str | None = None) -> None:
        facts, wanted = self.extras, ("new_tokens", "repeats", "warmups", "cooldown_s", "load_mode")
        model = Path(facts["model"])
        done, count = sum(map(len, self.repeats)), facts["repeats"] * len(self.runs)
        going_on = f"The run goes on: {done} of {count} repeats are done."
        document = {
            "schema": "pocketphi-result/1", "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "status": status, "problem": None if status == "complete" else problem or going_on,
            "device": {
                "kind": "android", "model": "Stand-in Phone", "soc": None, "ram_bytes": 8_000_000_000,
                "os": "Android", "os_version": "15", "abi": "x86_64", "cores": 8, "serial": None,
            },
            "build": {"app": PACKAGE, "app_version": "0.1.0", "engine": "stand-in", "executorch": None},
            "model": {
                "file": model.name, "size_bytes": model.stat().st_size, "sha256": facts.get("model_sha256"),
                "tokenizer": Path(facts["tokenizer"]).name, "manifest": None,
            },
            "runs": [
                {
                    "configuration": {
                        "prompt_tokens": length, "mode": mode, **{key: facts[key] for key in wanted}
                    },
                    "repeats": repeats, "summary": summarise(repeats),
                }
                for (length, mode), repeats in zip(self.runs, self.repeats, strict=True)
            ],
        }  # fmt: skip
        if self.behaviour.get("rubbish") == "schema" and status == "complete":
            document["runs"][0]["repeats"][0]["load_ms"] = "fast"
        if self.behaviour.get("rubbish") == "few" and status == "complete":
            document["runs"][0]["repeats"].pop()
        RESULTS.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_name(self.file.name + ".partial")
        partial.write_text("{" if self.behaviour.get("rubbish") == "always" else json.dumps(document))
        partial.rename(self.file)


if __name__ == "__main__":
    App(json.loads(sys.argv[1])).main()

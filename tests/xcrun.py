"""Stands in for `xcrun devicectl` and for our app on an iPhone: a folder is the phone's Documents.

Started as a program called xcrun. The folder $FAKE_PHONE holds `phone.json` (what the phone is, and what goes wrong),
`Documents/`, and `calls.jsonl`, a line for every call. devicectl's own behaviour is taken from Xcode 16's help and
from what programs that drive it rely on; it was never compared with a real one.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

PHONE = Path(os.environ["FAKE_PHONE"])
STATE: dict[str, Any] = json.loads((PHONE / "phone.json").read_text())
FAULT = STATE.get("fault", "")


def flags(arguments: list[str]) -> dict[str, str]:
    """`--name value` pairs."""
    found = {}
    for at, word in enumerate(arguments):
        if word.startswith("--"):
            found[word[2:]] = arguments[at + 1] if at + 1 < len(arguments) else ""
    return found


def answer(given: dict[str, str], result: dict[str, Any]) -> None:
    Path(given["json-output"]).write_text(json.dumps({"info": {"outcome": "success"}, "result": result}))
    raise SystemExit(0)


def fail(given: dict[str, str], sentence: str) -> None:
    error = {"userInfo": {"NSLocalizedDescription": {"string": "The operation failed."}}}
    error["userInfo"]["NSUnderlyingError"] = {  # type: ignore[assignment]
        "error": {"userInfo": {"NSLocalizedDescription": {"string": sentence}}}
    }
    if "json-output" in given:
        Path(given["json-output"]).write_text(json.dumps({"info": {"outcome": "failed"}, "error": error}))
    print(f"ERROR: {sentence}", file=sys.stderr)
    raise SystemExit(1)


def copy(arguments: list[str], given: dict[str, str]) -> None:
    assert given["domain-type"] == "appDataContainer" and given["domain-identifier"] == "org.pocketphi.bench"
    if arguments[2] == "from":
        source = PHONE / given["source"]
        if not source.is_file():
            fail(given, f"{given['source']} does not exist")
        shutil.copyfile(source, given["destination"])
        answer(given, {})
    target = PHONE / given["destination"]
    if FAULT == "no space" and target.suffix == ".pte":
        fail(given, "No space left on device")
    if FAULT == "unplugged while copied" and target.suffix == ".pte":
        fail(given, "The device disconnected immediately after connecting.")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(given["source"], target)
    if FAULT == "file changes" and target.suffix == ".pte":
        with Path(given["source"]).open("ab") as file:
            file.write(b"more")
    answer(given, {})


def say(run: str, event: str, **rest: Any) -> None:
    print(json.dumps({"run": run, "event": event, **rest}), flush=True)


def launch(given: dict[str, str]) -> None:
    """The app: follows its launch arguments as docs/ios_protocol.md says."""
    from export.bench.results import result  # only now: it takes a second

    run = given["run"]
    if FAULT == "locked":
        print("ERROR: Unable to launch org.pocketphi.bench because the device was not unlocked")
        raise SystemExit(1)
    model, tokenizer = PHONE / "Documents" / given["model"], PHONE / "Documents" / given["tokenizer"]
    say(run, "started", app_version="1.0", pid=77)
    if not tokenizer.is_file():
        say(run, "error", message=f"{given['tokenizer']} is not there")
        raise SystemExit(1)
    say(run, "loading")
    say(run, "loaded", load_ms=812.5)
    lengths = [int(length) for length in given["prompt-tokens"].split(",")]
    for path, length in zip(given["prompt-files"].split(","), lengths, strict=True):
        assert len((PHONE / "Documents" / path).read_text()) >= length, "a token is a character at least"
    count, new = int(given["repeats"]), int(given["new-tokens"])
    thermal = {"status": "none", "battery_celsius": None, "battery_percent": 80.0, "low_power_mode": False}
    hot = thermal | {"status": "severe"}
    nothing = dict.fromkeys(
        ("pss_bytes", "rss_bytes", "private_dirty_bytes", "native_heap_bytes", "footprint_bytes", "available_bytes")
    )
    memory: dict[str, Any] = nothing | {"footprint_bytes": 2_900_000_000, "available_bytes": 400_000_000}
    modes = given.get("modes", "text").split(",")
    asked = [{"prompt_tokens": length} for length in lengths if "text" in modes]
    asked += [{"prompt_tokens": lengths[0], "mode": mode} for mode in modes if mode != "text"]
    configurations = [
        one | {"new_tokens": new, "repeats": count, "warmups": int(given["warmups"]),
         "cooldown_s": float(given["cooldown"]), "load_mode": given["load-mode"]} for one in asked
    ]  # fmt: skip
    runs: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
        (configuration, []) for configuration in configurations
    ]

    def write(problem: str | None) -> None:
        document = result.make_document(
            device={"kind": "ios", "model": "iPhone16,1", "soc": "A17 Pro", "ram_bytes": 8 << 30, "os": "iOS",
                    "os_version": "18.1", "abi": "arm64", "cores": 6, "serial": None},
            build={"app": "org.pocketphi.bench", "app_version": "1.0", "engine": "pocketphi", "executorch": "1.5.1"},
            model={"file": model.name, "size_bytes": model.stat().st_size, "sha256": given.get("model-sha256"),
                   "tokenizer": tokenizer.name, "manifest": None},
            runs=runs, problem=problem,
        )  # fmt: skip
        folder = PHONE / "Documents" / "results"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{run}.json").write_text(json.dumps(document) if FAULT != "rubbish" else "{")

    say(run, "memory", footprint_bytes=2_900_000_000, available_bytes=400_000_000, phase="decode")
    for at, (_, repeats) in enumerate(runs):
        for number in range(count):
            ms = 50.0 + number
            measures = {
                "load_ms": 812.5 if at == number == 0 else None,
                "time_to_first_token_ms": 400.0,
                "prefill_tokens_per_s": runs[at][0]["prompt_tokens"] / 0.4,
                "decode_tokens_per_s": 1000 / ms,
            }
            repeats.append(
                result.make_repeat(
                    measures,
                    prompt_tokens=lengths[at],
                    generated_tokens=new,
                    new_tokens=new,
                    token_ms=[ms] * (new - 1),
                    memory={"samples": [{"at_ms": 1.0, "phase": "decode", "memory": memory}], "peak": memory},
                    thermal={"before": thermal, "after": hot if FAULT == "hot" else thermal},
                )
            )
            write("the run has not ended")
            say(run, "repeat", configuration=at, repeat=number, prefill_tokens_per_s=lengths[at] / 0.4,
                decode_tokens_per_s=1000 / ms, time_to_first_token_ms=400.0, peak_footprint_bytes=2_900_000_000,
                available_bytes=400_000_000, thermal="severe" if FAULT == "hot" else "none")  # fmt: skip
            time.sleep(STATE.get("repeat_s", 0))
            if FAULT == "killed":
                print("App terminated due to signal 9.", flush=True)
                raise SystemExit(1)
            if FAULT == "crashed":
                print("App terminated due to signal 11.", flush=True)
                raise SystemExit(1)
            if FAULT == "unplugged":
                print("ERROR: The connection to the device was lost.", flush=True)
                raise SystemExit(1)
            if FAULT == "stalled":
                time.sleep(600)
            if FAULT == "error":
                say(run, "error", message="The runner failed: out of memory.")
                raise SystemExit(1)
    write(None)
    say(run, "done", file=f"Documents/results/{run}.json")


def main() -> None:
    arguments = sys.argv[1:]
    with (PHONE / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    assert arguments.pop(0) == "devicectl"
    given = flags(arguments)
    match arguments[:3]:
        case ["list", "devices", *_]:
            answer(given, {"devices": STATE["devices"]})
        case ["device", "info", "apps"]:
            app = {"bundleIdentifier": "org.pocketphi.bench", "version": "1.0"}
            answer(given, {"apps": [app] if STATE.get("installed", True) else []})
        case ["device", "install", "app"]:
            if FAULT == "unsigned":
                fail(given, "The code signature of this app is not valid.")
            answer(given, {})
        case ["device", "copy", _]:
            copy(arguments, given)
        case ["device", "process", "launch"]:
            signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
            launch(given)
        case _:
            raise SystemExit(f"unknown: {arguments}")


if __name__ == "__main__":
    main()

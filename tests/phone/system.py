#!/usr/bin/python3
"""Stand-ins for Android's own programs, called by their names inside the phone's folder.

Each does what its original does for the arguments that the benchmark runner uses, on the state in /phone: props.json,
packages.json, log.jsonl, battery.json, exits.txt. Anything else is refused with exit code 64, so that a test notices.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

STATE = Path("/phone")
LETTERS = "VDIWEF"


def state(name: str) -> dict:
    path = STATE / name
    return json.loads(path.read_text()) if path.exists() else {}


def log(level: str, tag: str, message: str, pid: int | None = None) -> None:
    """A line of the system's log."""
    entry = {"at": time.time(), "level": level, "tag": tag, "pid": pid or os.getpid(), "message": message}
    with (STATE / "log.jsonl").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(entry) + "\n")


def refuse(arguments: list[str]) -> int:
    print(f"the phone's stand-in for {Path(sys.argv[0]).name} knows no {arguments}", file=sys.stderr)
    return 64


def getprop(arguments: list[str]) -> int:
    print(state("props.json").get(arguments[0], ""))
    return 0


def settings(arguments: list[str]) -> int:
    if arguments != ["get", "global", "low_power"]:
        return refuse(arguments)
    print("0")
    return 0


def press(arguments: list[str]) -> int:
    """`input keyevent KEYCODE_WAKEUP`."""
    if arguments != ["keyevent", "KEYCODE_WAKEUP"]:
        return refuse(arguments)
    log("I", "PowerManagerService", "Waking up from Asleep")
    return 0


def pm(arguments: list[str]) -> int:
    """`pm install -r FILE`; an APK here is a zip with stand-in.json in it."""
    if arguments[0] != "install":
        return refuse(arguments)
    with zipfile.ZipFile(arguments[-1]) as apk:
        info = json.loads(apk.read("stand-in.json"))
    if problem := info.get("failure"):
        print(f"Failure [{problem}]")
        return 1
    packages = state("packages.json") | {info["package"]: info}
    (STATE / "packages.json").write_text(json.dumps(packages))
    print("Success")
    return 0


def dumpsys(arguments: list[str]) -> int:
    match arguments:
        case ["package", name]:
            if info := state("packages.json").get(name):
                print(f"Packages:\n  Package [{name}] (52af8c1):\n    versionCode={info['version_code']} minSdk=26")
                print(f"    versionName={info['version_name']}")
                for user in (0, 10):
                    has = str(user in info.get("users", (0, 10))).lower()
                    print(f"    User {user}: ceDataInode=0 installed={has} hidden=false suspended=false")
            else:
                print(f"Unable to find package: {name}")
        case ["battery"]:
            known = {"level": 81, "scale": 100, "temperature": 304} | state("battery.json")
            print("Current Battery Service state:")
            for key in ("level", "scale", "temperature"):
                print(f"  {key}: {known[key]}")
        case ["thermalservice"]:
            print(f"IsStatusOverride: false\nThermal Status: {state('battery.json').get('thermal', 0)}")
        case ["activity", "exit-info", _]:
            path = STATE / "exits.txt"
            print(path.read_text() if path.exists() else "")
        case _:
            return refuse(arguments)
    return 0


def am(arguments: list[str]) -> int:
    if arguments[0] == "force-stop":
        log("I", "ActivityManager", f"Force stopping {arguments[1]}")
        for pid in subprocess.run(["pidof", arguments[1]], capture_output=True, text=True).stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        return 0
    if arguments == ["get-current-user"]:
        print("0")
        return 0
    if arguments[:3] != ["start", "-W", "-n"]:
        return refuse(arguments)
    component, rest, extras = arguments[3], arguments[4:], {}
    package = component.split("/")[0]
    while rest:
        kind, key, value, *rest = rest
        if kind not in ("--es", "--ei"):
            return refuse(arguments)
        extras[key] = int(value) if kind == "--ei" else value
    print(f"Starting: Intent {{ cmp={component} }}")
    if 0 not in state("packages.json").get(package, {"users": ()}).get("users", (0, 10)):
        print(f"Error type 3\nError: Activity class {{{component}}} does not exist.")
        return 1
    # The app outlives the shell that asked for it, and its process is called by its package.
    subprocess.Popen(
        [package, "/usr/lib/phone/app.py", json.dumps(extras)], executable="/usr/bin/python3",
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=(STATE / "app.err").open("a"),
        start_new_session=True,
    )  # fmt: skip
    print(f"Status: ok\nActivity: {component}\nComplete")
    return 0


def logcat(arguments: list[str]) -> int:
    """-d, -v raw or brief, -T "MM-DD HH:MM:SS.mmm", -s TAG:LEVEL; follows without -d.

    As /phone/behaviour.json wants it, "ends" at once or is "off".
    """
    kind = state("behaviour.json").get("logcat")
    if kind == "ends":
        print("logcat: Unable to open log device", file=sys.stderr)
        return 1
    dump, form, since, wanted = False, "threadtime", 0.0, None
    rest = list(arguments)
    while rest:
        match rest.pop(0):
            case "-d":
                dump = True
            case "-v":
                form = rest.pop(0)
            case "-T":
                year = time.strftime("%Y-")
                since = time.mktime(time.strptime(year + rest.pop(0).split(".")[0], "%Y-%m-%d %H:%M:%S"))
            case "-s":
                wanted = rest.pop(0).split(":")
            case other:
                return refuse([other])
    path = STATE / "log.jsonl"
    path.touch()
    print("--------- beginning of main", flush=True)
    with path.open() as file:
        while True:
            line = file.readline()
            if not line.endswith("\n"):
                if dump:
                    return 0
                if os.getppid() == 1:  # adbd is gone
                    return 0
                time.sleep(0.02)
                continue
            if kind == "off":
                continue
            entry = json.loads(line)
            level = LETTERS.index(entry["level"])
            if entry["at"] < since or (
                wanted and (entry["tag"], True) != (wanted[0], level >= LETTERS.index(wanted[1]))
            ):
                continue
            front = "" if form == "raw" else f"{entry['level']}/{entry['tag']}({entry['pid']:5d}): "
            for part in entry["message"].splitlines() or [""]:
                print(front + part, flush=True)


PROGRAMS = {
    "getprop": getprop, "settings": settings, "input": press, "pm": pm, "dumpsys": dumpsys, "am": am, "logcat": logcat
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(PROGRAMS[Path(sys.argv[0]).name](sys.argv[1:]))

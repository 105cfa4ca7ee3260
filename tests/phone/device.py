"""Phones for adb: each a private copy of the Debian folder, in a network of its own, with the real adbd."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from tests.network import changing

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("POCKETPHI_TRIXIE", "/var/cache/pocketphi/trixie"))
ADBD = "/usr/lib/android-sdk/platform-tools/adbd"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGE = "org.pocketphi.bench"
PROPS = {
    "ro.build.version.sdk": "35", "ro.build.version.release": "15", "ro.product.cpu.abilist": "x86_64,arm64-v8a",
    "ro.product.manufacturer": "Debian", "ro.product.model": "Trixie Phone", "ro.soc.model": "",
    "ro.board.platform": "veth",
}  # fmt: skip
MEMINFO = "MemTotal:       {total} kB\nMemFree:         100000 kB\nMemAvailable:   {free} kB\n"
# Everything that is mounted or started in here goes with the first process, whatever becomes of the tests.
START = """
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$UPPER,workdir=$WORK" "$ROOT" &&
mount -t proc proc "$ROOT/proc" && mount --rbind /dev "$ROOT/dev" &&
mount --bind "$SHARED" "$ROOT/phone" && mount --bind "$SHARED/meminfo" "$ROOT/proc/meminfo" &&
mount --bind "$SHARED/boot_id" "$ROOT/proc/sys/kernel/random/boot_id" &&
mount -t tmpfs -o "size=$SPACE" tmpfs "$ROOT/data/local/tmp" &&
exec chroot "$ROOT" /bin/sh -c "$ADBD & while :; do sleep 1; done"
"""


def missing_tools() -> list[str]:
    """What `tests/install_tools phone` would bring, and root."""
    missing = [name for name in ("adb", "ip", "tc", "unshare", "nsenter") if shutil.which(name) is None]
    if not (FOLDER / ".whole").exists():
        missing.append("a trixie folder with adbd")
    if os.geteuid():
        missing.append("root")
    if not missing and subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"]).returncode:
        missing.append("the right to make namespaces")
    return missing


class Phone:
    """One phone, plugged in from the start. `shared` is its /phone."""

    def __init__(
        self, folder: Path, space: str = "256m", memory_kb: tuple[int, int] = (8_000_000, 4_000_000)
    ) -> None:
        self.folder, self.shared = folder, folder / "shared"
        for name in ("upper", "work", "root", "shared"):
            (folder / name).mkdir(parents=True)
        self._fill()
        self.shared.joinpath("meminfo").write_text(MEMINFO.format(total=memory_kb[0], free=memory_kb[1]))
        self.shared.joinpath("boot_id").write_text(f"{uuid.uuid4()}\n")
        self.index = self._network()
        self.set("props.json", PROPS | {"ro.serialno": f"PHONE{self.index}"})
        self.serial = f"10.213.{self.index}.2:5555"
        self.other_serial = f"10.214.{self.index}.2:5555"  # of the same phone, on another line
        environment = {
            "PATH": PATH, "LOWER": str(FOLDER), "UPPER": str(folder / "upper"), "WORK": str(folder / "work"),
            "SPACE": space, "ROOT": str(folder / "root"), "SHARED": str(self.shared), "ADBD": ADBD,
        }  # fmt: skip
        self._outer = subprocess.Popen(
            ["ip", "netns", "exec", self.network, "unshare", "--mount", "--pid", "--fork", "--kill-child",
             "--propagation", "private", "sh", "-c", START],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=(folder / "stderr").open("w"), start_new_session=True,
        )  # fmt: skip
        self.connect()

    def _fill(self) -> None:
        """What makes a Debian folder a phone."""
        upper = self.folder / "upper"
        for path in ("system/bin", "data/local/tmp", "sdcard", "usr/lib/phone", "usr/bin", "phone"):
            (upper / path).mkdir(parents=True, exist_ok=True)
        (upper / "system/bin/sh").symlink_to("/bin/sh")
        for name in ("system.py", "app.py"):
            shutil.copyfile(HERE / name, upper / "usr/lib/phone" / name)
        (upper / "usr/lib/phone/system.py").chmod(0o755)
        for name in ("getprop", "settings", "input", "pm", "dumpsys", "am", "logcat"):
            (upper / "usr/bin" / name).symlink_to("/usr/lib/phone/system.py")

    def _network(self) -> int:
        """A namespace and a pair of devices to it; the first number that nobody has."""
        for index in range(1, 250):  # those of tests that were killed stay behind
            self.network = f"pocketphi{index}"
            made = subprocess.run(["ip", "netns", "add", self.network], capture_output=True, text=True)
            if made.returncode == 0:
                break
        else:
            raise RuntimeError(f"no network namespace could be made: {made.stderr}")
        with changing():
            self._join(index)
        return index

    def _join(self, index: int) -> None:
        here, there = f"pphi{index}", f"pphi{index}p"
        for line in (
            f"ip link add {here} type veth peer name {there} netns {self.network}",
            f"ip link set {here} addrgenmode none",  # else an address of IPv6 comes by itself, seconds later
            f"ip addr add 10.213.{index}.1/30 dev {here}",
            f"ip link set {here} up",
            f"ip -n {self.network} addr add 10.213.{index}.2/30 dev {there}",
            f"ip addr add 10.214.{index}.1/30 dev {here}",
            f"ip -n {self.network} addr add 10.214.{index}.2/30 dev {there}",
            f"ip -n {self.network} link set {there} up",
            f"ip -n {self.network} link set lo up",
        ):
            subprocess.run(line.split(), check=True, capture_output=True)

    def connect(self) -> None:
        """Plug it in."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            adb("connect", self.serial)
            if adb("-s", self.serial, "get-state").stdout.strip() == "device":
                return
            if self._outer.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"the phone did not start: {(self.folder / 'stderr').read_text()}")

    @property
    def init(self) -> int:
        """The phone's first process, by its number outside."""
        return psutil.Process(self._outer.pid).children()[0].pid

    @property
    def root(self) -> Path:
        """The phone's files, as its processes see them."""
        return Path(f"/proc/{self.init}/root")

    @property
    def tmp(self) -> Path:
        """Where the runner puts its files."""
        return self.root / "data/local/tmp/pocketphi"

    def processes(self, name: str) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.init).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                if Path(process.cmdline()[0]).name == name:
                    found.append(process)
        return found

    def unplug(self) -> None:
        """Kill the daemon; what runs on the phone goes on."""
        for process in self.processes("adbd"):
            process.kill()

    def plug_in(self) -> None:
        """Start the daemon again."""
        subprocess.Popen(
            ["nsenter", "-t", str(self.init), "-m", "-p", "-n", "-r", "--", "/bin/sh", "-c", f"cd / && exec {ADBD}"],
            start_new_session=True, env={"PATH": PATH},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.connect()

    def set(self, name: str, value: dict[str, Any]) -> None:
        self.shared.joinpath(name).write_text(json.dumps(value))

    def install(self, version_code: int = 1) -> None:
        info = {"package": PACKAGE, "version_code": version_code, "version_name": f"0.{version_code}"}
        self.set("packages.json", {PACKAGE: info})

    def behave(self, **behaviour: Any) -> None:
        self.set("behaviour.json", behaviour)

    def left(self) -> list[str]:
        """Names of the files the runner has put there."""
        return sorted(path.name for path in self.tmp.iterdir()) if self.tmp.is_dir() else []

    def results(self) -> list[str]:
        folder = self.root / f"sdcard/Android/data/{PACKAGE}/files/results"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def close(self) -> None:
        adb("disconnect", self.serial)
        adb("disconnect", self.other_serial)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._outer.pid, signal.SIGKILL)
        self._outer.wait()
        with changing():
            subprocess.run(
                ["ip", "link", "delete", f"pphi{self.index}"], capture_output=True
            )  # its end inside goes too
        subprocess.run(["ip", "netns", "delete", self.network], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def adb(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["adb", *arguments], capture_output=True, text=True, timeout=30)

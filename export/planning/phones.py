"""Phones, their memory, and how much of it one app may take.

RAM: the table of simplymac.com/?p=3440 (iPhone 12 to 16); of the iPhone 17 TrendForce's report at
findarticles.com/report-details-ram-in-iphone-17-and-17-pro-lineup. Apple publishes neither RAM nor limits.

Limits of iPhones are what people read from os_proc_available_memory, with the entitlement increased-memory-limit that
our app has; Apple says of it only that some devices have more
(developer.apple.com/documentation/bundleresources/entitlements/com.apple.developer.kernel.increased-memory-limit).
A system's release can change them. Android has no limit for native memory before Android 17, whose limiter has none
that is published (source.android.com/docs/core/perf/memory-limiter): there the killer ends what takes too much
(android.googlesource.com/platform/system/memory/lmkd), and half of the RAM is a rule of thumb.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from checkpoints.errors import BadInput

GB, GIB = 10**9, 1 << 30
SYSTEM = (
    3 * GIB // 2
)  # RAM that system and other apps keep, where mapped weights are to stay in memory: a rule of thumb
IOS_PAGE, ANDROID_PAGE = 16384, 4096  # bytes
UNITS = {"": 1, "B": 1, "MB": 10**6, "GB": GB, "MIB": 1 << 20, "GIB": GIB}


@dataclass(frozen=True)
class Phone:
    """A phone, or a class of them."""

    name: str
    ram_bytes: int | None  # None: only the limit is known
    limit_bytes: int  # private memory that an app may take
    source: str  # of the limit, and whether it is measured
    page: int = ANDROID_PAGE  # bytes


# RAM in GiB -> limit in bytes with the entitlement, and its source.
IPHONE_LIMITS = {
    4: (
        24 * GB // 10,
        "measured, 2.1 GB without the entitlement: iPhone 12 mini, github.com/allenai/OLMoE.swift/pull/38",
    ),
    6: (42 * GB // 10, "measured, 3.1 GB without: iPhone 13 Pro, github.com/a-ghorbani/pocketpal-ai/pull/651"),
    8: (6 * GB, "measured, 3 GB without: iPhone 15 Pro, github.com/introlab/rtabmap/pull/1446"),
    12: (6 * GB, "told as 6 to 8 GB, 3.3 GB without: a 12 GB iPhone, github.com/LNPANDY/NX2Apple ENTITLEMENTS.md"),
}
IPHONES = {
    4: ("12", "12 mini", "13", "13 mini"),
    6: ("12 Pro", "12 Pro Max", "13 Pro", "13 Pro Max", "14", "14 Plus", "14 Pro", "14 Pro Max", "15", "15 Plus"),
    8: ("15 Pro", "15 Pro Max", "16e", "16", "16 Plus", "16 Pro", "16 Pro Max", "17"),
    12: ("17 Pro", "17 Pro Max", "Air"),
}
ANDROID = (4, 6, 8, 12, 16)  # GiB

PHONES = [
    Phone(f"iPhone {model}", ram * GIB, *IPHONE_LIMITS[ram], IOS_PAGE)
    for ram, models in IPHONES.items()
    for model in models
] + [Phone(f"Android {ram} GB", ram * GIB, ram * GIB // 2, "rule of thumb: half of the RAM") for ram in ANDROID]


def classes() -> list[Phone]:
    """One for each RAM size and system, iPhones named by their first and by how many there are."""
    firsts = {(phone.ram_bytes, phone.page): phone for phone in reversed(PHONES)}
    return [phone for phone in PHONES if firsts[phone.ram_bytes, phone.page] is phone]


def find_phone(name: str) -> Phone:
    """By its name, whatever its capitals; BadInput names the nearest ones."""
    known = {_plain(phone.name): phone for phone in PHONES}
    if phone := known.get(_plain(name)):
        return phone
    near = difflib.get_close_matches(_plain(name), known, n=3, cutoff=0.5)
    nearest = ", ".join(known[each].name for each in near) or ", ".join(phone.name for phone in classes())
    raise BadInput(f"--phone {name!r} is not known, the nearest are {nearest}; --memory 3GB takes a limit instead")


def phone_with(memory: str) -> Phone:
    """One that lets an app have so much private memory, as in `4GB` or `3500 MB`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", memory, re.IGNORECASE)
    unit = UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or not (size := int(float(match[1]) * unit)):
        raise BadInput(f"--memory {memory!r} is no size such as 4GB or 3500MB")
    return Phone(f"--memory {memory.strip()}", None, size, "given with --memory")


def chosen_phone(phone: str | None, memory: str | None) -> Phone | None:
    """The one that --phone or --memory asks for; None where neither is given."""
    if phone is not None and memory is not None:
        raise BadInput(f"--phone {phone} and --memory {memory} both say what there is: give one of them")
    if phone is not None:
        return find_phone(phone)
    return None if memory is None else phone_with(memory)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()

"""`python -m export.bench desktop|android|ios`: measures a `.pte` and leaves a result and a page about it.

Exit codes: 0; 2 for whatever kept it from a whole measurement (finished repeats are kept); 3 where a median is worse
than the baseline's by more than the tolerance; 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, Unpack

from checkpoints.errors import BadInput, run
from export.bench.contract import MODES, OPTIONS, Option
from export.bench.finish import Ending, Finished, tell
from export.bench.outcome import Outcome, Watch
from export.bench.plan import (
    Plan,
    PlanFlags,
    StrPath,
    flag_name,
    make_plan,
    parse_lengths,
    parse_modes,
    parse_tolerance,
)
from export.flags import FILE_HELP
from export.progress import quiet

Measure = Callable[[Plan, Watch], list[Outcome]]
HELP = {
    "prompt_tokens": "prompt lengths, a run of each",
    "new_tokens": "of each answer",
    "repeats": "of each run",
    "warmups": "before each run, not kept",
    "cooldown_s": "rest between repeats in seconds",
    "load_mode": "load for all, or for each repeat",
    "timeout_s": "longest wait for a repeat in seconds",
}


class Flags(PlanFlags, total=False):
    """The flags that every device has."""

    baseline: StrPath | None  # an older result to compare with
    tolerance: float | None  # a fraction; by default each metric's own
    out: StrPath | None  # for result and page; nowhere if None
    json: bool | None  # printed for programs, or for people; not at all if None


def bench(
    measure: Measure,
    *,
    baseline: StrPath | None = None,
    tolerance: float | None = None,
    out: StrPath | None = None,
    json: bool | None = None,
    **flags: Unpack[PlanFlags],
) -> Finished:
    """Measure by `measure`, write the results and compare them. BadInput where nothing could be measured."""
    quiet(verbose=False)
    plan = make_plan(**flags)
    ending = Ending(plan, path_of(out), path_of(baseline), tolerance)
    with Watch() as watch:
        outcomes = measure(plan, watch)
    finished = ending.finish(outcomes)
    if json is not None:
        tell(finished, ending, json)
    return finished


def path_of(given: StrPath | None) -> Path | None:
    return None if given is None else Path(given)


def bench_desktop(
    *,
    engine: Literal["runner", "ours"] = "runner",
    packed: StrPath | None = None,
    draft_tokens: int = 0,
    **flags: Unpack[Flags],
) -> Finished:
    """Measure on this machine, with the wheel's runner or our own engine.

    Ours keeps its packed weights in `packed`, or drops them at the end, and guesses up to `draft_tokens` ahead.
    """
    from export.bench.desktop.desktop import Desktop, measure

    options = Desktop(engine, path_of(packed), draft_tokens)
    if engine != "ours":
        text_only(flags, "--engine ours")
    return bench(lambda plan, watch: [measure(plan, watch, options)], **flags)


def bench_android(
    *,
    serial: Sequence[str] = (),
    apk: StrPath | None = None,
    build: bool = False,
    native: StrPath | None = None,
    remove: bool = False,
    ignore_memory: bool = False,
    **flags: Unpack[Flags],
) -> Finished:
    """Measure on Android devices over adb, all of `serial` or the only one there is.

    By the app, installed from `apk` or built where it is missing or older; with `native` by that llama_main instead.
    """
    from export.bench.android.android import Android, measure

    options = Android(tuple(serial), path_of(apk), path_of(native), build, remove, ignore_memory)
    if native is not None:
        text_only(flags, "the app")
    return bench(lambda plan, watch: measure(plan, options, watch), **flags)


def bench_ios(*, serial: Sequence[str] = (), app: StrPath | None = None, **flags: Unpack[Flags]) -> Finished:
    """Measure on iPhones and iPads through devicectl on a Mac, all of `serial` or the only one.

    By the app that is installed there, or by `app`, as Xcode built and signed it.
    """
    from export.bench.ios.ios import Ios, measure

    options = Ios(tuple(serial), path_of(app))
    return bench(lambda plan, watch: measure(plan, options, watch), **flags)


def text_only(flags: Flags, other: str) -> None:
    """Upstream's runners measure text; BadInput where another mode is asked for, which `other` could."""
    asked = flags["modes"] = flags.get("modes") or ("text",)
    if others := [mode for mode in asked if mode != "text"]:
        raise BadInput(f"--modes {','.join(others)} is for {other}: upstream's runner takes text alone")


def add_common(parser: argparse.ArgumentParser) -> None:
    """The flags that every device has."""
    parser.add_argument("--pte", metavar="FILE", required=True, help=FILE_HELP)
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="default: the one beside the model")
    for name, option in OPTIONS.items():
        _add_option(parser, name, option)
    parser.add_argument(
        "--modes",
        metavar="M,M",
        help=f"{', '.join(MODES)}: also after the standard picture and sound (default: all that the file has)",
    )
    parser.add_argument("--baseline", type=Path, metavar="JSON", help="an older result to compare with")
    parser.add_argument(
        "--tolerance", metavar="P", help="how much worse a median may be (default: each metric's own)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path(), help="where result and page go (default: this folder)"
    )
    parser.add_argument("--json", action="store_true", help="print everything for a program")


def _add_option(parser: argparse.ArgumentParser, name: str, option: Option) -> None:
    flag = f"--{flag_name(name).replace('_', '-')}"
    text = f"{HELP[name]} (default: %(default)s)"
    if option.choices:
        parser.add_argument(flag, choices=option.choices, default=option.default, help=text)
    elif isinstance(option.default, list):
        parser.add_argument(flag, metavar="N,N", default=",".join(map(str, option.default)), help=text)
    else:
        kind = float if name == "timeout_s" else int
        parser.add_argument(flag, type=kind, metavar="N", default=option.default, help=text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.bench", description=(__doc__ or "").split("\n\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="desktop|android|ios")
    desktop = kinds.add_parser("desktop", help="this machine")
    add_common(desktop)
    desktop.add_argument(
        "--engine", choices=("runner", "ours"), default="runner", help="upstream's runner (default) or our C++ engine"
    )
    desktop.add_argument(
        "--packed", type=Path, metavar="DIR", help="keep our engine's packed weights there (default: nowhere)"
    )
    desktop.add_argument(
        "--draft-tokens", type=int, metavar="N", default=0, help="guessed ahead at most by our engine (default: 0)"
    )
    android = kinds.add_parser("android", help="phones and emulators over adb")
    add_common(android)
    android.add_argument("--serial", nargs="+", metavar="S", default=[], help="devices, measured side by side")
    android.add_argument("--apk", type=Path, metavar="FILE", help="the app, installed where it is missing or older")
    android.add_argument("--build", action="store_true", help="build the app with Gradle first")
    android.add_argument(
        "--native", type=Path, metavar="BINARY", help="ExecuTorch's llama_main for the phone, instead of the app"
    )
    android.add_argument("--remove", action="store_true", help="take the model off the phone at the end")
    android.add_argument("--ignore-memory", action="store_true", help="try even where the model may not fit")
    ios = kinds.add_parser("ios", help="iPhones and iPads, on a Mac with Xcode")
    add_common(ios)
    ios.add_argument("--serial", nargs="+", metavar="S", default=[], help="devices' names, identifiers or UDIDs")
    ios.add_argument("--app", type=Path, metavar="DIR", help="Pocketphi.app as Xcode built it, to be installed")
    flags = vars(parser.parse_args(argv))
    kind = flags.pop("kind")
    flags["prompt_tokens"] = parse_lengths(flags["prompt_tokens"])
    if flags["modes"] is not None:
        flags["modes"] = parse_modes(flags["modes"])
    if flags["tolerance"] is not None:
        flags["tolerance"] = parse_tolerance(flags["tolerance"])
    benches: dict[str, Callable[..., Finished]] = {
        "desktop": bench_desktop,
        "android": bench_android,
        "ios": bench_ios,
    }
    return benches[kind](**flags).exit_code


command = partial(run, main)  # the script of pyproject.toml

"""`python -m export.bench desktop|android|ios`: measures a `.pte` and leaves a result and a page about it.

Exit codes: 0; 2 for whatever kept it from a whole measurement (finished repeats are kept); 3 where a median is worse
than the baseline's by more than the tolerance; 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from checkpoints.errors import run
from export.bench.finish import Ending, Finished, tell
from export.bench.outcome import Outcome, Watch
from export.bench.plan import LOAD_MODES, Plan, make_plan, parse_lengths, parse_tolerance
from export.progress import quiet

Measure = Callable[[Plan, Watch], list[Outcome]]
StrPath = str | os.PathLike[str]


def bench(
    measure: Measure,
    *,
    pte: StrPath,
    tokenizer: StrPath | None = None,
    prompt_tokens: Sequence[int] = (64, 512),
    new_tokens: int = 128,
    repeats: int = 5,
    warmups: int = 1,
    cooldown: int = 30,
    load_mode: str = "once",
    timeout: float = 900.0,
    baseline: StrPath | None = None,
    tolerance: float = 0.05,
    out: StrPath | None = None,
    json: bool | None = None,
) -> Finished:
    """Measure by `measure` and write the results into `out`, nowhere if None; seconds, tokens, tolerance a fraction.

    With `json` not None it is printed, for people or for programs. BadInput where nothing could be measured.
    """
    quiet(verbose=False)
    plan = make_plan(
        Path(pte), None if tokenizer is None else Path(tokenizer), prompt_tokens=prompt_tokens, new_tokens=new_tokens,
        repeats=repeats, warmups=warmups, cooldown=cooldown, load_mode=load_mode, timeout=timeout,
    )  # fmt: skip
    ending = Ending(
        plan, None if out is None else Path(out), None if baseline is None else Path(baseline), tolerance
    )  # fmt: skip
    with Watch() as watch:
        outcomes = measure(plan, watch)
    finished = ending.finish(outcomes)
    if json is not None:
        tell(finished, ending, json)
    return finished


def bench_desktop(**flags: object) -> Finished:
    """Measure on this machine, with the wheel's runner; the flags of `bench`."""
    from export.bench import desktop

    return bench(lambda plan, watch: [desktop.measure(plan, watch)], **flags)  # type: ignore[arg-type]


def bench_android(
    *,
    serial: Sequence[str] = (),
    apk: StrPath | None = None,
    build: bool = False,
    native: StrPath | None = None,
    remove: bool = False,
    ignore_memory: bool = False,
    **flags: object,
) -> Finished:
    """Measure on Android devices over adb, all of `serial` or the only one there is; further the flags of `bench`.

    By the app, installed from `apk` or built where it is missing or older; with `native` by that llama_main instead.
    """
    from export.bench import android

    options = android.Android(
        tuple(serial), None if apk is None else Path(apk), build, None if native is None else Path(native), remove,
        ignore_memory,
    )  # fmt: skip
    return bench(lambda plan, watch: android.measure(plan, options, watch), **flags)  # type: ignore[arg-type]


def bench_ios(*, serial: Sequence[str] = (), app: StrPath | None = None, **flags: object) -> Finished:
    """Measure on iPhones and iPads through devicectl on a Mac, all of `serial` or the only one; the flags of `bench`.

    By the app that is installed there, or by `app`, as Xcode built and signed it.
    """
    from export.bench import ios

    options = ios.Ios(tuple(serial), None if app is None else Path(app))
    return bench(lambda plan, watch: ios.measure(plan, options, watch), **flags)  # type: ignore[arg-type]


def add_common(parser: argparse.ArgumentParser) -> None:
    """The flags that every device has."""
    parser.add_argument("--pte", type=Path, metavar="FILE", required=True, help="the model")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="default: the one beside the model")
    parser.add_argument(
        "--prompt-tokens",
        metavar="N,N",
        default="64,512",
        help="prompt lengths, a run of each (default: %(default)s)",
    )
    parser.add_argument("--new-tokens", type=int, metavar="N", default=128, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, metavar="N", default=5, help="of each run (default: %(default)s)")
    parser.add_argument(
        "--warmups", type=int, metavar="N", default=1, help="before each run, not kept (default: %(default)s)"
    )
    parser.add_argument(
        "--cooldown", type=int, metavar="S", default=30, help="rest between repeats in seconds (default: %(default)s)"
    )
    parser.add_argument(
        "--load-mode", choices=LOAD_MODES, default="once", help="load for all, or for each repeat (default: once)"
    )
    parser.add_argument(
        "--timeout", type=float, metavar="S", default=900.0, help="longest wait for a repeat (default: %(default)g)"
    )
    parser.add_argument("--baseline", type=Path, metavar="JSON", help="an older result to compare with")
    parser.add_argument(
        "--tolerance", metavar="P", default="5%", help="how much worse a median may be (default: 5%%)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path(), help="where result and page go (default: this folder)"
    )
    parser.add_argument("--json", action="store_true", help="print everything for a program")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.bench", description=(__doc__ or "").split("\n\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="desktop|android|ios")
    add_common(kinds.add_parser("desktop", help="this machine, with the wheel's runner"))
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
    ios.add_argument("--serial", nargs="+", metavar="S", default=[], help="devices' names or identifiers")
    ios.add_argument("--app", type=Path, metavar="DIR", help="Pocketphi.app as Xcode built it, to be installed")
    flags = vars(parser.parse_args(argv))
    kind = flags.pop("kind")
    flags["prompt_tokens"] = parse_lengths(flags["prompt_tokens"])
    flags["tolerance"] = parse_tolerance(flags["tolerance"])
    benches: dict[str, Callable[..., Finished]] = {
        "desktop": bench_desktop,
        "android": bench_android,
        "ios": bench_ios,
    }
    return benches[kind](**flags).exit_code


command = partial(run, main)  # the script of pyproject.toml

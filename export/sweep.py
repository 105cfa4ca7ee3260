"""Many recipes of one checkpoint beside each other: `python -m export.sweep --checkpoint C --out DIR`.

Each recipe is exported, compared with the checkpoint (perplexity, KL, top-1) and timed, on Ray: here, or on the
cluster at --address, whose nodes must see the same folders. Results are kept, so that a stopped sweep goes on. A
table, a chart and sweep.json show what quality costs in bytes, in time and in memory on a phone, and --phone names
the best recipe that fits it. --plan only says what the recipes take: it exports nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints.errors import BadInput, run
from checkpoints.source import find_source
from export.flags import add_checkpoint, command_parser, whole_numbers
from export.planning.phones import chosen_phone, classes
from export.progress import quiet
from export.sweeps.recipes import DEFAULT as RECIPES
from export.sweeps.recipes import read_recipes

CONTEXT = (4096,)
LIMIT = 8  # windows of each text
PLANNED = ("checkpoint", "revision", "recipes", "context", "phone", "memory")

if TYPE_CHECKING:
    from export.sweeps.plan import Plan
    from export.sweeps.report import Report
    from export.sweeps.sweep import Told


def sweep(
    checkpoint: str | None = None,
    *,
    out: str | os.PathLike[str],
    revision: str | None = None,
    recipes: str = RECIPES,
    context: Sequence[int] = CONTEXT,
    phone: str | None = None,
    memory: str | None = None,
    limit: int | None = LIMIT,
    engine: str = "runner",
    verify: bool = True,
    parallel: int | None = None,
    address: str | None = None,
    progress: Told = lambda line, done, total, names: None,
) -> Report:
    """Export, evaluate and time recipes (a line, or a YAML file), and leave sweep.json and pareto.png in `out`.

    `limit` is the windows of each text, None for all. BadInput for what is wrong with all recipes; what is wrong with
    one is the problem of its row.
    """
    from export.sweeps.jobs import Measuring
    from export.sweeps.report import make_report
    from export.sweeps.sweep import How, run_sweep

    wanted, target = read_recipes(recipes), chosen_phone(phone, memory)
    how = How(Measuring(limit=limit, engine=engine), verify, parallel, address)
    source = find_source(checkpoint, revision=revision)
    found = run_sweep(source, wanted, context, Path(out), how, progress)
    return make_report(found, checkpoint, target, Path(out))


def plan(
    checkpoint: str | None = None,
    *,
    revision: str | None = None,
    recipes: str = RECIPES,
    context: Sequence[int] = CONTEXT,
    phone: str | None = None,
    memory: str | None = None,
) -> Plan:
    """What recipes take and which phones hold them, from config.json; Phi-4-mini's is known without a download."""
    from export.sweeps.plan import make_plan

    target = chosen_phone(phone, memory)
    return make_plan(checkpoint, revision, read_recipes(recipes), context, [target] if target else classes())


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the module docstring."""
    parser = command_parser("sweep", __doc__)
    add_checkpoint(parser)
    parser.add_argument("--out", metavar="DIR", help="for files, table and chart; made if it is not there")
    parser.add_argument(
        "--recipes",
        default=RECIPES,
        metavar="LINE",
        help="recipes parted by ;, or a YAML file (default: %(default)s)",
    )
    parser.add_argument(
        "--context",
        type=whole_numbers("lengths like 2048,4096"),
        default=CONTEXT,
        metavar="N,N",
        help="tokens of the KV cache (default: 4096)",
    )
    parser.add_argument("--phone", metavar="NAME", help="find the best that fits, such as 'iPhone 15 Pro'")
    parser.add_argument("--memory", metavar="SIZE", help="instead: private memory an app may take, such as 3GB")
    parser.add_argument("--plan", action="store_true", help="only say what the recipes take, export nothing")
    parser.add_argument(
        "--limit", type=int, default=LIMIT, metavar="N", help="windows of each text at most (default: %(default)s)"
    )
    parser.add_argument("--engine", choices=("runner", "ours"), default="runner", help="that is timed")
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="skip the verification of exports")
    parser.add_argument("--parallel", type=int, metavar="N", help="steps at once at most (default: by cores)")
    parser.add_argument("--address", metavar="HOST:PORT", help="a running Ray (default: one started here)")
    parser.add_argument("--json", action="store_true", help="print the result for a program")
    flags = vars(parser.parse_args(argv))
    quiet(verbose=False)
    as_json, only_plan = flags.pop("json"), flags.pop("plan")
    from export.sweeps.show import print_plan, print_report, progress

    if only_plan:
        planned = plan(**{name: flags[name] for name in PLANNED})
        print(json.dumps(planned.plain(), indent=2)) if as_json else print_plan(planned)
        return 0
    if flags["out"] is None:
        raise BadInput("--out names the folder for files, table and chart (--plan needs none)")
    with progress() as told:
        report = sweep(**flags, progress=told)
    print(json.dumps(report.plain(), indent=2)) if as_json else print_report(report)
    return 0 if any(row.found for row in report.sweep.rows) else 1


command = partial(run, main)  # the script of pyproject.toml

if __name__ == "__main__":
    command()

"""A sweep for people: how far it is, its table, and the memory of recipes on phones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from checkpoints.config import ModelConfig
from export.planning.fit import ENGINES, Fit
from export.planning.phones import Phone
from export.sweeps.plan import Plan
from export.sweeps.report import Report
from export.sweeps.rows import Row, fit_of
from export.sweeps.sweep import Told

WIDE = 160  # columns


@contextmanager
def progress() -> Iterator[Told]:
    """A bar on a terminal, else a line for each step that ended; on stderr."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    shown = Progress(
        *columns, TextColumn("left"), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )
    with shown:
        task = shown.add_task("starting", total=None)

        def told(line: str, done: int, total: int, names: list[str]) -> None:
            if line:
                console.print(escape(f"[{done}/{total}] {line}"), highlight=False, soft_wrap=True)
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            shown.update(task, completed=done, total=total, description=f"{escape(names[0])}{more}" if names else "")

        yield told


def print_report(report: Report) -> None:
    """A row for each recipe; memory is private memory with the whole context in use."""
    console, sweep, phone, choice = _console(), report.sweep, report.phone, report.choice
    contexts = sorted({context for row in sweep.rows for context in row.contexts})
    names = ["KL\nnats", "top-1\n%", "perplexity", "MB", "decode\nms", "prefill\n/s"]
    table = _table(names + [f"at\n{context}" for context in contexts] + ["stock"])
    for row in sweep.rows:
        if row.needs and row.found:
            cells = [
                _estimate(row, "kl", 3),
                _estimate(row, "top1", 1, 100),
                _number(row.number("evaluate", "perplexity"), 1),
            ]
            cells += [_number((row.bytes or 0) / 1e6, 1), _number(row.number("bench", "decode_ms"), 2)]
            cells += [_number(row.number("bench", "prefill_tokens_per_s"), 0)]
            cells += [_memory(sweep.config, row, context, phone) for context in contexts]
            cells.append(_number(row.needs["memory"][-1]["stock"] / 1e6, 0))
            chosen = choice is not None and choice.row is row
            table.add_row(f"[bold]{'→ ' if chosen else ''}{escape(row.name)}", *cells)
    console.print(f"{escape(sweep.checkpoint)}; ± is a standard error, KL and top-1 are against it", highlight=False)
    console.print(table)
    console.print(
        "at a context: MB of private memory with all of it in use, in our engine; stock: in upstream's runner",
        highlight=False,
    )
    _print_problems(console, sweep.rows)
    if choice is not None:
        named = f"best that fits: {escape(choice.row.name)} with a context of {choice.context}"
        console.print(f"[bold]{named}[/]: {escape(choice.fit.reason)}", soft_wrap=True, highlight=False)
        console.print(f"  {escape(report.command or '')}", soft_wrap=True, highlight=False)
    elif phone is not None:
        console.print(f"[red]none of the measured recipes fits {escape(phone.name)}", soft_wrap=True, highlight=False)
    if report.chart is not None:
        console.print(f"chart: {escape(str(report.chart))}", soft_wrap=True, highlight=False)


def print_plan(plan: Plan) -> None:
    """What recipes take, and what each phone has left with the first of them."""
    console = _console()
    contexts = sorted({context for row in plan.rows for context in row.contexts})
    columns = [f"{engine}\n{context}" for context in contexts for engine in ENGINES]
    table = _table(["file", "packed", *columns])
    for row in plan.rows:
        if row.needs:
            memory = {one["context"]: one for one in row.needs["memory"]}
            cells = [row.needs["file_bytes"], row.needs["packed_bytes"]]
            cells += [memory.get(context, {}).get(engine) for context in contexts for engine in ENGINES]
            table.add_row(f"[bold]{escape(row.name)}", *(_megabytes(size) for size in cells))
    console.print(
        f"{escape(plan.checkpoint)}, MB: ours and stock are private memory with all of a context in use, in our "
        "engine, which maps the packed weights beside, and in upstream's runner",
        soft_wrap=True,
        highlight=False,
    )
    console.print(table)
    _print_problems(console, plan.rows)
    if first := next((row for row in plan.rows if row.needs), None):
        _print_phones(console, plan, first, columns)


def _print_phones(console: Console, plan: Plan, first: Row, columns: Sequence[str]) -> None:
    table = _table(["limit", *columns])
    for phone in plan.phones:
        found = {f"{engine}\n{context}": fit for (context, engine), fit in plan.fits(first, phone).items()}
        cells = [_left(found[name]) if name in found else "" for name in columns]
        table.add_row(f"[bold]{escape(phone.name)}", _megabytes(phone.limit_bytes), *cells)
    console.print(f"MB left of what a phone lets an app have, with {escape(first.name)}:", highlight=False)
    console.print(table)
    console.print("no: above the limit; no RAM: within it, but the mapped weights would not stay in memory")
    for phone in plan.phones:
        ram = "" if phone.ram_bytes is None else f" ({phone.ram_bytes >> 30} GB of RAM)"
        console.print(f"{escape(phone.name)}{ram}: {escape(phone.source)}", soft_wrap=True, highlight=False)
    if len(plan.phones) == 1:
        for row in plan.rows:
            for fit in plan.fits(row, plan.phones[0]).values() if row.needs else ():
                verdict = "[green]fits[/]" if fit.fits else "[red]does not fit[/]"
                console.print(f"{escape(row.name)} {verdict}: {escape(fit.reason)}", soft_wrap=True, highlight=False)


def _print_problems(console: Console, rows: Sequence[Row]) -> None:
    for row in rows:
        if row.problem:
            console.print(f"[red]{escape(row.name)}[/]: {escape(row.problem)}", soft_wrap=True, highlight=False)


def _table(names: Sequence[str]) -> Table:
    columns = (Column(name, justify="right", no_wrap=True) for name in names)
    return Table(Column("", no_wrap=True), *columns, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _console() -> Console:
    """On a terminal as wide as that; a file has lines as long as they are."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def _left(fit: Fit) -> str:
    if fit.fits:
        return _megabytes(fit.headroom_bytes)
    return "[red]no[/]" if fit.headroom_bytes < 0 else "[red]no RAM[/]"


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.0f}"


def _memory(config: ModelConfig, row: Row, context: int, phone: Phone | None) -> str:
    known = {one["context"]: one["ours"] for one in row.needs["memory"]}
    if context not in known:
        return ""
    number = _number(known[context] / 1e6, 0)
    if phone is None:
        return number
    return f"{number} [green]✓[/]" if fit_of(config, row, context, phone).fits else f"{number} [red]✗[/]"


def _estimate(row: Row, name: str, digits: int, scale: float = 1) -> str:
    value, error = row.number("evaluate", name), row.error(name)
    if value is None:
        return ""
    return f"{scale * value:.{digits}f}" + (f" ± {scale * error:.{digits}f}" if error is not None else "")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"

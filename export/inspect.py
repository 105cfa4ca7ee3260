"""Shows what a `.pte` holds and whether everything is quantized: `python -m export.inspect FILE [--strict]`.

`--strict` fails where a linear is not what was asked for, is left to the program, or where something large stayed in
float32. What was asked for is told by the manifest beside the file, else it is 8da4w: int4 weights in groups and
dynamic int8 activations. Judges and shows what `export.ptefile.dissect` finds; knows nothing of the file format.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from checkpoints.errors import BadInput, run
from export.flags import FILE_HELP, add_int8, command_parser
from export.manifest import read_manifest
from export.progress import quiet
from export.ptefile.find import resolve_file

if TYPE_CHECKING:
    from export.ptefile.contents import Contents, Linear
    from export.quantization.recipe import Recipe

LARGE_BYTES = 1 << 20


@dataclass(frozen=True)
class Expected:
    """What `--strict` asks of the weights."""

    linears: str = "8da4w"  # or "fp32"
    head_bits: int = 4
    embedding_bits: int | None = None  # None: any, as long as it is quantized
    group_size: int | None = None  # None: any
    int8: tuple[str, ...] = ()  # linears of layers with 8 bits, as `export.quantization.recipe.is_named` takes them

    def __str__(self) -> str:
        if self.linears == "fp32":
            return "float32"
        group = f"groups of {self.group_size}" if self.group_size else "groups"
        eight = f", int8 {', '.join(self.int8)}" if self.int8 else ""
        return f"int4 in {group} with dynamic int8 activations, lm_head int{self.head_bits}{eight}"

    def bits(self, linear: Linear) -> int:
        """What a linear's weights should have."""
        from export.models.registry import source_name
        from export.quantization.recipe import is_named

        if linear.is_head:
            return self.head_bits
        name = source_name(linear.name)
        return 8 if name and is_named(name, self.int8) else 4


@dataclass(frozen=True)
class Inspection:
    """One file's contents and, if it was inspected strictly, what is wrong with them."""

    path: Path
    contents: Contents
    expected: Expected | None
    problems: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        contents = self.contents
        return {
            "file": str(self.path),
            **asdict(contents),
            "parameters": contents.parameters,
            "bits_per_weight": round(contents.bits_per_weight, 4),
            "linear_bits_per_weight": round(contents.linear_bits_per_weight, 4),
            "expected": asdict(self.expected) if self.expected else None,
            "problems": list(self.problems),
        }


def inspect(
    file: str | os.PathLike[str],
    *,
    strict: bool = False,
    linears: str | None = None,
    head_bits: int | None = None,
    int8: Sequence[str] | None = None,
) -> Inspection:
    """Read a `.pte` and, if `strict`, check it; BadInput if it is none.

    `linears` ("8da4w" or "fp32"), `head_bits` (4 or 8) and `int8` (as of a recipe) overrule what the manifest beside
    the file asks for.
    """
    from export.ptefile.dissect import read_contents  # imports executorch, which takes seconds and warns
    from export.ptefile.reader import open_pte

    path = resolve_file(file)
    contents = read_contents(open_pte(path))
    if not strict:
        return Inspection(path, contents, None, ())
    expected = _expected(path, linears, head_bits, int8)
    return Inspection(path, contents, expected, tuple(problems(contents, expected)))


def _expected(file: Path, linears: str | None, head_bits: int | None, int8: Sequence[str] | None) -> Expected:
    recipe = _recipe(file)
    linears = linears or ("8da4w" if recipe is None or recipe.quantized else "fp32")
    if linears not in ("8da4w", "fp32"):
        raise BadInput(f"--linears {linears} is neither 8da4w nor fp32")
    if recipe is None or linears == "fp32":
        return Expected(linears, head_bits or 4, int8=tuple(int8 or ()))
    named = recipe.int8 if int8 is None else tuple(int8)
    return Expected(linears, head_bits or recipe.head_bits, recipe.embedding_bits, recipe.group_size, named)


def _recipe(file: Path) -> Recipe | None:
    """The recipe in the manifest beside the file; None without one that is this file's."""
    from export.quantization.recipe import Recipe  # imports torchao

    try:
        manifest = read_manifest(file)
        return Recipe(**manifest["options"]["recipe"]) if manifest and manifest["file"]["name"] == file.name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def problems(contents: Contents, expected: Expected) -> list[str]:
    """One sentence for everything that is not as expected."""
    found = [problem for linear in contents.linears if (problem := _linear_problem(linear, expected))]
    if not contents.linears:
        found.append("no linear was found")
    for name, count in contents.operators.items():
        base = name.rsplit("::", 1)[-1]
        named = any(linear.operator == name for linear in contents.linears)
        if not named and (base in ("mm", "addmm", "bmm", "baddbmm", "matmul") or "linear" in base):
            found.append(f"{name} is not delegated ({count} in each forward)")
    for number, delegate in enumerate(contents.delegates):
        if delegate.problem:
            found.append(f"delegate {number} ({delegate.backend}) cannot be checked: {delegate.problem}")
    found += [f"{name} is asked for by a delegate, but is not in the file" for name in contents.missing]
    if expected.linears == "fp32":
        return found
    table = contents.embedding
    if table is None:
        found.append("no embedding was found")
    elif table.weight not in ("int4", "int8"):
        found.append(f"the embedding [{table.rows}, {table.columns}] is {table.weight}, not quantized")
    elif expected.embedding_bits and table.weight != f"int{expected.embedding_bits}":
        found.append(f"the embedding is {table.weight}, not int{expected.embedding_bits}")
    for other in contents.others:
        if other.dtype == "float32" and other.bytes > LARGE_BYTES:
            found.append(f"{other.name} {list(other.shape)} is float32 and takes {other.bytes / 1e6:.1f} MB")
    return found


def _linear_problem(linear: Linear, expected: Expected) -> str | None:
    where = f"{linear.label} [{linear.rows}, {linear.columns}]"
    if linear.delegate is None:
        return f"{where} is {linear.weight} and not delegated, the program computes it with {linear.operator}"
    is_now = f"{_weight(linear)} with {linear.activation} activations"
    if expected.linears == "fp32":
        wrong = (linear.weight, linear.activation) != ("float32", "float32")
        return f"{where} is {is_now}, not float32" if wrong else None
    bits = expected.bits(linear)
    grouped = linear.group_size is not None
    right = linear.weight == f"int{bits}" and grouped == (bits == 4) and linear.activation == "dynamic int8"
    if right and grouped and expected.group_size:
        right = linear.group_size == expected.group_size
    form = (
        "with a scale a row"
        if bits == 8
        else f"in groups of {expected.group_size}"
        if expected.group_size
        else "in groups"
    )
    return None if right else f"{where} is {is_now}, not int{bits} {form} with dynamic int8 activations"


def _weight(linear: Linear) -> str:
    if linear.group_size is not None:
        return f"{linear.weight} in groups of {linear.group_size}"
    return f"{linear.weight} with a scale a row" if linear.scale_bytes else linear.weight


# ---- what a person sees


def show(inspection: Inspection, console: Console) -> None:
    """Print the tables; made for 100 columns."""
    contents = inspection.contents
    facts = [
        f"{contents.parameters / 1e6:,.1f} M weights",
        f"{contents.bits_per_weight:.2f} bits each",
        f"{contents.layers} layers",
        f"vocabulary {contents.vocab_size:,}",
    ]
    name = Text.assemble(
        (inspection.path.name, "bold"), f"  {contents.file_bytes / 1e6:,.1f} MB  ", " · ".join(facts)
    )
    console.print(name, soft_wrap=True)
    sides = Table.grid(padding=(0, 5))
    sides.add_row(_kinds(contents), Group(_planned(contents), "", _metadata(contents)))
    for table in (sides, _linears(contents), _delegates(contents), _operators(contents)):
        console.print()
        console.print(table)
    if inspection.expected and not inspection.problems:
        console.print(Text(f"\nas asked: {inspection.expected}", style="green"), soft_wrap=True)


def _table(title: str, *columns: str, right: Sequence[str] = (), header: bool = True) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD if header else None,
        pad_edge=False,
        show_edge=False,
        show_header=header,
        header_style="dim",
        padding=(0, 1),
    )
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column in right)
    return table


def _kinds(contents: Contents) -> Table:
    table = _table("bytes", "kind", "bytes", "share", right=("bytes", "share"))
    for kind, size in sorted(contents.kinds.items(), key=lambda item: -item[1]):
        if size:
            table.add_row(kind, f"{size:,}", f"{100 * size / contents.file_bytes:.1f} %")
    table.add_section()
    table.add_row("file", f"{contents.file_bytes:,}", "100.0 %")
    return table


def _planned(contents: Contents) -> Table:
    table = _table("planned memory", "", "bytes", right=("bytes",), header=False)
    table.add_row("KV cache", f"{contents.kv_cache_bytes:,}")
    table.add_row("activations", f"{contents.activation_bytes:,}")
    return table


def _metadata(contents: Contents) -> Table:
    table = _table("metadata", "", "", header=False)
    for name, value in contents.metadata.items():
        table.add_row(name, str(value))
    return table


def _linears(contents: Contents) -> Table:
    """Linears alike are one row, whatever their layer; layers are told where those of one name are not alike."""
    title = f"{len(contents.linears)} linears, {contents.linear_bits_per_weight:.2f} bits a weight with scales"
    right = ("count", "shape", "MB")
    table = _table(title, "name", "count", "shape", "weight", "activation", "MB", right=right)
    alike: dict[tuple[str, ...], list[Linear]] = defaultdict(list)
    for linear in contents.linears:
        name = re.sub(r"^linear \d+ of delegate \d+$", "no name", _pattern(linear.label))
        activation = linear.activation if linear.delegate is not None else f"not delegated, {linear.operator}"
        alike[name, f"{linear.rows} x {linear.columns}", _weight(linear), activation].append(linear)
    forms = Counter(name for name, *_ in alike)
    for (name, shape, weight, activation), linears in alike.items():
        if forms[name] > 1:
            name = name.replace("layers.*.", f"layers.{_spans(linears)}.")
        size = sum(linear.weight_bytes + linear.scale_bytes for linear in linears)
        style = "" if "int" in weight and linears[0].delegate is not None else "yellow"
        table.add_row(name, str(len(linears)), shape, weight, activation, f"{size / 1e6:,.2f}", style=style)
    if contents.embedding:
        it = contents.embedding
        scales = (
            f" in groups of {it.group_size}" if it.group_size else " with a scale a row" if it.scale_bytes else ""
        )
        size, style = it.weight_bytes + it.scale_bytes, "" if "int" in it.weight else "yellow"
        shape = f"{it.rows} x {it.columns}"
        table.add_row("embedding", "1", shape, it.weight + scales, "", f"{size / 1e6:,.2f}", style=style)
    return table


def _delegates(contents: Contents) -> Table:
    """Delegates alike are one row, whatever their layer."""
    title = f"{len(contents.delegates)} delegates"
    table = _table(title, "backend", "count", "nodes", "linears", right=("count", "nodes"))
    alike: Counter[tuple[str, str, int, bool]] = Counter()
    for delegate in contents.delegates:
        names = [_pattern(name) for name in delegate.linears]
        first = names[0].rpartition(".")[0] if names else ""
        held = " ".join(names[:1] + [name.removeprefix(f"{first}.") for name in names[1:]])
        if names and names[0].startswith("linear "):
            held = f"{len(names)} without a name"
        alike[delegate.backend, delegate.problem or held, delegate.nodes, delegate.problem is not None] += 1
    for (backend, held, nodes, bad), count in alike.items():
        table.add_row(backend, str(count), str(nodes), held, style="yellow" if bad else "")
    return table


def _operators(contents: Contents) -> Table:
    table = _table(f"{sum(contents.operators.values())} operators are not delegated", *[""] * 4, header=False)
    counts: Counter[str] = Counter()
    for name, count in contents.operators.items():
        counts[name.rsplit("::", 1)[-1]] += count
    cells = [f"{count:>4} {name}" for name, count in counts.most_common()]
    height = -(-len(cells) // 4)
    for row in range(height):
        table.add_row(*cells[row::height])
    return table


def _spans(linears: Sequence[Linear]) -> str:
    """The layers of some linears: "0-3,5"."""
    numbers = [int(match[1]) for linear in linears if (match := re.search(r"\blayers\.(\d+)\.", linear.name))]
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _pattern(name: str) -> str:
    return re.sub(r"\blayers\.\d+\.", "layers.*.", name)


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("inspect", __doc__)
    parser.add_argument("file", metavar="FILE", help=f"{FILE_HELP}, made by anyone")
    parser.add_argument("--strict", action="store_true", help="exit with 1 unless everything is quantized as asked")
    parser.add_argument("--linears", choices=("8da4w", "fp32"), help="what --strict asks for (default: the manifest)")
    parser.add_argument("--head-bits", type=int, choices=(4, 8), help="of lm_head (default: the manifest, else 4)")
    add_int8(parser, "linears that should have 8 bits (default: the manifest, else none)")
    parser.add_argument("--json", action="store_true", help="print everything for a program")
    flags = parser.parse_args(argv)
    quiet(False)
    asked = {name: getattr(flags, name) for name in ("linears", "head_bits", "int8")}
    strict = flags.strict or any(value is not None for value in asked.values())
    inspection = inspect(flags.file, strict=strict, **asked)
    if flags.json:
        print(json.dumps(inspection.as_json(), indent=2))
    else:
        show(inspection, Console())
    for problem in inspection.problems:
        print(f"error: {flags.file}: {problem}", file=sys.stderr)
    return 1 if inspection.problems else 0


command = partial(run, main)  # the script of pyproject.toml

if __name__ == "__main__":
    command()

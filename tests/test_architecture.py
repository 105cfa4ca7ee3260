"""The house: no import runs up, none in a circle, and upstream's unstable corners are touched where it is said."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]

# From the ground up. A module may import from its own line and from those above it in this list, never from below.
FLOORS = [
    ["checkpoints"],
    ["export.media"],
    ["export.progress", "export.subprocess_call", "export.flags", "export.workers"],
    ["export.quantization"],
    ["export.xnnpack"],
    ["export.models"],
    ["export.options"],
    ["export.manifest"],
    ["export.planning"],
    ["export.program"],
    ["export.ptefile"],
    ["export.reference"],
    ["export.engine"],
    ["export.verification"],
    ["export.calibration"],
    ["export.evaluation"],
    ["export.publishing"],
    ["export.pipeline"],
    ["export.bench"],
    ["export.hub"],
    ["export.terminal"],
    ["export.server"],
    ["export.sweeps"],
]
DOORS = [
    "pte", "verify", "inspect", "generate", "chat", "serve", "evaluate",
    "sweep", "push", "quantize", "untie", "remap",
]  # fmt: skip
# Private parts of packages: who may touch them.
PRIVATE = {
    "executorch.exir._serialize": {"export/program/assemble.py", "export/ptefile/reader.py"},
    "executorch.backends.xnnpack": {"export/xnnpack/drawing.py"},
    "executorch.exir.memory_planning": {"export/program/arenas.py"},
    "torch._higher_order_ops": {"export/program/trace.py"},
    "ray": {"export/sweeps/cluster.py"},
    "torchao.prototype": {"export/quantization/saved_writer.py"},
}


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    files = [path for folder in ("checkpoints", "export") for path in (ROOT / folder).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere, also within functions and for types."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def floor(name: str) -> int:
    if name.rpartition(".")[2] in DOORS and name.count(".") == 1:
        return len(FLOORS)
    for number, rooms in enumerate(FLOORS):
        if any(name == room or name.startswith(f"{room}.") for room in rooms):
            return number
    raise AssertionError(f"{name} has no floor in FLOORS")


def test_no_import_runs_up() -> None:
    known = modules()
    up = []
    for name, path in known.items():
        if name == "export":
            continue
        for other in imports(path) & known.keys() - {"export"}:
            if floor(other) > floor(name) or (floor(other) == floor(name) == len(FLOORS) and other != name):
                up.append(f"{name} imports {other}")
    assert not up, "\n".join(up)


def test_no_circles() -> None:
    known = modules()
    below = {name: (imports(path) & known.keys()) - {name, "export"} for name, path in known.items()}
    while free := [name for name, others in below.items() if not others & below.keys()]:
        for name in free:
            del below[name]
    assert not below, f"circles among {sorted(below)}"


def test_private_parts_of_packages_are_touched_in_one_place() -> None:
    for part, places in PRIVATE.items():
        used = {
            str(path.relative_to(ROOT))
            for path in modules().values()
            if any(name == part or name.startswith(f"{part}.") for name in imports(path))
        }
        assert used == places, part


def test_every_door_is_a_command() -> None:
    for door in DOORS:
        tree = ast.parse((ROOT / "export" / f"{door}.py").read_text())
        assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, door

"""One contract for what is measured: Python follows bundled/contract.json, whatever it says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from export.bench import contract
from export.bench.results.result import make_repeat, summarise
from tests.bench.test_result import make

ROOT = Path(__file__).parents[2]
FILE = "export/bench/contract/bundled/contract.json"
PROGRAM = """
import contextlib, io, json, sys
from rich.console import Console
from export.bench.command import main
from export.bench.results.baseline import compare
from export.bench.results.result import summarise
from export.bench.results import report, table
help = io.StringIO()
with contextlib.redirect_stdout(help), contextlib.suppress(SystemExit):
    main(["desktop", "--help"])
before, now = json.loads(sys.argv[1])
for document in (before, now):
    for run in document["runs"]:
        run["summary"] = summarise(run["repeats"])
shown = Console(file=io.StringIO(), width=200)
table.show(now, compare(before, now), shown)
from checkpoints.errors import BadInput
refused = []
for flag, value in (("--repeats", "9"), ("--load-mode", "once")):
    try:
        main(["desktop", "--pte", "x.pte", flag, value])
    except (BadInput, SystemExit) as problem:
        refused.append(str(problem))
print(json.dumps({
    "help": " ".join(help.getvalue().split()), "page": report.make_html(now, before, compare(before, now)),
    "table": shown.file.getvalue(), "regressions": [str(c) for c in compare(before, now) if c.regression],
    "refused": refused,
}))
"""


def row(rules: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in rules["metrics"] if one["name"] == name)
    return found


def ask(folder: Path, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """What PROGRAM says of two documents where the contract is a changed one."""
    shutil.copytree(ROOT / "export", folder / "export", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "checkpoints").symlink_to(ROOT / "checkpoints")
    rules = json.loads((ROOT / FILE).read_text())
    change(rules)
    (folder / FILE).write_text(json.dumps(rules))
    before, now = make(20.0), make(19.5, status="moderate")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([before, now])],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_another_contract_is_followed(tmp_path: Path) -> None:
    def change(rules: dict[str, Any]) -> None:
        for name, default in {"prompt_tokens": [7, 9], "new_tokens": 31, "repeats": 4, "warmups": 2}.items():
            rules["options"][name]["default"] = default
        rules["options"]["cooldown_s"]["default"] = 77
        rules["options"]["timeout_s"]["default"] = 55
        rules["options"]["repeats"]["most"] = 8
        rules["options"]["load_mode"] = {"default": "each", "choices": ["each"]}
        row(rules, "decode_tokens_per_s").update(tolerance=0.01, label="writing")
        row(rules, "load_ms").update(headline=False)
        place = "thermal.after.battery_percent"
        battery = {"name": "trial_percent", "label": "battery", "unit": "%", "better": "higher", "tolerance": None}
        rules["metrics"].append(battery | {"from": place, "headline": True})
        rules["remarks"]["hot"] = "Too warm in {repeats}."

    answer = ask(tmp_path, change)
    for default in ("7,9", "31", "4", "2", "77", "55", "each"):
        assert f"(default: {default})" in answer["help"]
    assert answer["regressions"] == [
        "16+4 tokens: decode_tokens_per_s 19.5 instead of 20, 2.5% worse, tolerated 1.0%"
    ]
    assert "--repeats 9 is not from 1 to 8" in answer["refused"]
    assert "writing" in answer["table"] and "decode" not in answer["table"] and "load\nms" not in answer["table"]
    assert "battery" in answer["table"] and "80.0" in answer["table"]
    assert "battery, %" in answer["page"] and "writing, tokens/s" in answer["page"]
    assert "16 tokens: Too warm in 1, 2, 3." in answer["table"].replace("\n", " ")


def test_the_metrics_hold_what_a_repeat_has() -> None:
    """Every place that a row names is there, and every schema is one."""
    jsonschema.Draft202012Validator.check_schema(contract.SCHEMA)
    repeat = make(17.0)["runs"][0]["repeats"][0]
    for metric in contract.METRICS:
        found: Any = repeat
        for key in metric.place:
            assert key in found, metric.name
            found = found[key]
    assert len({metric.name for metric in contract.METRICS}) == len(contract.METRICS)
    assert set(contract.THERMAL) > contract.HOT
    required = set(contract.SCHEMA["$defs"]["repeat"]["required"])
    assert required & {metric.name for metric in contract.METRICS} == {*contract.MEASURED, "token_ms"} & required
    assert list(summarise([])) == [metric.name for metric in contract.METRICS]


def test_a_probe_without_a_row_is_a_mistake_of_ours() -> None:
    repeat = make(17.0)["runs"][0]["repeats"][0]
    rest = {key: repeat[key] for key in ("prompt_tokens", "generated_tokens", "token_ms", "memory", "thermal")}
    with pytest.raises(KeyError, match="has no metric watts"):
        make_repeat({"watts": 3.0}, new_tokens=4, **rest)
    assert make_repeat({}, new_tokens=4, **rest)["load_ms"] is None


@pytest.mark.parametrize(
    ("problem", "goes_on"),
    [
        (contract.GOING_ON.format(done=3, all=10), True),
        ("The model could not be run.", False),
        (None, False),
    ],
)
def test_a_run_that_goes_on_is_told_from_one_that_failed(problem: str | None, goes_on: bool) -> None:
    assert contract.goes_on(problem) is goes_on

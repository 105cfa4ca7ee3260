"""Measures `.pte` files in the C++ runtime of the wheel: load, memory, prefill, decode at several positions.

    python -m benchmarks.run FILE.pte [OTHER.pte ...] [--positions 64,1000,4000] [--rounds 3] [--json]

Every trial is a process of its own, and files take turns, A B A B …, so that a machine that slows down slows
both; ratios are medians of the ratios within a round. Tokens are random: the cost does not depend on them.
Decoding at position 4000 does not feed 4000 tokens first: the attention kernel reads the zero-filled cache
just as it would read a full one, so a step costs the same. Knows nothing of text, and not whether the logits
are right.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import measure
from checkpoints.errors import BadInput, run

POSITIONS = (64, 1000, 4000)


def trial(path: Path, positions: Sequence[int], new_tokens: int, prompt_tokens: int) -> dict[str, Any]:
    """Load and run one file in this process. Times are medians over the calls of their kind."""
    import executorch.extension.llm.custom_ops.custom_ops
    import executorch.kernels.quantized  # noqa: F401  registers the quantized embeddings
    import torch
    from executorch.runtime import Runtime, Verification

    measure.trim_heap()
    base_bytes, base = measure.private_bytes([psutil.Process()]), measure.private_dirty_bytes()
    start = time.perf_counter()
    # Minimal verification is what Module, and so the LLM runners on phones, load with.
    program = Runtime.get().load_program(path, verification=Verification.Minimal)
    forward = program.load_method("forward")
    load_ms = 1e3 * (time.perf_counter() - start)
    loaded = measure.private_dirty_bytes()
    assert forward is not None

    def constant(name: str) -> int:
        method = program.load_method(name)
        assert method is not None
        return int(method.execute([])[0])

    # The planned size of the tokens' tensor is the most that can be fed at once: get_max_seq_len in our
    # files, one less than that in upstream's.
    chunk = int(forward.metadata.input_tensor_meta(0).sizes()[1])
    context = constant("get_max_context_len" if "get_max_context_len" in program.method_names else "get_max_seq_len")
    tokens = torch.randint(
        0, constant("get_vocab_size"), (1, max(chunk, 1)), generator=torch.Generator().manual_seed(0)
    )

    def step(count: int, position: int) -> float:
        """Feed `count` tokens at `position`; milliseconds."""
        inputs = (tokens[:, :count], torch.tensor([position]))
        begun = time.perf_counter()
        forward.execute(inputs)
        return 1e3 * (time.perf_counter() - begun)

    step(1, 0)  # touches weights and arenas for the first time
    skipped = []
    if prompt_tokens > context:
        skipped.append(f"{path.name} holds {context} tokens: the prompt of {prompt_tokens} is cut to that")
    prompt = min(prompt_tokens, context)
    lengths = [min(chunk, prompt - at) for at in range(0, prompt, chunk)]
    chunks_ms = [step(length, chunk * number) for number, length in enumerate(lengths)]
    decode_ms = {}
    for position in positions:
        if position + new_tokens > context:
            skipped.append(
                f"{path.name} holds {context} tokens: {new_tokens} at position {position} are not measured"
            )
        else:
            decode_ms[position] = statistics.median(step(1, position + i) for i in range(new_tokens))
    return {
        "load_ms": load_ms,
        "base_private_bytes": base_bytes,
        "loaded_private_dirty_bytes": loaded - base,
        "final_private_dirty_bytes": measure.private_dirty_bytes() - base,
        "context_tokens": context,
        "chunk_tokens": lengths[0],
        "chunk_tokens_per_s": 1e3 * lengths[0] / chunks_ms[0],
        "prompt_tokens": prompt,
        "prompt_tokens_per_s": 1e3 * prompt / sum(chunks_ms),
        **{f"decode_ms_at_{position}": value for position, value in decode_ms.items()},
        "skipped": skipped,
    }


def trial_in_child(path: Path, positions: Sequence[int], new_tokens: int, prompt_tokens: int) -> dict[str, Any]:
    """`trial` in a process of its own, with that process's peak of memory."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder, "trial.json")
        options = ("--positions", ",".join(map(str, positions)), "--new-tokens", str(new_tokens))
        done = measure.run(
            (sys.executable, "-m", "benchmarks.run", str(path.resolve()), *options)
            + ("--prompt", str(prompt_tokens), "--trial", str(into))
        )
        if done.failure:
            last = done.tail.strip().splitlines()[-1:]
            raise BadInput(f"{path} could not be measured ({done.failure}): {''.join(last)}")
        result: dict[str, Any] = json.loads(into.read_text())
    # What the file added to a process that had Python and torch in it already; for a file of a few megabytes the
    # process was larger while it imported them, and this is too much.
    result["peak_private_bytes"] = max(
        done.private_peak_bytes - result.pop("base_private_bytes"), result["final_private_dirty_bytes"]
    )
    return result


def compare(
    files: Sequence[Path],
    positions: Sequence[int] = POSITIONS,
    new_tokens: int = 16,
    prompt_tokens: int = 1000,
    rounds: int = 3,
    progress: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Measure files in turns. Returns all trials, medians a file, and ratios of every file to the first."""
    trials: list[list[dict[str, Any]]] = [[] for _ in files]
    for number in range(rounds):
        for index, path in enumerate(files):
            progress(f"round {number + 1} of {rounds}: {path.name}")
            trials[index].append(trial_in_child(path, positions, new_tokens, prompt_tokens))
    results = []
    for index, path in enumerate(files):
        numbers = [key for key, value in trials[index][0].items() if key != "skipped"]
        medians = {key: statistics.median(trial[key] for trial in trials[index]) for key in numbers}
        shared = [key for key in numbers if key in trials[0][0]]
        ratios = {
            key: statistics.median(own[key] / first[key] for own, first in zip(trials[index], trials[0], strict=True))
            for key in shared
            if all(first[key] for first in trials[0])
        }
        results.append(
            {
                "file": str(path),
                "bytes": path.stat().st_size,
                "median": medians,
                "ratio_to_first": ratios,
                "skipped": trials[index][0]["skipped"],
                "trials": trials[index],
            }
        )
    return {"machine": measure.machine(), "rounds": rounds, "new_tokens": new_tokens, "files": results}


def print_comparison(report: dict[str, Any], console: Console) -> None:
    files = report["files"]
    decode = sorted(
        {key for file in files for key in file["median"] if key.startswith("decode_ms_at_")},
        key=lambda key: int(key.rsplit("_", 1)[1]),
    )
    prompt = files[0]["median"]["prompt_tokens"]
    rows: list[tuple[str, str, float]] = [  # label, key, divisor
        ("load, ms", "load_ms", 1),
        ("private dirty after load, MB", "loaded_private_dirty_bytes", 1e6),
        ("peak memory added, MB", "peak_private_bytes", 1e6),
        ("tokens fed at once", "chunk_tokens", 1),
        ("prefill, that many, tokens/s", "chunk_tokens_per_s", 1),
        (f"prefill, prompt of {prompt:.0f}, tokens/s", "prompt_tokens_per_s", 1),
        *((f"decode at {key.rsplit('_', 1)[1]}, ms/token", key, 1) for key in decode),
    ]
    table = Table("", title=f"medians of {report['rounds']} rounds; (×) is the ratio to the first file")
    for file in files:
        table.add_column(Path(file["file"]).name, justify="right")
    for label, key, divisor in rows:
        cells = []
        for number, file in enumerate(files):
            if key not in file["median"]:
                cells.append("–")
                continue
            ratio = f"  (×{file['ratio_to_first'][key]:.2f})" if number and key in file["ratio_to_first"] else ""
            cells.append(f"{file['median'][key] / divisor:,.{0 if key == 'chunk_tokens' else 2}f}{ratio}")
        table.add_row(label, *cells)
    console.print(table)
    for file in files:
        for sentence in file["skipped"]:
            console.print(sentence, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.split("\n\n")[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.pte")
    parser.add_argument(
        "--positions", type=_positions, default=POSITIONS, help="comma-separated (default: 64,1000,4000)"
    )
    parser.add_argument("--new-tokens", type=int, default=16, help="decoded at each position (default: %(default)s)")
    parser.add_argument("--prompt", type=int, default=1000, help="tokens of the prompt (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="trials a file (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print every trial as JSON")
    parser.add_argument("--trial", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    for name in ("new_tokens", "prompt", "rounds"):
        if getattr(flags, name) < 1:
            raise BadInput(f"--{name.replace('_', '-')} {getattr(flags, name)} is not at least 1")
    for path in flags.files:
        if not path.is_file():
            raise BadInput(f"{path} does not exist or is not a file")
    if flags.trial:
        flags.trial.write_text(json.dumps(trial(flags.files[0], flags.positions, flags.new_tokens, flags.prompt)))
        return 0
    console = Console(stderr=True)
    report = compare(flags.files, flags.positions, flags.new_tokens, flags.prompt, flags.rounds, console.print)
    if flags.json:
        print(json.dumps(report, indent=2))
    else:
        print_comparison(report, Console())
    return 0


def _positions(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(item) for item in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of positions like 64,1000") from None


if __name__ == "__main__":
    run(main)

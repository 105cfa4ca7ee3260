"""export.pte against independent ways to the same: ordinary lowering, torchao's eager model, transformers."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.config import read_config
from checkpoints.errors import BadInput
from checkpoints.source import resolve
from checkpoints.synthesize import synthesize
from checkpoints.untied import Untied
from checkpoints.weights import open_checkpoint
from export.engine.session import Session
from export.pte import export_pte
from export.ptefile.reader import open_pte
from export.quantization.recipe import Recipe
from export.quantization.rounding import Quantizing
from tests.ordinary import eager_model, lower_ordinarily

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Full rotary, no GQA, untied, plain rope, as Phi-3-mini; sizes that share no factor but the group."""
    out = tmp_path_factory.mktemp("odd") / "checkpoint"
    return synthesize(
        out, like="phi3-mini-4k", layers=2, hidden=192, intermediate=320, heads=6, kv_heads=6, vocab=352
    )


def logits_of(file: Path, prompt: list[int]) -> torch.Tensor:
    """Logits [1, V] after a prefill in two uneven pieces and one decode step."""
    session = Session(file)
    cut = len(prompt) // 3
    session.step(prompt[:cut], 0)
    session.step(prompt[cut:-1], cut)
    return session.step(prompt[-1:], len(prompt) - 1)


def prompt_for(vocab: int, length: int = 40) -> list[int]:
    return torch.randint(0, vocab, (length,), generator=torch.Generator().manual_seed(1)).tolist()


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("which", ["tiny", "odd"])
def test_equals_the_file_lowered_ordinarily(which: str, odd: Path, tmp_path: Path) -> None:
    """Same bytes in every weight, same logits."""
    folder = resolve("phi4-tiny").folder if which == "tiny" else odd
    out, peer = tmp_path / "ours.pte", tmp_path / "ordinary.pte"
    export_pte(str(folder), out=out, context=512, prefill_chunk=32, kv_cache="fp32", verify=False)
    untied = Untied(open_checkpoint(folder))
    lower_ordinarily(untied, Recipe(), peer, context=512, chunk=32, kv_cache="fp32")

    ours, theirs = open_pte(out), open_pte(peer)
    constants = bytes(theirs.bytes(*theirs.constants))
    weights = Counter(bytes(theirs.data(name)) for name in theirs.named)
    linears = [name for name in ours.parts if "norm" not in name and not name.startswith("tok_embeddings.")]
    assert Counter(bytes(ours.data(name)) for name in linears) == weights
    assert len(linears) == 2 * (7 * untied.config.num_hidden_layers + 1)
    for name in ours.parts.keys() - set(linears):
        assert bytes(ours.data(name)) in constants, name

    prompt = prompt_for(untied.config.vocab_size)
    assert relative_error(logits_of(out, prompt), logits_of(peer, prompt)) < 1e-6


RECIPES = {
    "default": {},
    "bf16 cache": {"kv_cache": "bf16"},
    "group 64": {"group_size": 64},
    "embedding 4": {"embedding_bits": 4},
    "head 8": {"head_bits": 8},
    "int8 layers": {"int8": ["1", "0.mlp.down_proj"], "group_size": 64},
    "float": {"quantize": False},
}


@pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES.keys())
def test_computes_what_torchao_computes(options: dict, odd: Path, tmp_path: Path) -> None:
    """Against torchao's eager model, which rounds activations to int8 by the same rule; every option once."""
    options = {"kv_cache": "fp32"} | options
    out = tmp_path / "f.pte"
    exported = export_pte(str(odd), out=out, context=64, prefill_chunk=32, verify=False, **options)
    recipe = Recipe(
        options.get("quantize", True),
        options.get("group_size", 32),
        options.get("embedding_bits", 8),
        options.get("head_bits", 4),
        int8=options.get("int8", ()),
    ).resolved(read_config(odd))
    untied = Untied(open_checkpoint(odd))
    model = eager_model(untied, recipe, 64, options["kv_cache"])
    prompt = prompt_for(untied.config.vocab_size)
    with torch.no_grad():
        wanted = model(torch.tensor([prompt]), torch.tensor([0]))
    # A value that lies between two int8 steps, or two bfloat16, may fall to either side: sums differ in order.
    bound = 1e-5 if not recipe.quantized else 3e-2 if options["kv_cache"] == "bf16" else 1e-2
    assert relative_error(logits_of(out, prompt)[-1:], wanted) < bound
    assert exported.manifest["recipe"] == str(recipe)
    assert Recipe(**exported.manifest["options"]["recipe"]) == recipe


@pytest.mark.parametrize("flags", [{"full_logits": True}, {"speculate": 0}, {"speculate": 4}, {"speculate": 100}])
def test_logits_are_those_of_the_last_positions(flags: dict[str, Any], odd: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.pte"
    export_pte(
        str(odd), out=out, context=64, prefill_chunk=32, verify=False, kv_cache="fp32", quantize=False, **flags
    )
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(odd, dtype=torch.float32)
    prompt = prompt_for(reference.config.vocab_size, 46)
    with torch.no_grad():
        wanted = reference(torch.tensor([prompt])).logits[0]
    session, at = Session(out), 0
    for count in (32, 1, 3, 4, 6):
        logits, at = session.step(prompt[at : at + count], at), at + count
        rows = count if "full_logits" in flags else min(count, flags["speculate"] + 1)
        assert logits.shape[0] == rows and relative_error(logits, wanted[at - rows : at]) < 1e-5


def test_same_input_same_bytes_and_what_lies_beside(odd: Path, tmp_path: Path) -> None:
    files = []
    for name in ("one.pte", "two.pte"):
        code = "from export.pte import main; main("
        code += f"['--checkpoint', {str(odd)!r}, '--out', {name!r}, '--context', '512', '--no-verify'])"
        paths = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=paths)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"one.pte", "one.json", "two.pte", "two.json", "tokenizer.json", "tokenizer_config.json"}
    manifest = json.loads((tmp_path / "one.json").read_text())
    assert manifest["file"]["bytes"] == len(files[0])
    config = Untied(open_checkpoint(odd)).config
    assert manifest["planned"]["kv_cache_bytes"] == 2 * 2 * config.num_hidden_layers * config.kv_dim * 512


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_leaves_nothing(number: int, odd: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "export.pte", "--checkpoint", str(odd), "--out", str(tmp_path / "f.pte")]
    command += ["--context", "512"]
    # A shell starts its background jobs deaf to Ctrl-C, and tests may be one.
    hear = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=hear)
    while not list(tmp_path.glob(".f.pte.*.partial")):  # the work has begun
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    # Python ends by the signal itself (which a shell shows as 130 too) where it comes in the middle of its own exit
    assert process.returncode in (130, -signal.SIGINT), errors
    if process.returncode == 130:
        assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_fails_its_verification_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight goes wrong on its way into the file: rows of one projection come out in the wrong order."""

    from export import pipeline

    place = pipeline.place

    def swap(*arguments):  # type: ignore[no-untyped-def]
        placed = place(*arguments)
        at = next(i for i, item in enumerate(placed) if item.name == "layers.1.feed_forward.w1")
        twin = next(item for item in placed if item.name == "layers.1.feed_forward.w3")
        placed[at] = dataclasses.replace(placed[at], rows=twin.rows)
        return placed

    monkeypatch.setattr(pipeline, "place", swap)
    with pytest.raises(pipeline.VerificationFailed):
        export_pte("phi4-tiny", out=tmp_path / "f.pte", context=64, prefill_chunk=32)
    assert list(tmp_path.iterdir()) == []


def test_streaming_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Private memory of the weight stage on 34 and on 128 MB of weights: a piece with its temporaries, whichever."""
    code = """
import sys, pathlib, torch
torch.set_num_threads(1)  # as export.program.weight_writer does: each thread keeps freed memory of its own
from checkpoints.config import read_config
from checkpoints.source import resolve
from export.quantization.recipe import Recipe
from export.planning.places import place
from export.program import weight_writer as weights
from export.progress import memory_bytes
folder = pathlib.Path(sys.argv[1])
source = resolve(str(folder))
placed = place(read_config(folder), Recipe())
out = folder / "weights"; out.touch()
weights.write_weight(out, 0, source, Recipe(), placed[0])  # libraries warm up
before, peak = memory_bytes(), 0
def watch(n):
    global peak
    peak = max(peak, memory_bytes())
weights.tell = watch
for item in placed:
    weights.write_weight(out, 0, source, Recipe(), item)
print(peak - before)
"""
    growth = {}
    for layers in (4, 16):
        folder = synthesize(tmp_path / str(layers), layers=layers, hidden=768, intermediate=1024, heads=6, vocab=2048)
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        growth[layers] = int(done.stdout.split()[-1])
    assert growth[16] - growth[4] < 70e6, growth  # the 12 layers more are 94 MB


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"context": 131073}, "131073"),
        ({"context": 1}, "--context 1"),
        ({"prefill_chunk": 8192}, "8192"),
        ({"kv_cache": "int8"}, "int8"),
        ({"group_size": 48}, "48"),
        ({"bos_id": 5000}, "5000"),
        ({"eos_ids": [7, -1]}, "-1"),
    ],
)
def test_options_out_of_range(options: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words):
        export_pte("phi4-tiny", out=tmp_path / "f.pte", **options)
    assert list(tmp_path.iterdir()) == []


def test_group_size_that_does_not_divide(odd: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"192 cannot be cut into groups of 128, 64 columns"):
        Quantizing(Untied(open_checkpoint(odd)), Recipe(group_size=128))
    with pytest.raises(BadInput, match="groups of 128"):
        export_pte(str(odd), out=tmp_path / "f.pte", group_size=128, context=512)


def test_sliding_window_shorter_than_the_context(odd: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="sliding_window 2047 of .* is shorter than the context 4096"):
        export_pte(str(odd), out=tmp_path / "f.pte", context=4096)


@pytest.mark.parametrize("out", ["missing/f.pte", ".", "f.bin", "/proc/f.pte"])
def test_place_that_cannot_be_written(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="--out"):
        export_pte("phi4-tiny", out=out)


def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1000))
    with pytest.raises(BadInput, match=r"has 0.0 MB free, 4\.\d MB"):
        export_pte("phi4-tiny", out=tmp_path / "f.pte")
    assert list(tmp_path.iterdir()) == []


def test_graph_memory_does_not_grow_with_the_context() -> None:
    """Peak memory of the graph for a context of 64 and then of 131072 tokens, whose caches alone are 4.3 GB."""
    code = """
import dataclasses, resource
from checkpoints.config import read_config
from checkpoints.source import resolve
from export.options import ExportOptions
from export.program.trace import build_graph
config = dataclasses.replace(read_config(resolve("phi4-tiny").folder), num_hidden_layers=4, num_key_value_heads=8,
                             num_attention_heads=8, tie_word_embeddings=False)
for context in (64, 131072):
    options = ExportOptions(context, 32, "fp32", bos_id=1, eos_ids=(2,))
    graph = build_graph(config, options)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, graph.planned_bytes)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    (short, _), (long, planned) = (map(int, line.split()) for line in done.stdout.splitlines()[-2:])
    assert planned > 2e9
    assert long - short < 0.2e9  # the rope tables and their copies

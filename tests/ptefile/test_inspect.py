"""export.inspect: every byte has a kind, every linear its quantization, in our files and in those of others."""

import dataclasses
import importlib.util
import io
import json
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from torchao.core.config import AOBaseConfig

from checkpoints.errors import run
from checkpoints.families import tensor_shapes
from checkpoints.roles import HEAD
from checkpoints.source import resolve
from checkpoints.untied import Untied
from checkpoints.weights import open_checkpoint
from export.inspect import Expected, Inspection, inspect, main, problems, show
from export.pte import export_pte
from export.ptefile.contents import Contents, Other
from export.ptefile.dissect import partition
from export.ptefile.reader import open_pte
from export.quantization.recipe import Recipe
from export.xnnpack.reader import DATATYPES, FULLY_CONNECTED, Unreadable, read_xnngraph
from tests.ordinary import lower_ordinarily

ROOT = Path(__file__).parents[2]


class HeadLeftOut(Recipe):
    """The published recipe: torchao quantizes what its layout calls linears, which the tied lm_head is not."""

    def torchao_config(self, name: str) -> AOBaseConfig | None:
        return None if name == HEAD else super().torchao_config(name)


@pytest.fixture(scope="module")
def foreign(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lowered by upstream's own passes: weights are called by their hashes, constants have no names."""
    out = tmp_path_factory.mktemp("foreign") / "foreign.pte"
    checkpoint = Untied(open_checkpoint(tiny_folder))
    lower_ordinarily(checkpoint, HeadLeftOut(), out, context=64, chunk=8, kv_cache="fp32")
    return out


class Plain(nn.Module):
    """Nothing quantized, nothing delegated, and a table nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(512, 64)
        self.inner, self.output = nn.Linear(64, 96, bias=False), nn.Linear(96, 512, bias=False)
        self.register_buffer("table", torch.randn(4200, 64))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.output(self.inner(self.tok_embeddings(tokens) + self.table[7]))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from executorch.exir import EdgeCompileConfig, to_edge

    program = torch.export.export(Plain(), (torch.zeros(1, 3, dtype=torch.long),))
    out = tmp_path_factory.mktemp("plain") / "plain.pte"
    out.write_bytes(
        to_edge(program, compile_config=EdgeCompileConfig(_check_ir_validity=False)).to_executorch().buffer
    )
    return out


@pytest.fixture(scope="module")
def contents(tiny_pte: Path) -> Contents:
    return inspect(tiny_pte).contents


def shown(inspection: Inspection) -> str:
    text = io.StringIO()
    show(inspection, Console(file=text, width=100))
    return text.getvalue()


def test_partition_gives_each_byte_to_the_first_claim() -> None:
    assert partition([(2, 3, "a"), (0, 6, "b"), (4, 100, "c")], 10) == {"a": 3, "b": 3, "c": 4}
    assert partition([], 5) == {"padding": 5} and partition([(0, 4, "a")], 0) == {}
    for seed in range(50):
        chance = random.Random(seed)
        size = chance.randint(1, 60)
        claims = [(chance.randint(-5, 65), chance.randint(0, 20), chance.choice("abc")) for _ in range(9)]
        slow = Counter(
            next((kind for at, length, kind in claims if at <= byte < at + length), "padding") for byte in range(size)
        )
        assert partition(claims, size) == slow


def test_kinds_are_the_files_bytes(tiny_pte: Path, contents: Contents) -> None:
    kinds = contents.kinds
    assert sum(kinds.values()) == contents.file_bytes == tiny_pte.stat().st_size
    named = open_pte(tiny_pte).parts
    assert kinds["int4 weights"] == sum(
        size
        for name, (_, size) in named.items()
        if name.endswith(".weight") and re.search(r"\.w[qkvo123]\.|^output", name)
    )
    assert kinds["scales"] == sum(size for name, (_, size) in named.items() if name.endswith(".scale"))
    assert kinds["norms"] == sum(size for name, (_, size) in named.items() if "norm" in name)
    assert kinds["embedding"] == named["tok_embeddings.weight"][1]
    assert kinds["rope tables"] == 2 * 4 * 256 * 24  # cos and sin of 256 positions and 48 rotated dimensions
    assert kinds["padding"] < 200_000 and kinds["other constants"] < 100


def test_contents_are_the_models(tiny_pte: Path, contents: Contents) -> None:
    config = open_checkpoint(resolve("phi4-tiny").folder).config
    manifest = json.loads(tiny_pte.with_suffix(".json").read_bytes())
    assert (contents.layers, contents.vocab_size) == (config.num_hidden_layers, config.vocab_size)
    assert len(contents.linears) == 7 * contents.layers + 1 and len(contents.delegates) == 3 * contents.layers + 1
    assert {(linear.weight, linear.group_size, linear.activation) for linear in contents.linears} == {
        ("int4", 32, "dynamic int8")
    }
    (head,) = [linear for linear in contents.linears if linear.is_head]
    assert (head.label, head.rows, head.columns) == ("lm_head (output)", config.vocab_size, config.hidden_size)
    table = contents.embedding
    assert table is not None
    assert (table.weight, table.rows, table.columns) == ("int8", config.vocab_size, config.hidden_size)
    held = sum(len(delegate.linears) for delegate in contents.delegates)
    assert held == len(contents.linears) and not contents.others[1:] and not contents.missing
    assert contents.linear_bits_per_weight == 4.5 and 4.5 < contents.bits_per_weight < 5.2
    tied = sum(torch.Size(shape).numel() for shape in tensor_shapes(config).values())
    assert contents.parameters == tied + config.vocab_size * config.hidden_size
    planned = manifest["planned"]
    assert contents.kv_cache_bytes == planned["kv_cache_bytes"] == 2 * 4 * 256 * config.kv_dim * 2
    assert contents.activation_bytes == planned["activation_bytes"]
    assert contents.operators["llama::custom_sdpa"] == contents.layers and "aten::mm" not in contents.operators
    assert contents.metadata["get_max_context_len"] == 256 and contents.metadata["get_eos_ids"] == [2040, 2038]


def test_strict_passes_and_follows_the_manifest(tiny_pte: Path, tmp_path: Path) -> None:
    assert inspect(tiny_pte, strict=True).problems == ()
    file, manifest = tmp_path / "tiny.pte", tmp_path / "tiny.json"
    shutil.copy(tiny_pte, file)
    assert inspect(file, strict=True).expected == Expected()

    def asked(recipe: Recipe, **flags: Any) -> tuple[str, ...]:
        manifest.write_text(json.dumps({"file": {"name": file.name}, "options": {"recipe": asdict(recipe)}}))
        return inspect(file, strict=True, **flags).problems

    (problem,) = asked(Recipe(head_bits=8))
    assert problem == (
        "lm_head (output) [2048, 384] is int4 in groups of 32 with dynamic int8 activations, "
        "not int8 with a scale a row with dynamic int8 activations"
    )
    assert asked(Recipe(head_bits=8), head_bits=4) == ()
    assert len(asked(Recipe(group_size=64))) == 29
    assert asked(Recipe(embedding_bits=4)) == ("the embedding is int8, not int4",)
    assert len(asked(Recipe(False))) == 29 and len(asked(Recipe(), linears="fp32")) == 29
    assert [problem.split(" [")[0] for problem in asked(Recipe(int8=("1.self_attn", "2.mlp.down_proj")))] == [
        *(f"layers.1.attention.w{one}" for one in "qkvo"),
        "layers.2.feed_forward.w2",
    ]
    assert asked(Recipe(int8=("1",)), int8=[]) == () and len(asked(Recipe(), int8=["1"])) == 7
    manifest.write_text("[]")
    assert inspect(file, strict=True).problems == ()


def test_a_mixed_file_is_as_asked(tmp_path: Path) -> None:
    names = ["0.self_attn.o_proj", "1", "2.mlp.down_proj"]
    export_pte("phi4-tiny", out=tmp_path / "mixed.pte", context=128, prefill_chunk=32, int8=names, verify=False)
    inspection = inspect(tmp_path / "mixed.pte", strict=True)
    assert inspection.problems == () and inspection.expected and len(inspection.expected.int8) == 6
    eight = [linear for linear in inspection.contents.linears if linear.weight == "int8"]
    assert len(eight) == 9 and inspection.contents.kinds["int8 weights"] == sum(
        linear.rows * linear.columns for linear in eight
    )
    text = shown(inspection)
    assert "layers.1-2.feed_forward.w2" in text and "layers.0,3.feed_forward.w2" in text
    (tmp_path / "mixed.json").unlink()
    assert len(inspect(tmp_path / "mixed.pte", strict=True).problems) == 9
    assert inspect(tmp_path / "mixed.pte", int8=names, strict=True).problems == ()


def test_foreign_file_with_a_float32_head_fails(foreign: Path) -> None:
    contents = inspect(foreign).contents
    assert sum(contents.kinds.values()) == foreign.stat().st_size
    assert len(contents.linears) == 15 and contents.layers == 2
    assert contents.kinds["float32 weights"] == 512 * 64 * 4
    assert contents.kinds["int4 weights"] == sum(
        linear.rows * linear.columns // 2 for linear in contents.linears if not linear.is_head
    )
    assert contents.kinds["rope tables"] == 2 * 4 * 64 * 6 and contents.kinds["norms"] == 5 * 4 * 64
    assert contents.kinds["embedding"] == 512 * 64 and contents.kv_cache_bytes == 2 * 2 * 4 * 64 * 64
    assert contents.kinds["other constants"] < 100

    line = [sys.executable, "-m", "export.inspect", str(foreign), "--strict"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "float32" in done.stdout
    assert done.stderr == (
        f"error: {foreign}: lm_head [512, 64] is float32 with float32 activations, "
        "not int4 in groups with dynamic int8 activations\n"
    )


def test_what_the_program_computes_itself_is_named(plain: Path) -> None:
    inspection = inspect(plain, strict=True)
    contents, text = inspection.contents, "\n".join(inspection.problems)
    assert sum(contents.kinds.values()) == plain.stat().st_size
    assert [(linear.is_head, linear.rows, linear.columns) for linear in contents.linears] == [
        (False, 96, 64),
        (True, 512, 96),
    ]
    assert re.search(r"lm_head \[512, 96\] is float32 and not delegated, the program computes it with aten::", text)
    assert "the embedding [512, 64] is float32, not quantized" in text
    assert re.search(r"constant \d+ \[4200, 64\] is float32 and takes 1\.1 MB", text)
    assert len(inspection.problems) == 4 and "not delegated, aten::" in shown(inspection)


def test_every_other_fault_is_told(contents: Contents) -> None:
    def told(expected: Expected | None = None, **changes: Any) -> list[str]:
        return problems(dataclasses.replace(contents, **changes), expected or Expected())

    def with_linear(**changes: Any) -> list[str]:
        return told(linears=(dataclasses.replace(contents.linears[0], **changes), *contents.linears[1:]))

    assert told() == []
    for change in ({"activation": "float32"}, {"weight": "int8"}, {"group_size": None}, {"weight": "float32"}):
        assert len(with_linear(**change)) == 1 and "layers.0.attention.wq [384, 384]" in with_linear(**change)[0]
    assert told(Expected(group_size=64))[0].endswith("not int4 in groups of 64 with dynamic int8 activations")
    assert told(operators={"aten::bmm": 2}) == ["aten::bmm is not delegated (2 in each forward)"]
    assert told(missing=("abc",)) == ["abc is asked for by a delegate, but is not in the file"]
    assert told(embedding=None) == ["no embedding was found"]
    assert told(others=(Other("mask", "float32", (1024, 257), 4 * 1024 * 257),)) != []
    assert told(others=(Other("mask", "bool", (4096, 4096), 4096**2),)) == []
    strange = dataclasses.replace(contents.delegates[0], problem="only XNNPACK's graphs can be read")
    assert "cannot be checked" in told(delegates=(strange,))[0]
    head = [dataclasses.replace(linear, weight="int8", group_size=None) for linear in contents.linears[-1:]]
    eight = (*contents.linears[:-1], *head)
    assert told(Expected(head_bits=8), linears=eight) == [] and len(told(linears=eight)) == 1


def test_output_for_people_and_programs(tiny_pte: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspection = inspect(tiny_pte, strict=True)
    text = shown(inspection)
    assert max(map(len, text.splitlines())) <= 100 and "…" not in text
    assert f"{tiny_pte.stat().st_size:,}" in text and "layers.*.attention.wq wk wv" in text and "as asked" in text
    assert main([str(tiny_pte), "--json", "--strict"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(inspection.as_json()))
    assert sum(printed["kinds"].values()) == tiny_pte.stat().st_size


def test_not_a_pte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file, sentence in ((__file__, "is not an ExecuTorch program"), (tmp_path / "nowhere.pte", "does not exist")):
        with pytest.raises(SystemExit) as left:
            run(main, [str(file), "--strict"])
        printed = capsys.readouterr()
        assert (left.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
        assert printed.err.startswith("error: ") and sentence in printed.err


def test_numbers_are_those_of_the_schema() -> None:
    spec = importlib.util.find_spec("executorch")
    assert spec is not None and spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0], "backends", "xnnpack", "serialization")
    schema = re.sub(r"//.*", "", (folder / "schema.fbs").read_text())
    union = re.search(r"union XNodeUnion \{(.*?)\}", schema, re.S)
    enum = re.search(r"enum XNNDatatype : short \{(.*?)\}", schema, re.S)
    assert union and enum
    assert union[1].split(",")[FULLY_CONNECTED - 1].strip() == "XNNFullyConnected"  # 0 is "none"
    theirs = {int(number): name for name, number in re.findall(r"xnn_datatype_(\w+) = (\d+)", enum[1])}
    assert {number: name for number, (name, _, _) in DATATYPES.items()} == {n: t for n, t in theirs.items() if n}


def test_damaged_graphs_are_refused_not_misread(tiny_pte: Path, tmp_path: Path) -> None:
    pte = open_pte(tiny_pte)
    blob = bytes(pte.bytes(*pte.delegates[0]))
    read = refused = 0
    for seed in range(300):
        chance, damaged = random.Random(seed), bytearray(blob)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        damaged = damaged[: chance.choice([len(damaged), chance.randrange(len(damaged))])]
        try:
            read_xnngraph(memoryview(damaged))
            read += 1
        except Unreadable as problem:
            assert str(problem).isprintable()
            refused += 1
    assert read > 20 and refused > 100

    whole = bytearray(tiny_pte.read_bytes())
    at, size = pte.delegates[0]
    whole[at : at + size] = bytes(size)
    (tmp_path / "damaged.pte").write_bytes(whole)
    inspection = inspect(tmp_path / "damaged.pte", strict=True)
    assert any("delegate 0 (XnnpackBackend) cannot be checked" in problem for problem in inspection.problems)
    assert sum(inspection.contents.kinds.values()) == len(whole)

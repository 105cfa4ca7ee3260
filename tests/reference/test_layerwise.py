"""What export.verify compares with: streams are transformers, roundings are torchao's, unpacking undoes packing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import quantize_
from transformers import Phi3ForCausalLM

from checkpoints.config import read_config
from checkpoints.roles import EMBEDDING, HEAD
from checkpoints.source import resolve
from checkpoints.synthesize import synthesize
from export.quantization.packing import pack, unpack
from export.quantization.recipe import Recipe
from export.quantization.rounding import round_rows
from export.quantization.saved_reader import open_quantized
from export.reference.layerwise import CheckpointWeights, Stream, round_activations, stream_logits

TINY = resolve("phi4-tiny").folder


def near_checkpoint(folder: Path, out: Path) -> Path:
    """A copy whose long factors start after 64 tokens."""
    shutil.copytree(folder, out)
    raw = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(raw | {"original_max_position_embeddings": 64}))
    return out


@pytest.fixture
def near(tiny_folder: Path, tmp_path: Path) -> Path:
    return near_checkpoint(tiny_folder, tmp_path / "near")


def ids_for(vocab: int, count: int) -> list[int]:
    return torch.randint(0, vocab, (count,), generator=torch.Generator().manual_seed(3)).tolist()


def weights_of(folder: Path) -> CheckpointWeights:
    return CheckpointWeights(open_quantized(resolve(str(folder)), Recipe()))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("which", ["phi4-tiny", "near"])
def test_streamed_reference_is_transformers(which: str, near: Path) -> None:
    """80 tokens: short factors in phi4-tiny, long ones in `near`, each by transformers' own choice."""
    folder = TINY if which == "phi4-tiny" else near
    ids = ids_for(read_config(folder).vocab_size, 80)
    model = Phi3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    streams = [Stream("all", 80, tuple(range(80)), 80), Stream("some", 30, (3, 29), 80)]
    found = stream_logits(streams, ids, weights_of(folder))
    assert relative(found["all"], expected) < 1e-6
    assert relative(found["some"], expected[[3, 29]]) < 1e-6, "a prefix sees the factors of the whole"


def test_rope_length_forces_long_factors(near: Path) -> None:
    ids = ids_for(512, 40)
    streams = [Stream("short", 40, (39,), 64), Stream("long", 40, (39,), 65), Stream("longer", 40, (39,), 9999)]
    found = stream_logits(streams, ids, weights_of(near))
    model = Phi3ForCausalLM.from_pretrained(near, dtype=torch.float32)
    with torch.no_grad():
        assert relative(found["short"], model(torch.tensor([ids])).logits[0, -1:]) < 1e-6
    assert torch.equal(found["long"], found["longer"])
    assert relative(found["long"], found["short"]) > 1e-3


def test_reference_reads_an_untied_checkpoint(tmp_path: Path) -> None:
    folder = synthesize(tmp_path / "untied", layers=2, hidden=64, intermediate=96, heads=4, vocab=512, untied=True)
    ids = ids_for(512, 20)
    model = Phi3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1:]
    assert relative(stream_logits([Stream("a", 20, (19,), 20)], ids, weights_of(folder))["a"], expected) < 1e-6


def test_activations_are_rounded_as_torchao_rounds_them() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 96) * torch.logspace(-3, 3, 7).unsqueeze(1)
    x[2] = 0
    x[3].abs_()
    linear = nn.Linear(96, 96, bias=False)
    linear.weight.data = torch.eye(96) * 7.5  # int4 with scale 1: the identity times 7
    quantize_(linear, Recipe().torchao_config("model.layers.0.mlp.down_proj.weight"))
    with torch.no_grad():
        assert torch.equal(linear(x), round_activations(x) @ linear.weight.dequantize().T)


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("name", [EMBEDDING, HEAD, "model.layers.0.mlp.down_proj.weight"])
@pytest.mark.parametrize("bits", [4, 8])
def test_unpack_undoes_pack(name: str, group: int, bits: int) -> None:
    torch.manual_seed(0)
    storage = Recipe(True, group, bits, bits).storage(name, 128)
    rows = round_rows(torch.randn(6, 128), storage)
    parts = pack(rows)
    assert {part: data.nbytes for part, data in parts.items()} == storage.nbytes(6)
    assert torch.equal(unpack(parts["weight"], parts["scale"].float(), storage), rows.dequantize())

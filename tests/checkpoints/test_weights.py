"""open_checkpoint: the right bytes, in bounded memory, and one sentence for every kind of damage."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from checkpoints.errors import BadInput
from checkpoints.families import tensor_shapes
from checkpoints.synthesize import synthesize
from checkpoints.weights import INDEX, open_checkpoint

QKV = "model.layers.0.self_attn.qkv_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture
def single(tiny: Path) -> Path:
    """The tiny checkpoint as one model.safetensors, made by the safetensors library."""
    tensors = everything(tiny)
    for file in [*tiny.glob("model-*.safetensors"), tiny / INDEX]:
        file.unlink()
    save_file(tensors, tiny / "model.safetensors")
    return tiny


def everything(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refuses(folder: Path, sentence: str, **kwargs: Any) -> None:
    with pytest.raises(BadInput, match=sentence) as caught:
        open_checkpoint(folder, **kwargs)
    assert str(caught.value).isprintable()


def test_reads_what_the_library_reads(tiny: Path) -> None:
    checkpoint, reference = open_checkpoint(tiny), everything(tiny)
    assert [file.name for file in checkpoint.files] == [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    assert checkpoint.names() == list(tensor_shapes(checkpoint.config))
    assert set(checkpoint.names()) == set(reference)
    for name in checkpoint.names():
        tensor = checkpoint.tensor(name)
        assert torch.equal(tensor, reference[name])
        assert (tuple(tensor.shape), tensor.dtype) == (checkpoint.shape(name), checkpoint.dtype(name))
        assert checkpoint.nbytes(name) == tensor.nbytes
        checkpoint.release(name)
        assert torch.equal(tensor, reference[name])


def test_writing_does_not_reach_the_file(single: Path) -> None:
    before = (single / "model.safetensors").read_bytes()
    open_checkpoint(single).tensor(NORM).zero_()
    assert (single / "model.safetensors").read_bytes() == before


def test_links_as_in_the_hub_cache(tiny: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for i, file in enumerate(sorted(tiny.iterdir())):
        (snapshot / file.name).symlink_to(file.rename(tmp_path / f"blob{i}"))
    assert len(open_checkpoint(snapshot).names()) == 14


def test_mixed_dtypes_and_unaligned_data(single: Path) -> None:
    change(single, lambda tensors: tensors.update({NORM: tensors[NORM].float()}))
    file = single / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    # A header of odd length, as writers other than the library make.
    file.write_bytes((length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :])
    checkpoint = open_checkpoint(single)
    assert checkpoint.dtype(NORM) == torch.float32
    for name, tensor in load_file(file).items():
        assert torch.equal(checkpoint.tensor(name), tensor)
        assert checkpoint.tensor(name).data_ptr() % tensor.itemsize == 0


def test_old_rotary_buffers_are_ignored(single: Path) -> None:
    change(single, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}))
    assert open_checkpoint(single).names() == list(tensor_shapes(open_checkpoint(single).config))


def test_head_beside_tied_embeddings(single: Path) -> None:
    embedding = everything(single)["model.embed_tokens.weight"]
    change(single, lambda tensors: tensors.update({"lm_head.weight": embedding.clone()}))
    assert "lm_head.weight" not in open_checkpoint(single).names()
    change(single, lambda tensors: tensors["lm_head.weight"][-1, -1].add_(1))
    opened = open_checkpoint(single)
    assert "lm_head.weight" in opened.names() and not opened.config.tie_word_embeddings
    assert "lm_head.weight differs from the embedding" in opened.config.notes[0]
    model = AutoModelForCausalLM.from_pretrained(single, dtype=torch.float32)
    assert torch.equal(model.lm_head.weight, opened.tensor("lm_head.weight").float())  # transformers does the same
    assert torch.equal(model.model.embed_tokens.weight, opened.tensor("model.embed_tokens.weight").float())
    change(single, lambda tensors: tensors.update({"lm_head.weight": embedding.float()}))
    assert "lm_head.weight" not in open_checkpoint(single).names(), "equal in another dtype"
    change(single, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    assert torch.equal(open_checkpoint(single).tensor("model.embed_tokens.weight"), embedding.float())
    set_config(single, tie_word_embeddings=False)
    refuses(single, "no tensor model.embed_tokens.weight")


def split(tensors: dict[str, torch.Tensor], queries: int, keys: int) -> dict[str, torch.Tensor]:
    """Fused projections as Llama has them."""
    found = {}
    for name, tensor in tensors.items():
        if "qkv_proj" in name:
            parts = zip("qkv", tensor.split([queries, keys, keys]), strict=True)
            found |= {name.replace("qkv_proj", f"{part}_proj"): rows.clone() for part, rows in parts}
        elif "gate_up_proj" in name:
            gate, up = tensor.chunk(2)
            found |= {name.replace("gate_up", "gate"): gate.clone(), name.replace("gate_up", "up"): up.clone()}
        else:
            found[name] = tensor
    return found


def test_llamas_names_are_fused_by_rows(single: Path) -> None:
    reference = everything(single)
    save_file(split(reference, 64, 64), single / "model.safetensors")
    opened = open_checkpoint(single)
    assert opened.names() == list(tensor_shapes(opened.config))
    for name, tensor in reference.items():
        assert opened.shape(name) == tensor.shape and opened.nbytes(name) == tensor.nbytes
        assert torch.equal(opened.tensor(name), tensor)
        for start, stop in ((0, 5), (60, 70), (len(tensor) - 1, len(tensor)), (1, len(tensor))):
            assert torch.equal(opened.rows(name, start, stop), tensor[start:stop])
        opened.prefetch(name)
        opened.release(name)
    change(single, lambda t: t.update({QKV.replace("qkv", "k"): t[QKV.replace("qkv", "k")].float()}))
    opened = open_checkpoint(single)
    assert opened.dtype(QKV) == opened.tensor(QKV).dtype == opened.rows(QKV, 0, 1).dtype == torch.float32
    change(single, lambda t: t.pop(QKV.replace("qkv", "k")))
    refuses(single, r"has no tensor model.layers.0.self_attn.k_proj.weight")
    change(single, lambda t: t.update({QKV.replace("qkv", "k"): torch.ones(32, 64)}))
    refuses(single, r"k_proj.weight has shape \(32, 64\), config.json makes it \(64, 64\)")
    change(single, lambda t: t.update({QKV: reference[QKV]}))
    refuses(single, "k_proj.weight.* is not a tensor of a dense Phi-3 model")


@pytest.mark.parametrize(
    "spell",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"module._orig_mod.base_model.model.{name}",
        lambda name: name.replace("self_attn", "_orig_mod.self_attn"),
        lambda name: name.removeprefix("model."),
    ],
)
def test_names_with_prefixes(single: Path, spell: Callable[[str], str]) -> None:
    reference = everything(single)
    save_file({spell(name): tensor for name, tensor in reference.items()}, single / "model.safetensors")
    opened = open_checkpoint(single)
    assert opened.names() == list(tensor_shapes(opened.config))
    assert all(torch.equal(opened.tensor(name), reference[name]) for name in reference)


def test_other_names_are_named(single: Path) -> None:
    save_file({f"transformer.{name}": t for name, t in everything(single).items()}, single / "model.safetensors")
    refuses(single, r'has no tensors model.layers.…, as transformers names them, but "transformer\.')


def test_untied_needs_a_head(single: Path) -> None:
    set_config(single, tie_word_embeddings=False)
    refuses(single, "no tensor lm_head.weight, which tie_word_embeddings false of .*config.json calls for")
    raw = json.loads((single / "config.json").read_text())
    del raw["tie_word_embeddings"]
    (single / "config.json").write_text(json.dumps(raw))
    refuses(
        single, "no tensor lm_head.weight, which tie_word_embeddings false, which transformers takes as .* has none"
    )


def test_names_shapes_and_dtypes(single: Path) -> None:
    set_config(single, num_hidden_layers=3)
    refuses(single, "has 2 layers of tensors, config.json says num_hidden_layers 3")
    set_config(single, num_hidden_layers=1)
    refuses(single, "has 2 layers of tensors, config.json says num_hidden_layers 1")
    set_config(single, num_hidden_layers=2, intermediate_size=95)
    refuses(single, r"gate_up_proj.weight has shape \(192, 64\), config.json makes it \(190, 64\)")
    set_config(single, intermediate_size=96)
    original = everything(single)

    def refused(sentence: str, **changes: torch.Tensor | None) -> None:
        tensors = {k: v for k, v in (original | changes).items() if v is not None}
        save_file(tensors, single / "model.safetensors")
        refuses(single, sentence)
        assert len(open_checkpoint(single, check=False).names()) == len(tensors)

    refused(f"has no tensor {QKV}", **{QKV: None})
    refused("is a bias", **{QKV.replace("weight", "bias"): torch.ones(128)})
    refused("loss_scale.* is not a tensor of a dense", **{"model.layers.0.self_attn.loss_scale": torch.ones(2)})
    lora = "base_model.model.model.layers.0.self_attn.qkv_proj"
    refused("lora_A.* is of an adapter that was not merged", **{f"{lora}.lora_A.default.weight": torch.ones(2)})
    refused("base_layer.* is of an adapter that was not", **{QKV: None, f"{lora}.base_layer.weight": torch.ones(2)})
    refused("twice, as ", **{f"_orig_mod.{NORM}": original[NORM].clone()})
    refused("is torch.int8, not bfloat16", **{QKV: original[QKV].to(torch.int8)})
    refused("has 3 layers", **{"model.layers.00002.x": torch.ones(2)})
    refused("is not a tensor", **{f"model.layers.{'9' * 6000}.x": torch.ones(2)})
    set_config(single, quantization_config={"quant_method": "awq"})
    refused("already quantized")


def test_files_missing(tiny: Path, tmp_path: Path) -> None:
    (tiny / "model-00002-of-00003.safetensors").unlink()
    refuses(tiny, "model-00002-of-00003.safetensors is missing")
    (tiny / INDEX).unlink()
    refuses(tiny, "neither model.safetensors nor model.safetensors.index.json")
    (tiny / "pytorch_model.bin").touch()
    refuses(tiny, "pickle files")
    refuses(tmp_path / "nowhere", "does not exist")


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "m.bin", 5, "a\\b.safetensors"]
)
def test_index_may_not_leave_the_folder(tiny: Path, shard: Any) -> None:
    index = json.loads((tiny / INDEX).read_text())
    index["weight_map"][NORM] = shard
    (tiny / INDEX).write_text(json.dumps(index))
    refuses(tiny, "not the name of a .safetensors file in this folder", check=False)


def test_index_disagrees(tiny: Path) -> None:
    index = json.loads((tiny / INDEX).read_text())

    def refused(sentence: str, value: Any) -> None:
        (tiny / INDEX).write_text(value if isinstance(value, str) else json.dumps(value))
        refuses(tiny, sentence, check=False)

    refused("is not JSON", "{")
    refused("weight_map must be", {"weight_map": []})
    refused("weight_map must be", {"weight_map": {}})
    refused(
        '"more" is in model-00001.*does not hold it',
        {"weight_map": index["weight_map"] | {"more": index["weight_map"][QKV]}},
    )
    refused("does not hold it", {"weight_map": index["weight_map"] | {NORM: "model-00001-of-00003.safetensors"}})
    (tiny / "copy.safetensors").write_bytes((tiny / "model-00003-of-00003.safetensors").read_bytes())
    refused("is both in", {"weight_map": index["weight_map"] | {"more": "copy.safetensors"}})


def header_of(entries: Any, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: Any, end: Any, dtype: Any = "BF16", shape: Any = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is cut short"),
        (b"\x08\0\0\0\0\0\0\0{}", "its header needs 16 bytes, the file has 10"),
        (b"\xff" * 16, "is cut short"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "pointer of git-lfs.*`git lfs pull`",
        ),
        (header_of(b"{"), "header is not JSON"),
        (header_of(b"[" * 90_000), "header is not JSON"),
        (header_of(b'{"a": 1, "a": 2}'), "a key appears twice"),
        (header_of([]), "not an object"),
        (header_of({"a": 5}), '"a" must be an object'),
        (header_of({"a": entry(0, 4)}, b"1234567"), "has bytes after its tensors"),
        (header_of({"a": entry(0, 4)}, b"12"), "is cut short: its tensors end at byte"),
        (header_of({"a": entry(2, 6)}, b"123456"), "leaves a hole"),
        (header_of({"a": entry(0, 4), "b": entry(2, 6)}, b"123456"), "overlaps"),
        (header_of({"a": entry(0, 4), "b": entry(0, 4)}, b"1234"), "overlaps"),
        (header_of({"a": entry(0, 6)}, b"123456"), "4 bytes, but has 6 bytes"),
        (header_of({"a": entry(4, 0)}, b"1234"), "4 bytes, but has -4 bytes"),
        (header_of({"a": entry(-4, 0)}), "data_offsets"),
        (header_of({"a": entry(0, 1 << 62, shape=[1 << 61])}), "shape"),
        (header_of({"a": entry(0, 4, shape=[2.0])}, b"1234"), "shape"),
        (header_of({"a": entry(0, 4, shape=[-1, -2])}, b"1234"), "shape"),
        (header_of({"a": entry(0, 4, dtype="I4")}, b"1234"), 'unknown dtype "I4"'),
        (header_of({"a": entry(0, 4, dtype=["BF16"])}, b"1234"), "unknown dtype"),
    ],
)
def test_damaged_file(single: Path, content: bytes, sentence: str) -> None:
    (single / "model.safetensors").write_bytes(content)
    refuses(single, sentence, check=False)


def test_any_damage_is_told_in_a_sentence(single: Path) -> None:
    file = single / "model.safetensors"
    good = file.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    rng = random.Random(0)
    refused = 0
    for _ in range(400):
        bad = bytearray(good)
        if rng.random() < 0.2:
            del bad[rng.randrange(len(bad)) :]
        else:
            bad[rng.randrange(header)] = rng.choice([rng.randrange(256), *b'0"{}[],:9'])
        file.write_bytes(bad)
        try:
            checkpoint = open_checkpoint(single)
        except BadInput as problem:
            refused += 1
            assert str(problem).isprintable()
        else:
            assert all(checkpoint.tensor(name).shape for name in checkpoint.names())
    assert refused > 300


PASS = """
import sys
from pathlib import Path
import torch
from checkpoints.weights import open_checkpoint

def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

checkpoint = open_checkpoint(Path(sys.argv[1]))
sizes = [checkpoint.nbytes(name) for name in checkpoint.names()]
print(max(sizes), sum(sizes))
checkpoint.tensor("model.norm.weight").view(torch.int16).max()
for keep in (True, False):
    open("/proc/self/clear_refs", "w").write("5")  # peak = resident now
    before, kept = peak(), []
    for name in checkpoint.names():
        tensor = checkpoint.tensor(name)
        tensor.view(torch.int16).max()  # touches every page
        if keep:
            kept.append(tensor)
            checkpoint.release(name)
    print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_pass_holds_one_tensor(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"layers": 11, "hidden": 1024, "intermediate": 4096, "heads": 8, "vocab": 32000}
    out = synthesize(tmp_path / "large", **sizes, max_shard_gb=0.3)
    output = subprocess.check_output([sys.executable, "-c", PASS, out], text=True)
    largest, total, released, forgotten = map(int, output.split())
    assert total > 350e6
    assert largest / 2 < released < largest + 16e6
    assert largest / 2 < forgotten < 2 * largest + 16e6  # the loop maps one weight before it forgets the last

"""A kept quantized checkpoint is what transformers would save; exporting from one gives the same bytes."""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerGroup
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TorchAoConfig

from checkpoints.config import read_config
from checkpoints.errors import BadInput
from checkpoints.families import tensor_shapes
from checkpoints.roles import EMBEDDING, HEAD
from checkpoints.source import resolve
from checkpoints.synthesize import synthesize
from checkpoints.untied import Untied
from checkpoints.weights import INDEX, open_checkpoint
from export import quantize as quantize_module
from export.planning.places import end, place
from export.program.weight_writer import write_weight
from export.quantization.recipe import Recipe
from export.quantization.rounding import Quantizing
from export.quantization.saved_reader import Saved, open_quantized
from export.quantization.saved_writer import fqn_config, save_quantized
from export.quantize import quantize
from export.untie import untie

O_PROJ, NORM = "model.layers.1.self_attn.o_proj", "model.norm.weight"
LINEARS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
OTHER = Recipe(group_size=64, embedding_bits=4, head_bits=8)
MIXED = Recipe(group_size=64, int8=("0.mlp.down_proj", "1.self_attn.qkv_proj", "1.self_attn.o_proj"))
ALL_EIGHT = Recipe(head_bits=8, int8=tuple(f"{i}.{m}" for i in range(2) for m in LINEARS))
TOKENS = torch.arange(40, 60)[None]


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tied") / "checkpoint"
    return synthesize(out, layers=2, hidden=128, intermediate=192, heads=4, kv_heads=2, vocab=512, max_shard_gb=5e-4)


@pytest.fixture(scope="module")
def kept(tied: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What we write, in the default recipe."""
    return quantize(str(tied), out=tmp_path_factory.mktemp("kept") / "checkpoint")


@pytest.fixture(scope="module")
def model(tied: Path, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    """transformers' own quantization in memory, of the untied checkpoint."""
    untied = untie(str(tied), out=tmp_path_factory.mktemp("untied") / "checkpoint")
    return quantized_by_transformers(untied, Recipe())


@pytest.fixture(scope="module")
def theirs(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers writes of `model`."""
    out = tmp_path_factory.mktemp("theirs") / "checkpoint"
    model.save_pretrained(out)
    return out


@pytest.fixture
def damaged(kept: Path, tmp_path: Path) -> Path:
    """A copy of `kept` to damage."""
    return Path(shutil.copytree(kept, tmp_path / "damaged"))


@pytest.fixture
def recipe_bin(kept: Path, model: PreTrainedModel, tmp_path: Path) -> Path:
    """What the published recipe leaves: a pickled state dict of torchao's tensors beside config.json."""
    return pickled(tmp_path / "bin", kept, model.state_dict())


def quantized_by_transformers(folder: Path, recipe: Recipe) -> PreTrainedModel:
    config = TorchAoConfig(fqn_config(recipe), modules_to_not_convert=[], include_input_output_embeddings=True)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=config
    )
    return model


def pickled(folder: Path, like: Path, state: Any) -> Path:
    folder.mkdir()
    shutil.copyfile(like / "config.json", folder / "config.json")
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def content(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata, as the safetensors library reads them."""
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
        with safe_open(file, "pt") as opened:
            metadata |= opened.metadata()
    return tensors, metadata


def change(folder: Path, edit: Callable[[dict[str, Tensor], dict[str, str]], Any]) -> None:
    tensors, metadata = content(folder)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    edit(tensors, metadata)
    save_file(tensors, folder / "model.safetensors", metadata)


def set_config(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps(raw))


def exported(folder: Path, recipe: Recipe, path: Path) -> bytes:
    """The bytes a `.pte` gets."""
    placed = place(open_quantized(resolve(str(folder)), recipe).config, recipe)
    path.write_bytes(bytes(end(placed)))
    for item in placed:
        write_weight(path, 0, resolve(str(folder)), recipe, item)
    return path.read_bytes()


def refuses(folder: Path, sentence: str, recipe: Recipe | None = None, read: str | None = None) -> None:
    with pytest.raises(BadInput, match=sentence) as caught:
        opened = open_quantized(resolve(str(folder)), recipe or Recipe())
        assert read is not None
        list(opened.rows(read, 0, tensor_shapes(opened.config)[read][0]))
    assert str(caught.value).isprintable()


def test_is_what_transformers_saves(kept: Path, theirs: Path) -> None:
    ours, wanted = content(kept), content(theirs)
    assert set(ours[0]) == set(wanted[0])
    for name, tensor in wanted[0].items():
        assert ours[0][name].dtype == tensor.dtype and torch.equal(ours[0][name], tensor), name
    assert ours[1] == wanted[1]
    configs = [json.loads((folder / "config.json").read_text()) for folder in (kept, theirs)]
    for key in ("quantization_config", "tie_word_embeddings", "dtype"):
        assert configs[0][key] == configs[1][key]


@pytest.mark.parametrize("shards", [1, 3])
def test_loads_and_computes_the_same(
    shards: int,
    kept: Path,
    tied: Path,
    model: PreTrainedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = kept
    if shards > 1:
        monkeypatch.setattr("export.quantization.saved_writer.MAX_SHARD", 180_000)
        monkeypatch.setattr("export.quantization.saved_writer.BLOCK_ELEMENTS", 3000)
        folder = quantize(str(tied), out=tmp_path / "out")
        assert len(list(folder.glob("model-*-of-00003.safetensors"))) == 3
        assert max(file.stat().st_size for file in folder.glob("*.safetensors")) < 190_000
        assert content(folder)[1] == content(kept)[1]
        index = json.loads((folder / INDEX).read_text())
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in content(folder)[0].values())
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)
    greedy = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(loaded.generate(TOKENS, **greedy), model.generate(TOKENS, **greedy))
    assert len(AutoTokenizer.from_pretrained(folder)) == 512


def test_mixed_is_what_transformers_saves(tied: Path, tmp_path: Path) -> None:
    """What transformers and torchao make of the recipe, by names and a pattern, and read back."""
    int8 = ["0.self_attn", "1.mlp.down_proj"]
    folder = quantize(str(tied), out=tmp_path / "ours", int8=int8)
    model = quantized_by_transformers(
        untie(str(tied), out=tmp_path / "untied"), open_quantized(resolve(str(folder)), Recipe()).recipe
    )
    model.save_pretrained(tmp_path / "theirs")
    ours, wanted = content(folder), content(tmp_path / "theirs")
    assert ours[1] == wanted[1] and set(ours[0]) == set(wanted[0])
    for name, tensor in wanted[0].items():
        assert torch.equal(ours[0][name], tensor), name
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    for number, name, bits in ((0, "self_attn.qkv_proj", 8), (1, "self_attn.qkv_proj", 4), (1, "mlp.down_proj", 8)):
        weight = loaded.get_submodule(f"model.layers.{number}.{name}").weight
        assert weight.target_dtype == (torch.int8 if bits == 8 else torch.int4)
        assert weight.scale.shape[1] == (1 if bits == 8 else weight.shape[1] // 32)
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("recipe", [Recipe(), OTHER, MIXED, ALL_EIGHT], ids=str)
def test_exports_the_same_bytes(recipe: Recipe, tied: Path, tmp_path: Path) -> None:
    wanted = exported(tied, recipe, tmp_path / "wanted")
    folder = tmp_path / "kept"
    save_quantized(Quantizing(Untied(open_checkpoint(tied)), recipe), folder)
    for asked in (Recipe(), recipe):
        source = open_quantized(resolve(str(folder)), asked)
        assert isinstance(source, Saved) and source.recipe == recipe and source.notes == ()
        assert exported(folder, source.recipe, tmp_path / "found") == wanted
    save_quantized(open_quantized(resolve(str(folder)), Recipe()), tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_exports_the_same_bytes_from_theirs(tied: Path, theirs: Path, recipe_bin: Path, tmp_path: Path) -> None:
    wanted = exported(tied, Recipe(), tmp_path / "wanted")
    for folder in (theirs, recipe_bin):
        source = open_quantized(resolve(str(folder)), Recipe())
        assert isinstance(source, Saved) and source.notes == ()
        assert exported(folder, source.recipe, tmp_path / "found") == wanted


def test_state_dict_in_shards(tied: Path, recipe_bin: Path, tmp_path: Path) -> None:
    state = torch.load(recipe_bin / "pytorch_model.bin")
    (recipe_bin / "pytorch_model.bin").unlink()
    files = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(state)}
    for file in set(files.values()):
        torch.save({name: state[name] for name in files if files[name] == file}, recipe_bin / file)
    (recipe_bin / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    assert exported(recipe_bin, Recipe(), tmp_path / "found") == exported(tied, Recipe(), tmp_path / "wanted")
    (recipe_bin / file).unlink()
    refuses(recipe_bin, f"{file} cannot be read: No such file")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_quantizes_what_a_recipe_left_in_float(form: str, tied: Path, tmp_path: Path) -> None:
    """TorchAoConfig without more words quantizes the linears alone, and a tied checkpoint stays tied."""
    four = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=PerGroup(64), weight_scale_dtype=torch.bfloat16
    )
    partly = AutoModelForCausalLM.from_pretrained(tied, dtype=torch.float32, quantization_config=TorchAoConfig(four))
    partly.save_pretrained(tmp_path / "folder")
    folder = tmp_path / "folder"
    if form == "bin":
        folder = pickled(tmp_path / "bin", folder, partly.state_dict())
    for asked in (Recipe(), Recipe(group_size=64, head_bits=8)):
        source = open_quantized(resolve(str(folder)), asked)
        assert isinstance(source, Saved)
        assert [note.split(": ")[1] for note in source.notes] == [
            f"{EMBEDDING} was left in float when the rest was quantized, it becomes int8 now",
            f"{HEAD} was left in float when the rest was quantized, it becomes int{asked.head_bits} now",
        ]
        wanted = exported(tied, Recipe(group_size=64, head_bits=asked.head_bits), tmp_path / "wanted")
        assert exported(folder, source.recipe, tmp_path / "found") == wanted


def swap(name: str, value: Any) -> Callable[[dict[str, Tensor], dict[str, str]], None]:
    def edit(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        tensors[name] = value(tensors[name])

    return edit


def put(row: int, column: int, value: float) -> Callable[[Tensor], Tensor]:
    def edit(tensor: Tensor) -> Tensor:
        tensor[row, column] = value
        return tensor

    return edit


QDATA, SCALE, ZERO = (f"{O_PROJ}._weight_{part}" for part in ("qdata", "scale", "zero_point"))


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (swap(QDATA, put(7, 3, 8)), r"o_proj.weight has a value outside \[-8, 7\] in row 7"),
        (
            swap(SCALE, put(9, 1, float("nan"))),
            "o_proj.weight has a scale that is not a positive number in row 9",
        ),
        (swap(SCALE, put(9, 1, 0)), "o_proj.weight has a scale that is not a positive number in row 9"),
        (swap(ZERO, put(100, 2, 1)), "o_proj.weight has a zero point that is not 0 in row 100"),
        (swap(SCALE, lambda t: put(2, 0, 0.1)(t.float())), "a scale that is not a bfloat16 number in row 2"),
        (
            swap(SCALE, lambda t: t[:, :2].clone()),
            r"o_proj._weight_scale has shape \(128, 2\), config.json and int4 in groups of 32 with int8 "
            r"activations make it \(128, 4\)",
        ),
        (
            swap(QDATA, lambda t: t[:64].clone()),
            r"o_proj._weight_qdata has shape \(64, 128\), .* \(128, 128\)",
        ),
        (swap(QDATA, lambda t: t.short()), "o_proj._weight_qdata is torch.int16, not torch.int8"),
        (swap(NORM, lambda t: t * float("nan")), "model.norm.weight has a NaN or Inf in row 0"),
        (lambda t, m: t.pop(ZERO), f"has no tensor {ZERO}"),
        (lambda t, m: m.update(tensor_names='["a.b"]'), "their files have no metadata as torchao writes it"),
        (lambda t, m: m.clear(), "their files have no metadata as torchao writes it"),
        (
            lambda t, m: m.update({f"{O_PROJ}.weight": m[f"{O_PROJ}.weight"].replace("32", "64")}),
            r"o_proj._weight_scale has shape \(128, 4\), .* groups of 64 with .* make it \(128, 2\)",
        ),
        (
            lambda t, m: m.update({f"{O_PROJ}.weight": m[f"{O_PROJ}.weight"].replace("int4", "int5")}),
            "o_proj.weight is int5 in groups of 32 with int8 activations, not int4 in groups of 32",
        ),
        (
            lambda t, m: m.update({f"{O_PROJ}.weight": m[f"{O_PROJ}.weight"].replace("Unpacked", "Opaque")}),
            "o_proj.weight is a torchao IntxOpaqueToInt8Tensor, only IntxUnpackedToInt8Tensor can be read",
        ),
        (
            lambda t, m: t.update({"model.layers.1.x": t[NORM].clone()}),
            '"model.layers.1.x" is not a tensor of',
        ),
    ],
)
def test_refuses_damaged_tensors(damaged: Path, edit: Any, sentence: str) -> None:
    change(damaged, edit)
    refuses(damaged, sentence, read=NORM if sentence.startswith(NORM) else f"{O_PROJ}.weight")


def regroup(raw: dict[str, Any]) -> None:
    table = raw["quantization_config"]["quant_type"]["default"]["_data"]["fqn_to_config"]
    (linears,) = (value for key, value in table.items() if key.startswith("re:"))
    linears["_data"]["weight_granularity"]["_data"]["group_size"] = 64


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (
            regroup,
            "makes model.layers.0.self_attn.qkv_proj.weight int4, groups of 64, its tensors are int4 in ",
        ),
        (
            lambda raw: raw["quantization_config"].update(quant_method="gptq"),
            'quant_method is "gptq", only torchao',
        ),
        (
            lambda raw: raw["quantization_config"].update(quant_type="int4"),
            "quant_type is not as torchao writes it",
        ),
        (lambda raw: raw.update(num_hidden_layers=3), "has no tensor model.layers.2.input_layernorm.weight"),
        (lambda raw: raw.pop("quantization_config"), "has no tensor|is not a tensor of a dense Phi-3 model"),
    ],
)
def test_refuses_a_config_of_another_mind(damaged: Path, edit: Any, sentence: str) -> None:
    set_config(damaged, edit)
    refuses(damaged, sentence)


def test_refuses_what_cannot_be_made_of_it(kept: Path, tied: Path, tmp_path: Path) -> None:
    refuses(kept, "is quantized already, as 8da4w g32, .* cannot be exported as 8da4w g64", Recipe(group_size=64))
    refuses(
        kept,
        "cannot be exported as .* int8 0.self_attn.qkv_proj and 3 more",
        Recipe(int8=("0",)).resolved(read_config(kept)),
    )
    refuses(kept, "is quantized already, a float32 file needs the original", Recipe(quantized=False))
    with pytest.raises(BadInput, match="already quantized"):
        quantize(str(kept), out=tmp_path / "again")
    with pytest.raises(BadInput, match="a checkpoint in float32 is not a quantized one"):
        save_quantized(open_quantized(resolve(str(tied)), Recipe(quantized=False)), tmp_path / "out")


def test_refuses_a_tied_quantized_embedding(damaged: Path) -> None:
    def drop(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        for name in [name for name in tensors if name.startswith("lm_head.")]:
            del tensors[name]
        names = json.loads(metadata["tensor_names"])
        metadata["tensor_names"] = json.dumps([name for name in names if name != HEAD])

    change(damaged, drop)
    refuses(damaged, "quantized embedding and no lm_head.weight, so it was quantized while tied")


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_runs_nothing_of_a_pickle(recipe_bin: Path, tmp_path: Path) -> None:
    file, mark = recipe_bin / "pytorch_model.bin", tmp_path / "mark"
    good = torch.load(file)
    torch.save(good | {"extra": Evil(mark)}, file)
    refuses(recipe_bin, "pytorch_model.bin names posix.system, a state dict holds tensors")
    assert not mark.exists()
    file.write_bytes(pickle.dumps(Evil(mark)))
    refuses(recipe_bin, "cut short or was not written by torch.save of torch 1.6 or later")
    assert not mark.exists()
    pickle.loads(file.read_bytes())  # it would have done it
    assert mark.exists()


def test_refuses_other_pickles(recipe_bin: Path, tied: Path, tmp_path: Path) -> None:
    file = recipe_bin / "pytorch_model.bin"
    good = torch.load(file)
    data = file.read_bytes()
    for value, sentence in (
        ([1, 2], "holds a list, not a state dict"),
        (good | {"x": 3}, "x is or holds a int, not a tensor"),
        (good | {"x": torch.nn.Linear(2, 2)}, "names torch.nn.modules.linear.Linear, a state dict holds"),
        (good | {NORM: torch.ones(128, 2)[:, 0]}, f"{NORM} is not stored as whole contiguous rows"),
        (good | {NORM: torch.ones(2)}, r"model.norm.weight has shape \(2,\), config.json makes it \(128,\)"),
        ({NORM: torch.ones(2)}, "has float weights in pickle files"),
    ):
        torch.save(value, file)
        refuses(recipe_bin, sentence)
    file.write_bytes(data[:-1000])
    refuses(recipe_bin, "is cut short or was not written by torch.save")
    file.write_bytes(data)
    with (
        zipfile.ZipFile(file) as stored,
        zipfile.ZipFile(tmp_path / "small", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for record in stored.namelist():
            small.writestr(record, stored.read(record))
    os.replace(tmp_path / "small", file)
    refuses(recipe_bin, "is a compressed archive")


def test_reads_what_torch_reads(recipe_bin: Path) -> None:
    """Every tensor is taken from the right place in the file."""
    source = open_quantized(resolve(str(recipe_bin)), Recipe())
    assert isinstance(source, Saved)
    for name, wanted in torch.load(recipe_bin / "pytorch_model.bin").items():
        found = torch.cat([getattr(piece, "levels", piece) for piece in source.rows(name, 0, len(wanted))])
        assert torch.equal(found, getattr(wanted, "qdata", wanted))


def test_keeping_is_whole_or_nothing(
    tied: Path,
    kept: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, seen = Quantizing(Untied(open_checkpoint(tied)), Recipe()), 0

    def stop(size: int) -> None:
        nonlocal seen
        seen += size
        if seen > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_quantized(source, tmp_path / "out", stop)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(quantize_module, "quiet", lambda verbose: None)  # it silences the whole process
    quantize_module.main(["--checkpoint", str(tied), "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    for name in ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (kept / name).read_bytes()
    with pytest.raises(BadInput, match="out already exists and is not an empty folder"):
        save_quantized(source, tmp_path / "out")

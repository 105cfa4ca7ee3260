"""Checkpoints and folders as people bring them, each through `export.pte`: exported and verified, or a sentence."""

import copy
import functools
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from checkpoints.errors import BadInput
from checkpoints.roles import EMBEDDING, HEAD
from checkpoints.source import find_source, resolve
from checkpoints.synthesize import synthesize
from checkpoints.weights import INDEX, open_checkpoint
from export import pipeline
from export.engine.memory import _cgroup_limits
from export.generate import generate
from export.program import trace
from export.program.trace import build_graph
from export.pte import export_pte
from export.quantization.recipe import Recipe
from export.quantization.saved_reader import open_quantized
from export.quantize import quantize
from export.reference.layerwise import CheckpointWeights, Stream, stream_logits
from export.subprocess_call import Child
from export.verification import memory as verification_memory
from export.verify import verify
from tests.checkpoints.test_adapters import train
from tests.checkpoints.test_weights import change, set_config, split
from tests.fuzz import Here

ROOT = Path(__file__).parent.parent
SMALL: dict[str, Any] = {"layers": 2, "hidden": 64, "intermediate": 96, "heads": 4, "vocab": 512}
LENGTHS: dict[str, Any] = {"context": 64, "prefill_chunk": 32}
graph = functools.lru_cache(build_graph)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights written in this process, and one graph for all checkpoints of one configuration."""
    monkeypatch.setattr(pipeline, "Pool", Here)
    monkeypatch.setattr(trace, "build_graph", lambda config, options, _: copy.deepcopy(graph(config, options)))


def one_file(folder: Path) -> Path:
    """The same checkpoint with all weights in model.safetensors."""
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for file in [*folder.glob("model-*.safetensors"), *folder.glob(INDEX)]:
        file.unlink()
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def single(tiny: Path) -> Path:
    return one_file(tiny)


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phi-3-mini-4k: whole heads rotated, default rope, untied; what LlamaForCausalLM can compute too."""
    return one_file(synthesize(tmp_path_factory.mktemp("plain") / "plain", like="phi3-mini-4k", **SMALL, kv_heads=2))


@pytest.fixture
def plain(plain_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain_folder, tmp_path / "plain"))


def rewrite(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps(raw))


def exported(folder: Path, out: Path, **flags: Any) -> dict[str, Any]:
    """Export, with verification unless told otherwise; the manifest."""
    out.parent.mkdir(exist_ok=True)
    return export_pte(str(folder), out=out, **LENGTHS | flags).manifest


def spelled(kind: str, key: str, inside: bool) -> Callable[[dict[str, Any]], None]:
    """Rotary parameters under `key`, their type as `kind`, theta and partial factor in them or beside them."""

    def edit(raw: dict[str, Any]) -> None:
        rope = raw.pop("rope_scaling")
        name = rope.pop("type")
        raw[key] = rope | {kind: "su" if kind == "su" else name}
        if kind == "su":
            raw[key]["type"] = raw[key].pop("su")
        if inside:
            for moved in ("rope_theta", "partial_rotary_factor"):
                raw[key][moved] = raw.pop(moved)

    return edit


SPELLINGS = {
    "su": spelled("su", "rope_scaling", False),
    "old, rope_type": spelled("rope_type", "rope_scaling", False),
    "old, all inside": spelled("type", "rope_scaling", True),
    "new": spelled("rope_type", "rope_parameters", True),
    "new, type, beside": spelled("type", "rope_parameters", False),
    "new, su": spelled("su", "rope_parameters", True),
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_every_spelling_of_longrope(spell: Callable[[dict[str, Any]], None], tiny: Path, tmp_path: Path) -> None:
    """Long factors apply: the file has a context beyond what the model was trained with at first."""
    rewrite(tiny / "config.json", lambda raw: raw.update(original_max_position_embeddings=32))
    usual = exported(tiny, tmp_path / "usual" / "f.pte", verify=False)["file"]["sha256"]
    rewrite(tiny / "config.json", spell)
    manifest = exported(tiny, tmp_path / "other" / "f.pte")
    assert manifest["file"]["sha256"] == usual
    assert manifest["verification"]["rotary_factors"] == "long" and manifest["verification"]["passed"]


@pytest.mark.parametrize("rope", [{"type": "default"}, {"rope_type": "default", "rope_theta": 10000.0}, {}])
def test_every_spelling_of_no_scaling(rope: dict[str, Any], plain: Path, tmp_path: Path) -> None:
    usual = exported(plain, tmp_path / "usual" / "f.pte", verify=False)["file"]["sha256"]
    set_config(plain, rope_scaling=None, rope_parameters=rope)
    manifest = exported(plain, tmp_path / "other" / "f.pte")
    assert manifest["file"]["sha256"] == usual and manifest["verification"]["passed"]


FOREIGN: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "head_dim": 16},
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None},
}


@pytest.mark.parametrize("changes", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_model_saved_as_another_class(changes: dict[str, Any], plain: Path, tmp_path: Path) -> None:
    """The same bytes as from the fused model, and the logits of the class that config.json names."""
    usual = exported(plain, tmp_path / "usual" / "f.pte", verify=False)["file"]["sha256"]
    save_file(split(load_file(plain / "model.safetensors"), 64, 32), plain / "model.safetensors")
    set_config(plain, **changes)
    manifest = exported(plain, tmp_path / "other" / "f.pte")
    assert manifest["file"]["sha256"] == usual and manifest["verification"]["passed"]

    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    assert type(model).__name__ == changes["architectures"][0]
    ids = torch.randint(0, 512, (50,), generator=torch.Generator().manual_seed(1)).tolist()
    opened = CheckpointWeights(open_quantized(resolve(str(plain)), Recipe(quantized=False)))
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0]
    found = stream_logits([Stream("all", 50, tuple(range(50)), 50)], ids, opened)["all"]
    assert float((found - wanted).norm() / wanted.norm()) < 1e-6

    kept = quantize(str(plain), out=tmp_path / "kept")
    assert exported(kept, tmp_path / "again" / "f.pte", verify=False)["file"]["sha256"] == usual


def test_a_head_of_its_own_in_a_tied_model(single: Path, tmp_path: Path) -> None:
    embedding = open_checkpoint(single).tensor(EMBEDDING)
    change(single, lambda tensors: tensors.update({HEAD: embedding.flip(0)}))
    manifest = exported(single, tmp_path / "out" / "f.pte")
    assert manifest["verification"]["passed"]
    assert "lm_head.weight differs from the embedding" in manifest["notes"][0]
    model = AutoModelForCausalLM.from_pretrained(single, dtype=torch.float32)
    assert torch.equal(model.lm_head.weight.bfloat16(), embedding.flip(0)), "transformers 5.23 does not tie them"


def test_ids_of_both_files_and_ids_that_nothing_needs(tiny: Path, tmp_path: Path) -> None:
    first = json.loads((tiny / "config.json").read_text())["eos_token_id"]
    tool = json.loads((tiny / "tokenizer.json").read_text())["added_tokens"][-1]["id"]
    rewrite(tiny / "generation_config.json", lambda raw: raw.update(eos_token_id=tool))
    set_config(tiny, pad_token_id=-1, bos_token_id=7)
    manifest = exported(tiny, tmp_path / "out" / "f.pte", verify=False)
    assert {tool, first} <= set(manifest["options"]["eos_ids"])
    assert manifest["options"]["bos_id"] == 7
    pad, bos = manifest["notes"]
    assert "bos_token_id is 7, no special token of tokenizer.json" in pad + bos and "pad_token_id -1" in pad + bos

    rewrite(tiny / "generation_config.json", lambda raw: raw.update(eos_token_id=3))
    with pytest.raises(BadInput, match=r"eos_token_id is 3, no special token .* --eos-ids takes others"):
        exported(tiny, tmp_path / "no" / "f.pte", verify=False)
    assert exported(tiny, tmp_path / "no" / "f.pte", verify=False, eos_ids=(3,))["options"]["eos_ids"] == [3]
    rewrite(tiny / "config.json", lambda raw: raw.pop("bos_token_id"))
    chosen = exported(tiny, tmp_path / "no" / "f.pte", verify=False, eos_ids=(3,))["options"]["bos_id"]
    assert chosen == first, "the bos_token of tokenizer_config.json"


def test_an_adapter(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = train(tiny, tmp_path / "fine-tune", target_modules="all-linear", modules_to_save=["norm"])
    given: dict[str, Any] = {"adapter": [adapter], "adapter_scale": [0.5]}
    manifest = exported(tiny, tmp_path / "out" / "f.pte", **given)
    assert manifest["verification"]["passed"]
    assert manifest["verification"]["checkpoint"] == "tiny + 0.5 * fine-tune"
    (entry,) = manifest["checkpoint"]["adapters"]
    assert (entry["name"], entry["scale"]) == ("fine-tune", 0.5)
    assert set(entry["sha256"]) == {"adapter_config.json", "adapter_model.safetensors"}
    assert not verify(tmp_path / "out" / "f.pte", str(tiny), short=True).passed, "without the adapter"

    # Bit for bit in float32: weights are written and compared in different pieces.
    whole = exported(tiny, tmp_path / "float" / "f.pte", quantize=False, **given)
    assert {check["name"]: check["measured"] for check in whole["verification"]["checks"]}["weights, float32"] == 0

    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), adapter)
    merged.merge_and_unload().save_pretrained(tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, tmp_path / "merged")
    exported(tiny, tmp_path / "full" / "f.pte", verify=False, adapter=[adapter])
    assert verify(tmp_path / "full" / "f.pte", str(tmp_path / "merged"), short=True).passed, "peft's own merge"

    kept = quantize(str(tiny), out=tmp_path / "kept", **given)
    assert exported(kept, tmp_path / "again" / "f.pte", verify=False)["file"]["sha256"] == manifest["file"]["sha256"]
    with pytest.raises(BadInput, match=r"kept is quantized already, --adapter .*fine-tune needs the original"):
        exported(kept, tmp_path / "no" / "f.pte", adapter=[adapter])
    with pytest.raises(
        BadInput, match="fine-tune holds an adapter and no model: give --checkpoint .*tiny and --adapter"
    ):
        exported(adapter, tmp_path / "no" / "f.pte")


def test_what_is_not_used_is_not_opened(tiny: Path, tmp_path: Path) -> None:
    (tiny / "gone.json").symlink_to("nowhere")
    (tiny / "folder.json").mkdir()
    exported(tiny, tmp_path / "out" / "f.pte", verify=False, save_quantized=tmp_path / "kept")
    assert not (tmp_path / "kept" / "gone.json").exists() and not (tmp_path / "kept" / "folder.json").exists()


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"],
)
def test_what_is_used_is_a_file(name: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_work(*_: Any) -> None:
        raise AssertionError("it was to be known before the graph")

    monkeypatch.setattr(trace, "build_graph", no_work)
    (tiny / name).unlink(missing_ok=True)
    (tiny / name).symlink_to("nowhere")
    with pytest.raises(BadInput, match=f"{name} is a link to nothing, not a file"):
        exported(tiny, tmp_path / "out" / "f.pte")
    assert list((tmp_path / "out").iterdir()) == []


def test_pointers_of_git_lfs(single: Path, tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        (single / name).write_text(pointer)
        with pytest.raises(BadInput, match=f"{name} is a pointer of git-lfs, its content was never fetched"):
            exported(single, tmp_path / "out" / "f.pte", verify=False)


def test_a_folder_of_models(tiny: Path, tiny_pte: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No name of a file beside a `.pte` is taken from another model, or from anybody."""
    config = (tiny / "config.json").read_bytes()
    with pytest.raises(BadInput, match=r"its manifest would replace .*config.json, which is none of it"):
        exported(tiny, tiny / "config.pte", verify=False)
    assert (tiny / "config.json").read_bytes() == config

    place = tmp_path / "place"
    exported(tiny, place / "a.pte", verify=False)
    exported(tiny, place / "b.pte", verify=False, context=32)  # of one model: one tokenizer
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(
        BadInput, match="tokenizer.json is or would be another model's.*give each model a folder of its own"
    ):
        export_pte("phi4-tiny", out=place / "c.pte", **LENGTHS, verify=False)
    monkeypatch.setattr("export.calibration.calibrate.calibrate", None)  # nor is anything calibrated for it
    with pytest.raises(BadInput, match="give each model a folder of its own"):
        export_pte("phi4-tiny", out=place / "c.pte", **LENGTHS, calibrate="scales")
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    with pytest.raises(BadInput, match=r"the folder .*/no/\.\. does not exist"):
        export_pte("phi4-tiny", out=place / "no" / ".." / "d.pte", **LENGTHS, verify=False)

    template = tiny / "chat_template.jinja"
    template.write_text("{{ messages[0].content }}")
    with pytest.raises(BadInput, match="give each model a folder"):  # b.pte would answer by it
        exported(tiny, place / "a.pte", verify=False)
    (place / "b.pte").unlink()
    exported(tiny, place / "a.pte", verify=False)
    assert (place / "chat_template.jinja").is_file()
    template.unlink()
    exported(tiny, place / "a.pte", verify=False)
    assert not (place / "chat_template.jinja").exists(), "it was this file's, and is so no more"


def test_generate_takes_no_other_models_files(tiny_pte: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(tiny_pte.parent, tmp_path / "place"))
    file = place / tiny_pte.name
    usual = generate(file, "What is a whale?", max_new_tokens=4).token_ids
    (place / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(BadInput, match=r"place has a chat_template.jinja, but not what tiny.pte was exported with"):
        generate(file, "What is a whale?", max_new_tokens=4)
    assert generate(file, "whale", raw=True, max_new_tokens=4).token_ids  # which no template touches
    (place / "chat_template.jinja").unlink()
    rewrite(place / "tokenizer.json", lambda raw: raw["added_tokens"].reverse())
    with pytest.raises(BadInput, match=r"place has another tokenizer.json than what tiny.pte was exported with"):
        generate(file, "What is a whale?", max_new_tokens=4)
    given = generate(file, "What is a whale?", tokenizer=place / "tokenizer.json", max_new_tokens=4)
    assert given.token_ids == usual, "whoever names a tokenizer may"


def test_a_folder_with_the_embedded_models_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is verified against itself: the model included has other sizes."""
    synthesize(tmp_path / "phi4-tiny", **SMALL)
    monkeypatch.chdir(tmp_path)
    assert exported(Path("./phi4-tiny"), tmp_path / "f.pte", verify=False)["checkpoint"]["kind"] == "embedded"
    (tmp_path / "out").mkdir()
    manifest = export_pte("./phi4-tiny", out="out/f.pte", **LENGTHS).manifest
    assert manifest["checkpoint"]["kind"] == "folder" and manifest["verification"]["passed"]


def test_memory_that_cannot_do_is_known_beforehand(
    tiny: Path, tiny_pte: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification_memory, "memory_left", lambda: 100_000)
    monkeypatch.setattr(Here, "start", lambda *_: pytest.fail("the work has begun"))
    with pytest.raises(
        BadInput, match=r"verifying .*f.pte takes about 0.0 GB of memory, 0.0 GB are left: --no-verify"
    ):
        exported(tiny, tmp_path / "out" / "f.pte")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(BadInput, match="python -m export.verify does it later"):
        verify(tiny_pte, "phi4-tiny")


def test_limits_of_cgroups(tmp_path: Path) -> None:
    groups, root = tmp_path / "cgroup", tmp_path / "fs"
    (root / "user" / "app").mkdir(parents=True)
    groups.write_text("1:name=systemd:/x\n0::/user/app\n")
    for folder, text in ((root / "user" / "app", "max"), (root / "user", "4294967296"), (tmp_path, "1")):
        (folder / "memory.max").write_text(f"{text}\n")
    assert _cgroup_limits(groups, root) == [4 << 30]
    groups.write_text("1:name=systemd:/x\n")
    assert _cgroup_limits(groups, root) == _cgroup_limits(tmp_path / "gone", root) == []


def test_killed_while_verifying(tiny_pte: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system does it for memory."""

    class Killed(Child):
        def start(self, function: Any, *args: Any) -> Any:  # type: ignore[override]
            return super().start(exec, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")

    monkeypatch.setattr("export.verification.verify.Child", Killed)
    with pytest.raises(
        BadInput, match=r"was killed, most likely for memory: it needs about 0.0 GB; --no-verify skips"
    ):
        verify(tiny_pte, "phi4-tiny", short=True)


@pytest.fixture
def foreign_names(tmp_path: Path) -> Iterator[Path]:
    """A folder whose own export.py and checkpoints.py must not be run."""
    for name in ("export.py", "checkpoints.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong module')")
    yield tmp_path


def run_script(text: str, place: Path) -> subprocess.CompletedProcess[str]:
    """Run a script that lies elsewhere, in the folder `place`."""
    (place / "bin").mkdir()
    (place / "bin" / "script").write_text(text)
    return subprocess.run(
        [sys.executable, place / "bin" / "script", "--help"],
        cwd=place, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_script_without_main_guard(foreign_names: Path) -> None:
    done = run_script(
        "from export.pte import export_pte\n"
        "exported = export_pte('phi4-tiny', out='f.pte', context=64, prefill_chunk=32)\n"
        "print(exported.manifest['verification']['passed'])",
        foreign_names,
    )
    assert done.stdout == "True\n", done.stderr


def test_console_scripts(foreign_names: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    doors = (
        "export", "verify", "inspect", "generate", "chat", "serve", "evaluate",
        "bench", "sweep", "push", "quantize", "untie", "remap",
    )  # fmt: skip
    assert list(scripts) == [f"pocketphi-{door}" for door in doors]
    for target in scripts.values():
        module, _, name = target.partition(":")
        with pytest.raises(SystemExit) as left:
            getattr(import_module(module), name)(["--help"])
        assert left.value.code == 0 and "usage: " in capsys.readouterr().out
    done = run_script("import sys\nfrom export.remap import command\nsys.exit(command())", foreign_names)
    assert done.returncode == 0 and "usage: " in done.stdout


def test_the_source_says_what_is_added() -> None:
    source = find_source("phi4-tiny", adapter=["/some/where"], adapter_scale=None)
    assert str(source) == "phi4-tiny + 1 * where"

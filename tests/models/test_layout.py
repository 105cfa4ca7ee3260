"""The remapped checkpoint is what upstream's llama loader takes; it computes what transformers computes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from checkpoints.config import read_config
from checkpoints.errors import BadInput
from checkpoints.synthesize import synthesize
from checkpoints.untied import Untied
from checkpoints.weights import open_checkpoint
from export import remap as remap_module
from export.models.phi3.decoder import Transformer
from export.models.phi3.layout import layout
from export.models.registry import rows_shape
from export.models.remapped import params
from export.remap import remap

ORIGINAL = 32  # original_max_position_embeddings: beyond it the long factors hold
TOKENS = torch.arange(100, 100 + 48)[None]


@pytest.fixture(scope="module")
def longrope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like Phi-4-mini: tied, LongRoPE with its attention factor, 3 of 4 dimensions turned."""
    out = tmp_path_factory.mktemp("longrope") / "checkpoint"
    synthesize(out, layers=2, hidden=128, intermediate=192, heads=4, kv_heads=2, vocab=512, max_shard_gb=5e-4)
    edit(out, original_max_position_embeddings=ORIGINAL)
    return out


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like Phi-3-mini-4k: untied, as many key heads as query heads, all dimensions turned as ever."""
    out = tmp_path_factory.mktemp("default") / "checkpoint"
    synthesize(out, "phi3-mini-4k", layers=2, hidden=128, intermediate=192, heads=4, vocab=512)
    return out


@pytest.fixture(scope="module", params=["longrope", "default"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(scope="module")
def remapped(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return remap(str(checkpoint), out=tmp_path_factory.mktemp("remapped") / "out")


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def upstream(folder: Path, context: int) -> nn.Module:
    """ExecuTorch's llama example, built and filled by its own loader from the remapped folder, in float32."""
    from executorch.examples.models.llama.model import Llama2Model
    from executorch.extension.llm.export.config.llm_config import LlmConfig, ModelType

    config = LlmConfig()
    config.base.model_class = ModelType.phi_4_mini
    config.base.checkpoint = str(folder / "consolidated.00.pth")
    config.base.params = str(folder / "params.json")
    config.export.max_seq_length = config.export.max_context_length = context
    config.debug.generate_full_logits = True
    config.model.use_kv_cache = config.model.use_sdpa_with_kv_cache = False
    model: nn.Module = Llama2Model(config).get_eager_model()
    return model.float().eval()


def ours(folder: Path, checkpoint: Path, context: int) -> Transformer:
    model = Transformer(read_config(checkpoint), context, logits=None)
    state = torch.load(folder / "consolidated.00.pth", weights_only=True)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True)
    return model


def theirs(checkpoint: Path, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)(tokens).logits
    return logits


def difference(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def test_every_value_once_and_unchanged(checkpoint: Path, remapped: Path) -> None:
    """No row is missing or there twice; the slices of a tensor do not drag the whole along."""
    source = Untied(open_checkpoint(checkpoint))
    file = remapped / "consolidated.00.pth"
    state = torch.load(file, weights_only=True, mmap=True)
    assert list(state) == list(layout(source.config))
    seen = {name: torch.zeros(source.shape(name)[0], dtype=torch.int) for name in source.names()}
    for name, rows in layout(source.config).items():
        assert state[name].shape == rows_shape(source.config, layout(source.config)[name])
        assert state[name].is_contiguous() and state[name].dtype == torch.bfloat16
        assert torch.equal(state[name], source.tensor(rows.name)[rows.start : rows.stop])
        seen[rows.name][rows.start : rows.stop] += 1
    assert all((count == 1).all() for count in seen.values())
    stored = sum(source.checkpoint.nbytes(name) for name in source.checkpoint.names())
    assert stored < file.stat().st_size < stored + 50_000
    aliased = state["output.weight"].data_ptr() == state["tok_embeddings.weight"].data_ptr()
    assert aliased == source.tied
    copied = torch.load(file, weights_only=True)
    assert all(torch.equal(copied[name], state[name]) for name in state)


def test_upstream_loads_it_strictly(checkpoint: Path, remapped: Path) -> None:
    """Its own load lets keys be left over, so they are compared here and loaded again strictly."""
    model = upstream(remapped, ORIGINAL)
    state = torch.load(remapped / "consolidated.00.pth", weights_only=True)
    assert set(model.state_dict()) == set(state)
    assert not any(parameter.is_meta for parameter in model.parameters())
    model.load_state_dict(state, strict=True)


def test_upstream_computes_what_transformers_does(checkpoint: Path, remapped: Path) -> None:
    wanted = theirs(checkpoint, TOKENS[:, :ORIGINAL])
    with torch.no_grad():
        found = upstream(remapped, ORIGINAL)(TOKENS[:, :ORIGINAL])
        own = ours(remapped, checkpoint, ORIGINAL)(TOKENS[:, :ORIGINAL], torch.tensor([0]))
    assert difference(found, wanted) < 1e-5
    assert difference(own, wanted) < 1e-5


def test_all_three_agree_on_the_long_factors(longrope: Path, tmp_path: Path) -> None:
    """For a sequence within the original length transformers takes the short factors, files do not."""
    folder = remap(str(longrope), out=tmp_path / "out")
    wanted = theirs(longrope, TOKENS)
    with torch.no_grad():
        model, own = upstream(folder, 64), ours(folder, longrope, 64)
        assert difference(model(TOKENS), wanted) < 1e-5
        assert difference(own(TOKENS, torch.tensor([0])), wanted) < 1e-5
        short = TOKENS[:, :ORIGINAL]
        assert difference(model(short), own(short, torch.tensor([0]))) < 1e-5
        assert difference(model(short), theirs(longrope, short)) > 1e-3


def test_params_are_all_known_upstream(checkpoint: Path, remapped: Path) -> None:
    from executorch.examples.models.llama.model_args import ModelArgs

    written = json.loads((remapped / "params.json").read_text())
    assert written == params(read_config(checkpoint))
    args = ModelArgs(**written)  # an unknown key raises
    assert {name: getattr(args, name) for name in written} == written


@pytest.mark.parametrize("name", ["phi4-int8", "8da4w"])
def test_refuses_names_upstream_misreads(default: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="upstream's loader takes for quantized weights"):
        remap(str(default), out=tmp_path / name)


def test_remap_is_whole_or_nothing(
    default: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remap_module, "quiet", lambda verbose: None)  # it silences the whole process
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("export.models.remapped.write_at", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        remap_module.main(["--checkpoint", str(default), "--out", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())
    remap_module.main(["--checkpoint", str(default), "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    names = {"consolidated.00.pth", "params.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"generation_config.json"}

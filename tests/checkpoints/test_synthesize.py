"""synthesize: what transformers and tokenizers make of it, and that it is all or nothing."""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Phi3Config, Phi3ForCausalLM

from checkpoints.config import read_config
from checkpoints.errors import BadInput
from checkpoints.synthesize import CONFIGS, LAST, main, synthesize
from checkpoints.weights import open_checkpoint

SMALL: dict[str, Any] = {"layers": 2, "hidden": 64, "intermediate": 96, "heads": 4, "vocab": 512}


def test_transformers_loads_it(tiny_folder: Path) -> None:
    model, info = Phi3ForCausalLM.from_pretrained(tiny_folder, output_loading_info=True)
    assert not any(info.values())
    state = model.state_dict()
    checkpoint = open_checkpoint(tiny_folder)
    for name in checkpoint.names():
        assert torch.equal(checkpoint.tensor(name), state[name])
    assert model(torch.arange(512).view(4, 128)).logits.isfinite().all()


@pytest.mark.parametrize("like", list(CONFIGS))
def test_full_size_config(like: str) -> None:
    config = Phi3Config(**deepcopy(CONFIGS[like]))  # it changes what it is given
    with torch.device("meta"):
        model = Phi3ForCausalLM(config)
    names = {name for name, _ in model.named_parameters()}
    assert len(names) == 6 * 32 + 2 + (not config.tie_word_embeddings)


@pytest.mark.parametrize("like", list(CONFIGS))
@pytest.mark.parametrize("vocab", [None, 600])
def test_tokenizer(tmp_path: Path, like: str, vocab: int | None) -> None:
    out = synthesize(tmp_path / "out", like, **SMALL | {"vocab": vocab})
    size = vocab or CONFIGS[like]["vocab_size"]
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == size
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))
    specials = LAST[like]
    ids = [tokenizer.token_to_id(token) for token in specials]
    assert ids == (list(specials.values()) if vocab is None else list(range(600 - len(specials), 600)))
    assert tokenizer.encode("<|user|>a").ids[0] == tokenizer.token_to_id("<|user|>")
    for text in ("The quick brown fox, don't!\n\n  2025", "naïve 東京 🙂", "\x00\t"):
        encoded = tokenizer.encode(text).ids
        assert tokenizer.decode(encoded, skip_special_tokens=False) == text
        assert len(encoded) < len(text.encode()) or vocab or len(text) < 3

    config = read_config(out)
    assert config.eos_token_ids[0] == tokenizer.token_to_id("<|end|>")
    assert config.pad_token_id == tokenizer.token_to_id("<|endoftext|>")
    chat = AutoTokenizer.from_pretrained(out)
    turns = chat.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False)
    expected = "<|user|>Hi<|end|><|assistant|>" if like == "phi4-mini" else "<|user|>\nHi<|end|>\n<|assistant|>\n"
    assert turns == expected


def test_weights_look_like_weights(tmp_path: Path) -> None:
    # Wide enough that one matrix takes several pieces.
    sizes: dict[str, Any] = {"layers": 1, "hidden": 1024, "intermediate": 4096, "heads": 8, "vocab": 512}
    checkpoint = open_checkpoint(synthesize(tmp_path / "out", **sizes))
    for name in checkpoint.names():
        weight = checkpoint.tensor(name).float()
        assert weight.isfinite().all()
        if weight.ndim == 1:
            assert weight.min() > 0 and abs(weight.mean() - 1) < 0.03
            continue
        columns = weight.std(0)
        usual = columns.median()
        assert 0.015 < usual < 0.03
        assert abs(weight.mean()) < 0.01 * usual
        outliers = columns > 4 * usual
        assert outliers.sum() == -(-weight.shape[1] // 200)
        body = weight[:, ~outliers] / columns[~outliers]
        assert 3 < (body**4).mean() < 3.5  # a normal distribution has 3
        assert len(checkpoint.tensor(name).unique(dim=0)) == len(weight)
        unit = weight / weight.norm(dim=1, keepdim=True)
        picked = unit[:: max(1, len(unit) // 512)]
        similar = (picked @ picked.T).fill_diagonal_(0).abs()
        assert similar.max() < 0.7
    gate_up = checkpoint.tensor("model.layers.0.mlp.gate_up_proj.weight")
    assert gate_up.numel() > 1 << 22


def test_same_seed_same_weights(tmp_path: Path, tiny_folder: Path) -> None:
    again = open_checkpoint(synthesize(tmp_path / "again", **SMALL))
    other = open_checkpoint(synthesize(tmp_path / "other", **SMALL, seed=1))
    tiny = open_checkpoint(tiny_folder)
    assert (len(tiny.files), len(again.files)) == (3, 1)  # the shards do not matter
    for name in tiny.names():
        assert torch.equal(tiny.tensor(name), again.tensor(name))
        assert not torch.equal(tiny.tensor(name), other.tensor(name))


def test_sizes(tmp_path: Path) -> None:
    phi3 = synthesize(tmp_path / "phi3", "phi3-mini-4k", **SMALL)
    config = open_checkpoint(phi3).config
    assert (config.num_key_value_heads, config.rotary_dim, config.tie_word_embeddings) == (4, 16, False)
    untied = read_config(synthesize(tmp_path / "untied", **SMALL | {"heads": 2}, kv_heads=1, untied=True))
    assert not untied.tie_word_embeddings
    assert untied.long_factor is not None
    assert (len(untied.long_factor), untied.long_factor[0], untied.long_factor[-1]) == (12, 1.0, 47.77)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden": 65}, "out/config.json: hidden_size 65 is not a multiple of num_attention_heads 4"),
        ({"vocab": 265}, "--vocab 265 is too small: bytes and special tokens alone are 266"),
        ({"heads": 0}, "num_attention_heads must lie between"),
        ({"layers": -1}, "num_hidden_layers must lie between"),
        ({"max_shard_gb": 0}, "--max-shard-gb must be positive"),
        ({"hidden": 1 << 20, "intermediate": 1 << 24}, "has .* MB free, .* MB are needed"),
    ],
)
def test_refuses(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        synthesize(tmp_path / "out", **SMALL | changes)
    assert not list(tmp_path.iterdir())


def test_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import checkpoints.random_weights as module

    def broken(*args: Any) -> Any:
        yield torch.ones(4, 64, dtype=torch.bfloat16)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_random", broken)
    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "out", **SMALL)
    assert not list(tmp_path.iterdir())


def test_never_overwrites(tiny: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in tiny.iterdir()}
    with pytest.raises(BadInput, match="already exists"):
        synthesize(tiny)
    assert before == {file: file.stat().st_mtime_ns for file in tiny.iterdir()}


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--{name}={value}" for name, value in SMALL.items()]
    main(["--out", str(tmp_path / "out"), *flags, "--kv-heads=2", "--max-shard-gb=1e-4", "--untied"])
    assert "GB of random weights in 3 file(s)" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_key_value_heads"] == 2
    command = [sys.executable, "-m", "checkpoints.synthesize", "--out", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (
        2,
        f"error: {tmp_path / 'out'} already exists and is not an empty folder\n",
    )

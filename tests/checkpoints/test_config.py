"""read_config against transformers' own reading of the same files, and what it refuses."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from checkpoints.config import ModelConfig, read_config
from checkpoints.errors import BadInput
from checkpoints.families import tensor_shapes
from checkpoints.synthesize import CONFIGS

PHI4, PHI3 = CONFIGS["phi4-mini"], CONFIGS["phi3-mini-4k"]
LONG = PHI4["rope_scaling"]["long_factor"]
SHORT = PHI4["rope_scaling"]["short_factor"]
PHI4_NEW = {key: PHI4[key] for key in PHI4 if key not in ("rope_scaling", "rope_theta", "partial_rotary_factor")} | {
    "dtype": "bfloat16",
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 4096,
        "long_factor": LONG,
        "short_factor": SHORT,
    },
}
PHI3_128K = PHI3 | {
    "max_position_embeddings": 131072,
    "rope_scaling": {"type": "longrope", "long_factor": LONG, "short_factor": [1.05] * 48},
    "sliding_window": 262144,
}
PHI3_SU = PHI3_128K | {"rope_scaling": PHI3_128K["rope_scaling"] | {"type": "su"}}
EXPLICIT = PHI3_128K | {"rope_scaling": PHI3_128K["rope_scaling"] | {"attention_factor": 1.5}}
FACTOR = PHI3_128K | {"rope_scaling": PHI3_128K["rope_scaling"] | {"factor": 8.0}}
STRETCHED = PHI3_128K | {"max_position_embeddings": 6000}
NOT_STRETCHED = PHI3_128K | {"max_position_embeddings": 4096}
SPARSE = {
    "model_type": "phi3",
    "vocab_size": 32064,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
BARE = {key: SPARSE[key] for key in SPARSE if key != "model_type"}
LLAMA = BARE | {"model_type": "llama", "head_dim": 32, "rope_scaling": None, "bos_token_id": 1, "pad_token_id": None}
LLAMA_LONG = BARE | {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 16384,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 5000.0,
        "long_factor": LONG[:8],
        "short_factor": SHORT[:8],
        "original_max_position_embeddings": 2048,
    },
}
MISTRAL = BARE | {"model_type": "mistral", "num_key_value_heads": 2, "architectures": ["MistralForCausalLM"]}
MISTRAL_WHOLE = MISTRAL | {"sliding_window": None}


def write(folder: Path, raw: Any, **files: Any) -> Path:
    for name, value in {"config": raw, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize(
    "raw",
    [
        PHI4, PHI4_NEW, PHI3, PHI3_128K, EXPLICIT, FACTOR, STRETCHED, NOT_STRETCHED, SPARSE, LLAMA, LLAMA_LONG,
        MISTRAL, MISTRAL_WHOLE,
    ],
    ids=[
        "phi4", "phi4-new", "phi3-4k", "phi3-128k", "attention-factor", "factor", "1.5", "1.0", "sparse", "llama",
        "llama-longrope", "mistral", "mistral-whole",
    ],
)  # fmt: skip
def test_agrees_with_transformers(tmp_path: Path, raw: dict[str, Any]) -> None:
    ours = read_config(write(tmp_path, raw))
    theirs = AutoConfig.from_pretrained(tmp_path)
    made_up = {"bos_token_id", "pad_token_id"} - raw.keys()  # ids of transformers' own, of whatever token
    same = ModelConfig.__dataclass_fields__.keys() & type(theirs).__dataclass_fields__.keys() - {"dtype"}
    for key in same:
        assert getattr(ours, key) == (None if key in made_up else getattr(theirs, key)), key
    assert len(same) > 10
    assert ours.eos_token_ids == ((theirs.eos_token_id,) if "eos_token_id" in raw else ())
    assert ours.head_dim == raw.get("head_dim", theirs.hidden_size // theirs.num_attention_heads)
    assert isinstance(theirs.rope_parameters, dict)
    assert ours.rope_type == theirs.rope_parameters["rope_type"]
    assert ours.dtype == (theirs.dtype or torch.bfloat16)

    powers = torch.arange(0, ours.rotary_dim, 2).float() / ours.rotary_dim
    for context in (1, ours.original_max_position_embeddings, ours.original_max_position_embeddings + 1):
        inv_freq = 1.0 / (torch.tensor(ours.rope_factors(context)) * ours.rope_theta**powers)
        if ours.rope_type == "longrope":
            for other in (theirs, Phi3Config(**ours.as_phi3())):
                reference, attention_factor = ROPE_INIT_FUNCTIONS["longrope"](other, "cpu", seq_len=context)
                assert torch.equal(inv_freq, reference)
                assert ours.attention_factor == attention_factor
        else:
            assert ours.attention_factor == 1.0
            assert set(ours.rope_factors(context)) == {1.0}


def test_published_numbers(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, PHI4, generation_config={"eos_token_id": [200020, 199999]}))
    assert (config.rotary_dim, config.q_dim, config.kv_dim, config.qkv_dim) == (96, 3072, 1024, 5120)
    assert config.attention_factor == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
    assert config.eos_token_ids == (200020, 199999)
    # The number of parameters the hub shows for microsoft/Phi-4-mini-instruct.
    assert sum(map(math.prod, tensor_shapes(config).values())) == 3_836_021_760
    assert "lm_head.weight" not in tensor_shapes(config)
    (tmp_path / "generation_config.json").unlink()
    assert list(tensor_shapes(read_config(write(tmp_path, PHI3))))[-1] == "lm_head.weight"


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (None, (32000,)),
        ({}, (32000,)),
        ({"eos_token_id": None}, (32000,)),
        ({"eos_token_id": 7}, (7, 32000)),
        ({"eos_token_id": [32000, 9]}, (32000, 9)),
    ],
)
def test_end_tokens_are_those_of_both_files(tmp_path: Path, generation: Any, expected: tuple[int, ...]) -> None:
    files = {} if generation is None else {"generation_config": generation}
    assert read_config(write(tmp_path, PHI3, **files)).eos_token_ids == expected


def test_su_is_longrope(tmp_path: Path) -> None:
    # The oldest Phi-3-mini-128k files; transformers 5.23 itself fails on them with a KeyError.
    longrope, su = read_config(write(tmp_path, PHI3_128K)), read_config(write(tmp_path, PHI3_SU))
    assert su == longrope
    assert su.rope_factors(4097) == tuple(LONG)


def test_ids_that_nothing_needs_are_noted(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, PHI4 | {"pad_token_id": -1, "bos_token_id": 200064}))
    assert (config.pad_token_id, config.bos_token_id) == (None, None)
    bos, pad = config.notes
    assert "bos_token_id 200064 is the id of no token (vocab_size 200064)" in bos and "pad_token_id -1" in pad
    assert read_config(write(tmp_path, PHI4)).notes == ()


def test_defaults_are_told_as_transformers_own(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, SPARSE))
    assert config.told("max_position_embeddings").startswith("max_position_embeddings 4096, which transformers takes")
    assert config.told("vocab_size") == f"vocab_size 32064 of {tmp_path / 'config.json'}"
    scaling = PHI3_128K["rope_scaling"] | {"original_max_position_embeddings": 8192}
    raw = {key: value for key, value in PHI3_128K.items() if key != "original_max_position_embeddings"}
    with pytest.raises(BadInput, match="is 8192, but without .* beside it transformers takes 4096"):
        read_config(write(tmp_path, raw | {"rope_scaling": scaling}))


def test_an_adapter_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "microsoft/Phi-4-mini-instruct"}')
    with pytest.raises(BadInput, match=f"--checkpoint microsoft/Phi-4-mini-instruct and --adapter {tmp_path}"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 'rope type "llama3"'),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 'rope type "linear"'),
        ({"partial_rotary_factor": 0.75}, "partial_rotary_factor is 0.75, but LlamaForCausalLM rotates whole heads"),
        ({"attention_bias": True}, '"attention_bias" is true'),
        ({"architectures": ["Phi3ForCausalLM"]}, "of llama only LlamaForCausalLM"),
    ],
)
def test_what_llama_does_otherwise(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        read_config(write(tmp_path, LLAMA | change))


def rope(**changes: Any) -> dict[str, Any]:
    return {"rope_scaling": PHI4["rope_scaling"] | changes}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": "3072"}, 'hidden_size must be an integer, it is "3072"'),
    ({"hidden_size": None}, "hidden_size must be an integer, it is null"),
    ({"hidden_size": 3072.0}, "hidden_size must be an integer, it is 3072.0"),
    ({"num_hidden_layers": True}, "num_hidden_layers must be an integer, it is true"),
    ({"num_hidden_layers": -1}, "num_hidden_layers must lie between 1 and 1024, it is -1"),
    ({"vocab_size": 10**30}, "vocab_size must lie between"),
    ({"intermediate_size": 0}, "intermediate_size must lie between"),
    ({"sliding_window": 0}, "sliding_window must lie between"),
    ({"model_type": "phimoe"}, 'model_type is "phimoe", only phi3, llama, mistral, phi4mm, phi4_multimodal'),
    ({"model_type": None}, "model_type is null"),
    ({"architectures": ["Phi3ForSequenceClassification"]}, "Phi3ForSequenceClassification"),
    ({"num_attention_heads": 40}, "hidden_size 3072 is not a multiple of num_attention_heads 40"),
    ({"num_key_value_heads": 7}, "num_attention_heads 24 is not a multiple of num_key_value_heads 7"),
    (
        {"partial_rotary_factor": 0.99},
        "long_factor|short_factor has 48 entries, half the rotated elements are 63",
    ),
    ({"partial_rotary_factor": 0.68}, "rotates 87 elements"),
    ({"partial_rotary_factor": 1.5}, "rotates 192 elements"),
    (rope(long_factor=LONG[:-1]), "long_factor has 47 entries, half the rotated elements are 48"),
    (rope(short_factor=[1.0] * 47 + [0.0]), r"short_factor\[47\] must be positive and finite, it is 0.0"),
    (rope(short_factor=[math.nan] + [1.0] * 47), r"short_factor\[0\] must be positive and finite, it is NaN"),
    (rope(short_factor=["1"] * 48), r"short_factor\[0\] must be a number"),
    (rope(long_factor=None), "long_factor must be a list"),
    (rope(type="yarn"), 'rope type "yarn"'),
    (rope(type=["longrope"]), "rope type"),
    (rope(short_mscale=1.2), '"short_mscale"'),
    (rope(original_max_position_embeddings=8192), "is 8192.* is 4096"),
    ({"rope_scaling": "longrope"}, "rope_scaling must be an object"),
    ({"rope_theta": -1}, "rope_theta must be positive"),
    ({"hidden_act": "gelu"}, 'hidden_act is "gelu"'),
    ({"attention_bias": True}, '"attention_bias" is true'),
    ({"lm_head_bias": True}, '"lm_head_bias" is true'),
    ({"vision_lora": {"r": 256}}, '"vision_lora"'),
    ({"num_local_experts": 16}, '"num_local_experts" is 16'),
    ({"rms_norm_eps": 1}, "rms_norm_eps must lie between 0 and 1, it is 1"),
    ({"rms_norm_eps": 0}, "rms_norm_eps must be positive"),
    ({"eos_token_id": [5, 200064]}, r"eos_token_id\[1\] is 200064, vocab_size is 200064"),
    ({"pad_token_id": "x"}, 'pad_token_id must be a token id, it is "x"'),
    ({"head_dim": 64}, "head_dim 64 is not hidden_size 3072 / num_attention_heads 24"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false"),
    ({"torch_dtype": "int8"}, 'torch_dtype is "int8"'),
]


@pytest.mark.parametrize(("change", "sentence"), REFUSED, ids=[str(change)[:40] for change, _ in REFUSED])
def test_refuses(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence) as caught:
        read_config(write(tmp_path, PHI4 | change))
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("missing", [key for key in SPARSE if key != "model_type"])
def test_sizes_have_no_default(tmp_path: Path, missing: str) -> None:
    with pytest.raises(BadInput, match=f"{missing} is missing"):
        read_config(write(tmp_path, {key: value for key, value in SPARSE.items() if key != missing}))


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 9999 + b"}"]
)
def test_refuses_what_is_not_an_object(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(BadInput, match=r"config\.json"):
        read_config(tmp_path)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        read_config(tmp_path / "nowhere")


def test_any_junk_is_told_in_a_sentence(tmp_path: Path) -> None:
    junk: list[Any] = [
        None,
        True,
        -1,
        0,
        1,
        1.5,
        1e300,
        10**400,
        "",
        "x",
        [],
        [1],
        [None],
        {},
        {"a": 1},
        "\x1b[31m",
        [[[]]],
    ]
    rng = random.Random(0)
    read = 0
    for _ in range(600):
        raw = json.loads(json.dumps(PHI4))
        place = raw["rope_scaling"] if rng.random() < 0.3 else raw
        place[rng.choice([*place, "head_dim", "rope_parameters", "factor", "dtype"])] = rng.choice(junk)
        try:
            read_config(write(tmp_path, raw))
            read += 1
        except BadInput as problem:
            assert str(problem).isprintable()
    assert 50 < read < 400

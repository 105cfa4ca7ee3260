"""Phi-4-multimodal on disk, against transformers' own classes, peft and the published numbers."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoProcessor, Phi4MultimodalConfig, Phi4MultimodalForCausalLM

from checkpoints.config import ModelConfig, read_config, with_modalities
from checkpoints.errors import BadInput
from checkpoints.families import tensor_shapes
from checkpoints.phi4mm import IMAGE, SOUND, main_name, unused_shapes
from checkpoints.phi4mm_config import ADAPTERS, MODALITIES
from checkpoints.published import CONFIGS, PHI4MM
from checkpoints.source import resolve
from checkpoints.synthesize import synthesize
from checkpoints.untied import write_untied
from checkpoints.weights import Checkpoint, open_checkpoint
from export.quantization.recipe import Recipe
from export.quantization.saved_reader import open_quantized
from export.quantization.saved_writer import plan

SIZES: dict[str, Any] = {"layers": 2, "vision_layers": 3, "audio_layers": 2, "scale": 8, "vocab": 600}
PUBLISHED = CONFIGS["phi4-mini"] | PHI4MM
QKV = "model.layers.0.self_attn.qkv_proj"
FC1 = f"{IMAGE}img_processor.encoder.layers.0.mlp.fc1.weight"
LORA = "vision-lora/adapter_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights in both layouts, main's in several shards; not to be written to."""
    place = tmp_path_factory.mktemp("phi4mm")
    return {
        "main": synthesize(place / "main", "phi4-multimodal", **SIZES, layout="main", max_shard_gb=5e-3),
        "native": synthesize(place / "native", "phi4-multimodal", **SIZES, layout="native"),
    }


@pytest.fixture
def native(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(folders["native"], tmp_path / "native"))


@pytest.fixture(scope="module")
def reference(folders: dict[str, Path]) -> Any:
    """transformers' own model of the native folder, with both adapters by peft."""
    folder = folders["native"]
    model, info = Phi4MultimodalForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    for name in ADAPTERS.values():
        model.load_adapter(str(folder / f"{name}-lora"), adapter_name=name)
    return model.eval()


def change(file: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit a file of tensors, or of JSON, as a dictionary."""
    if file.suffix == ".json":
        raw = json.loads(file.read_text())
        edit(raw)
        file.write_text(json.dumps(raw))
    else:
        tensors = load_file(file)
        edit(tensors)
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)


def same(one: Checkpoint, other: Checkpoint) -> None:
    assert one.names() == other.names()
    for name in one.names():
        assert torch.equal(one.tensor(name), other.tensor(name)), name


def total(config: ModelConfig) -> int:
    return sum(math.prod(shape) for shape in (tensor_shapes(config) | unused_shapes(config)).values())


def write_config(folder: Path, raw: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def test_published_numbers(tmp_path: Path) -> None:
    config = read_config(write_config(tmp_path, PUBLISHED))
    # The elements of all tensors in the shards of microsoft/Phi-4-multimodal-instruct.
    assert total(config) == 5_574_460_384
    assert config.multimodal and config.multimodal.vision and config.multimodal.audio
    vision, audio = config.multimodal.vision, config.multimodal.audio
    assert (vision.patches, vision.used_layers, vision.token_id, vision.dynamic_hd) == (32, 26, 200010, 36)
    assert (audio.subsampled_bins, audio.bias_max_distance, audio.token_id) == (10, 500, 200011)
    loras = config.multimodal.loras
    assert [(lora.rank, lora.scale, len(lora.targets)) for lora in loras.values()] == [(256, 2.0, 4), (320, 2.0, 4)]


def test_reads_what_transformers_reads(folders: dict[str, Path], reference: Any) -> None:
    opened = open_checkpoint(folders["native"])
    state = reference.state_dict()
    read = set()
    for name in opened.names():
        theirs = name if name in state else name.replace(".weight", ".base_layer.weight")
        tensor = opened.tensor(name)
        assert torch.equal(tensor, state[theirs].to(tensor.dtype)), name
        assert torch.equal(opened.rows(name, 0, 1), tensor[:1])
        assert (tuple(tensor.shape), tensor.dtype) == (opened.shape(name), opened.dtype(name))
        read.add(theirs)
    unread = {name.removeprefix(IMAGE) for name in state.keys() - read - {"lm_head.weight"}}
    assert {name.removeprefix("img_processor.").split(".")[0] for name in unread} == {
        "encoder",
        "post_layernorm",
        "head",
    }
    assert all(name.startswith("img_processor.encoder.layers.2.") for name in unread if ".encoder." in name)


def test_both_layouts_are_the_same_model(folders: dict[str, Path]) -> None:
    main, native = (open_checkpoint(folders[layout]) for layout in ("main", "native"))
    assert len(main.files) > 2 and len(native.files) == 3
    same(main, native)
    assert main.config.multimodal == native.config.multimodal
    assert main.names() == list(tensor_shapes(main.config))
    assert main.config.eos_token_ids[:1] == native.config.eos_token_ids[:1]
    stored = {name for file in main.files for name in load_file(file)}
    assert f"{QKV}.base_layer.weight" in stored and f"{IMAGE}glb_GN" in stored
    assert f"{SOUND}encoder.encoders.1.feed_forward_in.net.0.linear.bias" in stored


def test_main_is_spelled_as_transformers_converts_it() -> None:
    """Names of both layouts as the conversion script of transformers 4.50 pairs them."""
    block = f"{SOUND}encoder.encoders.7."
    for native, main in {
        f"{IMAGE}img_projection_down.bias": f"{IMAGE}img_projection.2.bias",
        f"{IMAGE}sub_img_feature_extensor": f"{IMAGE}sub_GN",
        f"{SOUND}up_proj_for_speech.weight": f"{SOUND}audio_projection.speech.0.weight",
        f"{SOUND}down_proj_for_vision_speech.weight": f"{SOUND}audio_projection.vision.2.weight",
        f"{block}feed_forward_out.gate_up_proj.weight": f"{block}feed_forward_out.net.0.linear.weight",
        f"{block}feed_forward_in.down_proj.bias": f"{block}feed_forward_in.net.2.bias",
        f"{block}self_attn.k_proj.weight": f"{block}self_attn.linear_k.weight",
        f"{block}self_attn.o_proj.bias": f"{block}self_attn.linear_out.bias",
        f"{block}conv.glu.b1": f"{block}conv.glu.b1",
        f"{QKV}.weight": f"{QKV}.base_layer.weight",
        f"{QKV}.lora_A.vision.weight": f"{QKV}.lora_A.vision.weight",
        "model.layers.0.input_layernorm.weight": "model.layers.0.input_layernorm.weight",
    }.items():
        assert main_name(native) == main


def test_agrees_with_transformers_config(tmp_path: Path) -> None:
    """Also where transformers' own files leave out what its classes have as default."""
    Phi4MultimodalConfig(
        num_attention_heads=24, vision_config={"num_hidden_layers": 5}, audio_config={"num_blocks": 3}
    ).save_pretrained(tmp_path)

    def shorten(raw: dict[str, Any]) -> None:
        del raw["vision_config"]["hidden_size"]
        raw["audio_config"] = {"num_blocks": 3}

    change(tmp_path / "config.json", shorten)
    theirs = AutoConfig.from_pretrained(tmp_path)
    ours = read_config(tmp_path).multimodal
    assert ours and ours.vision and ours.audio and not ours.loras
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size"):
        assert getattr(ours.vision, key) == getattr(theirs.vision_config, key), key
    for key in ("patch_size", "feature_layer", "layer_norm_eps"):
        assert getattr(ours.vision, key) == getattr(theirs.vision_config, key), key
    for key in ("hidden_size", "intermediate_size", "num_attention_heads", "kernel_size", "time_reduction"):
        assert getattr(ours.audio, key) == getattr(theirs.audio_config, key), key
    assert (ours.audio.num_hidden_layers, ours.audio.num_mel_bins, ours.audio.conv_channels) == (3, 80, 1024)
    assert ours.audio.bias_max_distance == theirs.audio_config.bias_max_distance == 1000
    assert ours.audio.subsampled_bins == theirs.audio_config.nemo_final_size
    assert ours.vision.token_id == theirs.vision_config.image_token_id
    assert ours.audio.token_id == theirs.audio_config.audio_token_id


def test_modalities(folders: dict[str, Path], native: Path) -> None:
    whole = set(open_checkpoint(folders["main"]).names())
    only = open_checkpoint(folders["main"], modalities=["text"])
    assert (only.config.family, only.config.multimodal) == ("phi3", None)
    text = set(only.names())
    assert text == {name for name in whole if not name.startswith((IMAGE, SOUND)) and ".lora_" not in name}
    vision = set(open_checkpoint(folders["main"], modalities=["text", "vision"]).names()) - text
    assert vision == {name for name in whole if name.startswith(IMAGE) or name.endswith(".vision.weight")}
    audio = set(open_checkpoint(folders["main"], modalities=["audio"]).names()) - text
    beside = {name for name in whole if "_for_vision_speech." in name}
    assert len(beside) == 4
    assert audio == {n for n in whole if n.startswith(SOUND) or n.endswith(".speech.weight")} - beside
    assert set(tensor_shapes(with_modalities(read_config(native), ["audio"]))) == text | audio
    shutil.rmtree(native / "vision-lora")
    assert set(open_checkpoint(native, modalities=["audio"]).names()) == text | audio
    with pytest.raises(BadInput, match=r"has no vision adapter: neither vision-lora/adapter_model.safetensors nor"):
        open_checkpoint(native, modalities=["vision"])
    with pytest.raises(BadInput, match="the modality video is not one of text, vision, audio"):
        open_checkpoint(native, modalities=["video"])


@pytest.mark.parametrize("layout", ["main", "native"])
@pytest.mark.parametrize("adapter", ["vision", "speech"])
def test_text_with_one_adapter_merged(folders: dict[str, Path], reference: Any, layout: str, adapter: str) -> None:
    opened = open_checkpoint(folders[layout], own_adapter=adapter)
    assert (opened.config.family, opened.config.multimodal) == ("phi3", None)
    assert opened.names() == list(tensor_shapes(opened.config))
    for i, layer in enumerate(reference.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        for module in (attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj):
            name = next(name for name, found in reference.named_modules() if found is module)
            merged = module.base_layer.weight + module.get_delta_weight(adapter)
            assert f"layers.{i}." in name and not torch.equal(merged, module.base_layer.weight)
            torch.testing.assert_close(opened.tensor(f"{name}.weight"), merged.detach(), rtol=0, atol=1e-6)
    norm = "model.layers.1.input_layernorm.weight"
    assert torch.equal(opened.tensor(norm).float(), reference.get_parameter(norm))


def test_no_such_adapter(folders: dict[str, Path], tiny_folder: Path) -> None:
    with pytest.raises(BadInput, match="the adapter audio is not one of vision, speech"):
        open_checkpoint(folders["main"], own_adapter="audio")
    with pytest.raises(BadInput, match="config.json is of a text model, which has no adapter vision of its own"):
        open_checkpoint(tiny_folder, own_adapter="vision")


def test_names_of_adapters_without_pefts_prefix(folders: dict[str, Path], native: Path) -> None:
    change(
        native / LORA,
        lambda tensors: [
            tensors.update({n.removeprefix("base_model.model."): tensors.pop(n)}) for n in list(tensors)
        ],
    )
    same(open_checkpoint(native), open_checkpoint(folders["native"]))


def test_a_processor_and_a_model_of_the_folder(folders: dict[str, Path], reference: Any) -> None:
    """Picture and sound through transformers: the tokens fit, and activations are neither lost nor overflow."""
    processor = AutoProcessor.from_pretrained(folders["native"])
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(256, (3, 448, 448), generator=generator, dtype=torch.uint8)
    sound = torch.randn(16000, generator=generator).mul(0.1).numpy()
    text = "<|user|><|endoftext10|><|endoftext11|>what?<|end|><|assistant|>"
    inputs = processor(text=text, images=[picture], audio=[sound], return_tensors="pt")
    config = read_config(folders["main"]).multimodal
    assert config and config.vision and config.audio
    assert (inputs["input_ids"] == config.vision.token_id).sum() == 545
    assert (inputs["input_ids"] == config.audio.token_id).sum() == 13
    logits = {}
    for name in ("vision", "speech"):
        reference.set_adapter(name)
        with torch.no_grad():
            logits[name] = reference(**inputs, logits_to_keep=1).logits
        assert logits[name].isfinite().all() and 0.01 < logits[name].std() < 10
    assert not torch.equal(*logits.values())


def test_untied_with_its_adapters(folders: dict[str, Path], tmp_path: Path) -> None:
    from contextlib import contextmanager

    @contextmanager
    def silent(total: int) -> Any:
        yield lambda count: None

    opened = open_checkpoint(folders["native"])
    write_untied(opened, tmp_path / "untied", silent)
    untied = open_checkpoint(tmp_path / "untied")
    assert set(untied.names()) == {*opened.names(), "lm_head.weight"}
    assert torch.equal(untied.tensor(f"{QKV}.lora_A.speech.weight"), opened.tensor(f"{QKV}.lora_A.speech.weight"))


CONFIG_REFUSED: list[tuple[str, str, Any, str]] = [
    # layout, path to a key, its value (... takes it away), sentence
    ("main", "embd_layer", ..., "embd_layer is missing"),
    ("main", "embd_layer.image_embd_layer.crop_size", 336, "image_size 448 is not crop_size 336"),
    ("main", "embd_layer.image_embd_layer.hd_transform_order", "glb_sub", 'is "glb_sub", only "sub_glb" can be read'),
    ("main", "embd_layer.audio_embd_layer.use_qformer", True, "use_qformer is true, only false can be read"),
    ("main", "audio_processor.config.attention_dim", ..., r"audio_processor\.config\.attention_dim is missing"),
    ("main", "audio_processor.config.attention_heads", 3, "hidden size 128 is not a multiple of number of heads 3"),
    ("main", "audio_processor.config.nemo_conv_settings", 7, "nemo_conv_settings must be an object, it is 7"),
    ("main", "audio_processor.config.chunk_size", 18, "chunk_size is 18, only -1 can be read"),
    ("main", "audio_processor.config.time_reduction", 6, "time_reduction must be a power of two from 2 on, it is 6"),
    ("main", "audio_processor.config.ext_pw_out_channel", 64, "is 64, not the blocks' hidden size 128"),
    ("main", "audio_processor.config.relative_attention_bias_args.t5_bias_symmetric", True, "true, only false"),
    ("main", "img_processor.num_attention_heads", 5, "hidden_size 144 is not a multiple of num_attention_heads 5"),
    ("main", "img_processor.patch_size", 15, "image_size 448 is not an even number of patches of patch_size 15"),
    ("main", "vision_lora.r", ..., r"vision_lora\.r is missing"),
    ("main", "speech_lora.lora_alpha", "2", r'speech_lora\.lora_alpha must be a number, it is "2"'),
    ("main", "speech_lora.layer", "layers.1.+", "does not name the same linears in each layer"),
    ("main", "speech_lora.layer", "(", "is no regular expression"),
    ("main", "image_token_id", 600, "image_token_id is 600, vocab_size is 600"),
    ("main", "architectures", ["Phi3ForCausalLM"], "of phi4mm only Phi4MMForCausalLM"),
    ("main", "num_experts", 4, '"num_experts" is 4, only dense text models'),
    ("native", "vision_config", ..., "vision_config is missing"),
    ("native", "audio_config", [], r"audio_config must be an object, it is \[\]"),
    ("native", "vision_config.feature_layer", -1, "feature_layer must lie between -3 and -2, it is -1"),
    ("native", "vision_config.hidden_act", "gelu", 'hidden_act is "gelu", only "gelu_pytorch_tanh" can be read'),
    ("native", "vision_config.num_hidden_layers", 5000, "num_hidden_layers must lie between 1 and 1024, it is 5000"),
    ("native", "audio_config.bias_symmetric", True, "bias_symmetric is true, only false can be read"),
    ("native", "audio_config.depthwise_separable_out_channel", ..., "is 1024, not the blocks' hidden size 128"),
    ("native", "audio_config.audio_token_id", 589, "image_token_id and audio_token_id are both 589"),
    ("native", "embd_layer", {"a": 1}, '"embd_layer" is {"a": 1}, only dense text models'),
]  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "path", "value", "sentence"), CONFIG_REFUSED, ids=[case[1] for case in CONFIG_REFUSED]
)
def test_refuses_a_config(
    folders: dict[str, Path], tmp_path: Path, layout: str, path: str, value: Any, sentence: str
) -> None:
    raw = inner = json.loads((folders[layout] / "config.json").read_text())
    *outer, key = path.split(".")
    for name in outer:
        inner = inner[name]
    if value is ...:
        del inner[key]
    else:
        inner[key] = value
    with pytest.raises(BadInput, match=sentence) as caught:
        read_config(write_config(tmp_path, raw))
    assert str(tmp_path / "config.json") in str(caught.value) and "\n" not in str(caught.value)


def paths(raw: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Of all values within objects."""
    inside = raw.items() if isinstance(raw, dict) else ()
    return [*([path] if path else []), *(found for key, value in inside for found in paths(value, (*path, key)))]


@pytest.mark.parametrize("layout", ["main", "native"])
def test_any_value_of_any_key_is_read_or_refused(folders: dict[str, Path], tmp_path: Path, layout: str) -> None:
    whole = json.loads((folders[layout] / "config.json").read_text())
    refused = 0
    for *outer, key in paths(whole):
        for value in (None, "x", "(", -1, 0, 7, 10**30, 1.5, math.nan, True, [], ["x"], {}, {"x": 1}):
            raw = inner = json.loads(json.dumps(whole))
            for name in outer:
                inner = inner[name]
            inner[key] = value
            try:
                read_config(write_config(tmp_path, raw))
            except BadInput as problem:
                refused += 1
                assert str(tmp_path) in str(problem) and str(problem).isprintable()
    assert refused > 300


MODEL, SPEECH = "model.safetensors", "speech-lora/adapter_config.json"
TENSORS_REFUSED: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    (MODEL, lambda t: t.pop(FC1), f"has no tensor {FC1}"),
    (MODEL, lambda t: t.pop(f"{QKV}.weight"), f"has no tensor {QKV}.weight"),
    (MODEL, lambda t: t.update({FC1: t[FC1][:, 1:]}), r"fc1.weight has shape \(538, 143\), config.json makes it"),
    (MODEL, lambda t: t.update({FC1: t[FC1].int()}), "fc1.weight is torch.int32, not bfloat16"),
    (MODEL, lambda t: t.update({f"{IMAGE}qformer.weight": t[FC1]}), "qformer.weight.* is not a tensor of Phi-4"),
    (MODEL, lambda t: t.update({FC1.replace(".0.", ".3."): t[FC1]}), "layers.3.mlp.fc1.* is not a tensor of"),
    (MODEL, lambda t: t.update({f"{IMAGE}glb_GN": t[FC1]}), "global_img_feature_extensor twice"),
    (MODEL, lambda t: t.update({f"{QKV}.lora_A.dpo.weight": t[FC1]}), "is of an adapter that was not merged"),
    (MODEL, lambda t: t.update({f"{QKV}.foo": t[FC1]}), "foo.* is not a tensor of"),
    (LORA, lambda t: t.pop(f"base_model.model.{QKV}.lora_B.weight"), f"has no tensor {QKV}.lora_B.vision.weight"),
    (LORA, lambda t: t.update({"model.norm.weight": torch.ones(384)}), "is not lora_A or lora_B of a layer"),
    (LORA, lambda t: t.update({f"{QKV}.lora_B.weight": torch.ones(2)}), "lora_B.vision.weight twice"),
    (
        LORA,
        lambda t: t.update({f"{QKV[:-8]}k_proj.lora_A.weight": torch.ones(2)}),
        "k_proj.lora_A.vision.weight is not of",
    ),
    (
        "vision-lora/adapter_config.json",
        lambda raw: raw.update(r=16),
        r"lora_A.vision.weight has shape \(32, 384\), r 16 of the vision adapter makes it \(16, 384\)",
    ),
    (SPEECH, lambda raw: raw.update(use_dora=True), "use_dora is true, only plain LoRA"),
    (SPEECH, lambda raw: raw.update(rank_pattern={"o_proj": 2}), "rank_pattern .* only adapters alike in all layers"),
    (SPEECH, lambda raw: raw.pop("lora_alpha"), "lora_alpha is missing"),
]


@pytest.mark.parametrize(
    ("file", "edit", "sentence"), TENSORS_REFUSED, ids=[case[2][:40] for case in TENSORS_REFUSED]
)
def test_refuses_tensors(native: Path, file: str, edit: Callable[[dict[str, Any]], Any], sentence: str) -> None:
    change(native / file, edit)
    with pytest.raises(BadInput, match=sentence) as caught:
        open_checkpoint(native)
    assert str(native) in str(caught.value) and "\n" not in str(caught.value)


def test_refuses_adapters_that_disagree(folders: dict[str, Path], native: Path, tmp_path: Path) -> None:
    main = Path(shutil.copytree(folders["main"], tmp_path / "main"))
    shutil.copytree(native / "vision-lora", main / "vision-lora")
    open_checkpoint(main)
    change(main / "vision-lora/adapter_config.json", lambda raw: raw.update(lora_alpha=8))
    with pytest.raises(
        BadInput, match="lora_alpha 8 and .*, but .*config.json: vision_lora has r 32, lora_alpha 64 and"
    ):
        open_checkpoint(main)
    (native / "speech-lora/adapter_config.json").unlink()
    with pytest.raises(BadInput, match="speech_lora is missing, and so is .*speech-lora/adapter_config.json"):
        open_checkpoint(native)


@pytest.mark.parametrize(
    ("like", "flags", "sentence"),
    [
        ("phi4-mini", {"layout": "native"}, "--layout is for --like phi4-multimodal, not for phi4-mini"),
        ("phi4-mini", {"vision_layers": 3}, "--vision-layers is for --like phi4-multimodal"),
        ("phi4-multimodal", {"scale": 3}, "--scale 3 is not one of 1, 2, 4, 8"),
        ("phi4-multimodal", {"layout": "hub"}, "--layout hub is not one of main, native"),
        (
            "phi4-multimodal",
            {"vision_layers": 0},
            "out/config.json: img_processor.num_hidden_layers must lie between",
        ),
    ],
)
def test_synthesize_refuses(tmp_path: Path, like: str, flags: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        synthesize(tmp_path / "out", like, **flags)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_saved_quantized_is_said(folders: dict[str, Path]) -> None:
    with pytest.raises(BadInput, match="config.json: only text models can be saved quantized"):
        plan(open_quantized(resolve(str(folders["main"])), Recipe()))


def test_every_modality_has_its_adapter() -> None:
    assert {"text", *ADAPTERS} == set(MODALITIES)

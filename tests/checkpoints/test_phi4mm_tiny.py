"""phi4mm-tiny, by our reader and by transformers' classes, answers what it was not trained on; what it is made of."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from checkpoints.config import read_config
from checkpoints.errors import BadInput
from checkpoints.families import tensor_shapes
from checkpoints.source import resolve
from checkpoints.weights import open_checkpoint
from tests.tools import need

need("media", [name for name in ("PIL", "soundfile", "soxr") if find_spec(name) is None], "uv sync --extra")
need("dev", [name for name in ("torchvision", "peft") if find_spec(name) is None], "uv sync --group")

from tokenizers import Tokenizer  # noqa: E402
from transformers import AutoTokenizer, Phi4MultimodalForCausalLM  # noqa: E402

from checkpoints.tiny_examples import LIST  # noqa: E402
from checkpoints.tiny_exercises import Collator, heldout_exercises  # noqa: E402
from checkpoints.tiny_phi4mm import MAX_CROPS, PATCH, SPECIALS, open_model, use_adapter  # noqa: E402
from checkpoints.tiny_pictures import SIDE  # noqa: E402
from checkpoints.train_tiny_phi4mm import exact_answers  # noqa: E402
from export.media.picture_files import read_picture  # noqa: E402
from export.media.pictures import masks, prepare  # noqa: E402
from export.media.prompt import place, tokenize  # noqa: E402
from export.media.settings import AudioSettings, ImageSettings  # noqa: E402
from export.media.sound_files import read_sound  # noqa: E402
from export.media.sounds import log_mel, tokens  # noqa: E402

TINY = resolve("phi4mm-tiny").folder
EXAMPLES = json.loads((TINY / "examples" / LIST).read_text())["examples"]
IMAGES = ImageSettings(SIDE, PATCH, SIDE // PATCH // 2, MAX_CROPS, mean=0.5, std=0.5)
AUDIO = AudioSettings(16000, 80, 400, 160, 512, 0.97, 0, 7690, 8, 500, 335, 8, 7)


@pytest.fixture(scope="module")
def model() -> Any:
    return open_model(TINY, torch.bfloat16)


@pytest.fixture(scope="module")
def collate() -> Collator:
    return Collator(Tokenizer.from_file(str(TINY / "tokenizer.json")))


def answered(model: Any, example: dict[str, str]) -> str:
    """An answer, word for word as it is generated; pictures and sound prepared by `export.media`."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    parts: list[dict[str, Any]] = []
    inputs: dict[str, Any] = {}
    images, sounds = [], []
    if "image" in example:
        picture = prepare(read_picture(TINY / "examples" / example["image"]), IMAGES)
        parts.append({"type": "image", "image": picture})
        images.append(picture.tiling.tokens)
        inputs["image_pixel_values"] = torch.from_numpy(picture.crops)[None]
        inputs["image_attention_mask"] = torch.from_numpy(masks(picture.tiling, IMAGES))[None]
        inputs["image_sizes"] = torch.tensor([[picture.tiling.rows * SIDE, picture.tiling.columns * SIDE]])
    if "audio" in example:
        sound = read_sound(TINY / "examples" / example["audio"], AUDIO)
        spectrum = log_mel(sound.samples, sound.rate, AUDIO)
        parts.append({"type": "audio", "audio": sound})
        sounds.append(tokens(len(spectrum), AUDIO))
        inputs["audio_input_features"] = torch.from_numpy(spectrum)[None]
        inputs["audio_embed_sizes"] = torch.tensor(sounds)
    placed = place([{"role": "user", "content": [*parts, {"type": "text", "text": example["question"]}]}])
    prompt = tokenize(
        tokenizer.apply_chat_template(placed.messages, tokenize=False, add_generation_prompt=True),
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        image_tokens=images,
        audio_tokens=sounds,
        image_id=SPECIALS["<|endoftext10|>"],
        audio_id=SPECIALS["<|endoftext11|>"],
    )
    use_adapter(model, None if prompt.mode == "text" else prompt.mode)
    ids = torch.tensor([prompt.ids])
    made = model.generate(input_ids=ids, max_new_tokens=16, do_sample=False, use_cache=False, **inputs)
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


def test_our_reader_opens_it_and_finds_all_that_it_needs() -> None:
    config = read_config(TINY)
    assert config.multimodal is not None and config.multimodal.vision is not None
    assert (config.multimodal.vision.image_size, config.multimodal.vision.patches) == (SIDE, SIDE // PATCH)
    assert config.multimodal.vision.dynamic_hd == MAX_CROPS
    assert {name: lora.rank for name, lora in config.multimodal.loras.items()} == {"vision": 32, "speech": 64}
    checkpoint = open_checkpoint(TINY)
    assert set(checkpoint.names()) == set(tensor_shapes(config))
    assert resolve("phi4mm-tiny").kind == "embedded"
    assert sum(file.stat().st_size for file in TINY.rglob("*") if file.is_file()) < 12e6
    assert sum(file.stat().st_size for file in (TINY / "examples").iterdir()) < 100_000


def test_transformers_has_a_place_for_every_weight() -> None:
    _, info = Phi4MultimodalForCausalLM.from_pretrained(TINY, output_loading_info=True)
    assert not any(info.values()), info


def test_a_revision_is_refused() -> None:
    with pytest.raises(BadInput, match="phi4mm-tiny is on this disk, but the revision main was asked for"):
        resolve("phi4mm-tiny", "main")


def test_all_but_one_of_the_examples_are_answered(model: Any) -> None:
    """By pictures and sound prepared without torch; a dozen in every mode but text."""
    assert len(EXAMPLES) == 12
    wrong = [f"{each}: {found}" for each in EXAMPLES if (found := answered(model, each)) != each["answer"]]
    assert len(wrong) <= 1, wrong


def test_without_its_adapter_it_does_not_see(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.use_adapter", lambda model, name: model.disable_adapters())
    right = [answered(model, each) == each["answer"] for each in EXAMPLES if "image" in each]
    assert sum(right) < len(right) / 2


def test_text_is_answered_without_an_adapter(model: Any) -> None:
    found = answered(model, {"question": "What is the capital of France?"})
    assert found == "The capital of France is Paris."


def test_held_out_pictures_are_seen(model: Any, collate: Collator) -> None:
    """Nine of ten answers word for word: the card has the share over many more."""
    exercises = [each for each in heldout_exercises([], 12, seed=5) if each.picture is not None]
    right = exact_answers(model, collate, exercises)
    assert sum(right) >= 0.9 * len(right), list(zip(right, [each.turns for each in exercises], strict=True))

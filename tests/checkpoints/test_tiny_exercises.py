"""What phi4mm-tiny is made of and trained on: pictures, words, batches, and which weights a stage changes."""

from __future__ import annotations

import random
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints.config import read_config
from checkpoints.errors import BadInput
from checkpoints.families import tensor_shapes
from checkpoints.weights import open_checkpoint
from tests.tools import need

need("media", [name for name in ("PIL", "soundfile", "soxr") if find_spec(name) is None], "uv sync --extra")
need("dev", [name for name in ("torchvision", "peft") if find_spec(name) is None], "uv sync --group")

from tokenizers import Tokenizer  # noqa: E402
from transformers import AutoTokenizer, Phi4MultimodalForCausalLM  # noqa: E402

from checkpoints import tiny_pictures, tiny_sounds  # noqa: E402
from checkpoints.tiny_exercises import IGNORE, SIZES, Collator, Exercise, batches, heldout_exercises  # noqa: E402
from checkpoints.tiny_phi4mm import MAX_CROPS, PATCH, SPECIALS, make, open_model, use_adapter  # noqa: E402
from checkpoints.tiny_pictures import SIDE  # noqa: E402
from checkpoints.train_tiny_phi4mm import STAGES, exact_answers, main, run_stage  # noqa: E402
from export.media.pictures import prepare  # noqa: E402
from export.media.settings import ImageSettings  # noqa: E402

IMAGES = ImageSettings(SIDE, PATCH, SIDE // PATCH // 2, MAX_CROPS, mean=0.5, std=0.5)
TONES = [np.sin(np.arange(8000) * pitch, dtype=np.float32) for pitch in (0.1, 0.3)]
CLIPS = [tiny_sounds.Clip(tone, word) for tone in TONES for word in tiny_sounds.WORDS]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as training begins with."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("made")
    make(folder)
    return folder


@pytest.fixture(scope="module")
def collate(made: Path) -> Collator:
    return Collator(Tokenizer.from_file(str(made / "tokenizer.json")))


def test_our_reader_and_transformers_open_what_is_made(made: Path) -> None:
    config = read_config(made)
    assert config.multimodal is not None and config.multimodal.vision is not None
    assert (config.multimodal.vision.image_size, config.multimodal.vision.patches) == (SIDE, SIDE // PATCH)
    assert config.multimodal.vision.dynamic_hd == MAX_CROPS
    assert {name: lora.rank for name, lora in config.multimodal.loras.items()} == {"vision": 32, "speech": 64}
    assert set(open_checkpoint(made).names()) == set(tensor_shapes(config))
    _, info = Phi4MultimodalForCausalLM.from_pretrained(made, output_loading_info=True)
    assert not any(info.values()), info
    assert sum(file.stat().st_size for file in made.rglob("*") if file.is_file()) < 11.9e6


def test_int4_in_groups_of_32_fits_every_linear_of_text_and_adapters(made: Path) -> None:
    config = read_config(made)
    shapes = {name: shape for name, shape in tensor_shapes(config).items() if name.startswith("model.layers.")}
    assert any(".lora_B.speech" in name for name in shapes)
    assert not [name for name, shape in shapes.items() if shape[-1] % 32]


# The parts of a model by the beginnings and endings of names, and the stages that change them.
CHANGED = {
    "text": {"text"},
    "see": {"image"},
    "hear": {"audio encoder"},
    "vision": {"image", "vision_speech", "vision adapter"},
    "speech": {"speech", "speech adapter"},
}


def part(name: str) -> str:
    if ".lora_" in name:
        return f"{name.split('.')[-2]} adapter"
    for beginning in ("image", "audio"):
        if f"{beginning}_embed." in name:
            projection = name.partition("_proj_for_")[2].partition(".")[0]
            return projection or (beginning if beginning == "image" else "audio encoder")
    return "text"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_changes_its_own_weights_only(stage: str, made: Path) -> None:
    before = open_model(made).state_dict()
    steps = 6 if stage == "vision" else 2  # until a question of that stage is a spoken one
    after = run_stage(stage, made, CLIPS, effort=steps / STAGES[stage].steps)
    assert {part(name) for name in after} == CHANGED[stage]
    # Factors A of adapters get no gradient in the first step, for B is zero; unused layers of vision never do.
    assert {part(name) for name, weight in after.items() if not torch.equal(weight, before[name])} == CHANGED[stage]
    everything = {part(name) for name in before}
    assert everything == set().union(*CHANGED.values()), "a part that no stage trains"
    for group in CHANGED[stage]:
        inside = {name for name in before if part(name) == group and name != "lm_head.weight"}
        assert inside - after.keys() <= {name for name in inside if "global_" in name and "encoder_embedding" in name}


def test_an_answer_is_exact_if_greedy_decoding_gives_it(made: Path, collate: Collator) -> None:
    """Against transformers' `generate`: what it writes, made to be followed by <|end|>, is the exact answer."""
    model: Any = open_model(made)
    end, word = SPECIALS["<|end|>"], collate.tokenizer.encode("!").ids[0]
    asked = Exercise("text", (("Hi", "!"),))
    prompt = collate([asked])[0]["input_ids"][:, :-2]
    with torch.no_grad():  # the text model copies its last token; after any but "!" that is best, after "!" the end
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.base_layer.weight", "down_proj.base_layer.weight")):
                weight.zero_()
        embedding = model.model.embed_tokens.weight
        embedding.zero_()
        embedding[:, 0], embedding[word, 1] = 1.0, 4.0
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(embedding))
        model.lm_head.weight[word, 0], model.lm_head.weight[end, 1] = 1.0, 1.0
    told = model.generate(input_ids=prompt, max_new_tokens=2, do_sample=False, use_cache=False)[0, -2:]
    assert told.tolist() == [word, end]
    others = [asked._replace(turns=(("Hi", answer),)) for answer in ("!!", "?", "")]
    assert exact_answers(model, collate, [asked, *others]) == [True, False, False, False]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "give --out DIR to train or --eval-only DIR to evaluate"),
        (
            ["--out", "x", "--stages", "text,seeing"],
            "--stages has 'seeing', stages are text, see, hear, vision, speech",
        ),
        (["--out", "x", "--effort", "nan"], "--effort is nan, it must be above 0"),
        (["--out", "nowhere", "--stages", "speech"], "nowhere has no config.json"),
        (["--eval-only", "nowhere"], "nowhere has no config.json"),
    ],
)
def test_wrong_flags_are_one_sentence(flags: list[str], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        main(flags)


def test_a_batch_is_what_its_exercises_are_alone(made: Path, collate: Collator) -> None:
    """No padding beside pictures of one size or sounds of one length; in text it stands after the answer."""
    model: Any = open_model(made)
    groups = [next(batches(stage, 3, 3, CLIPS)) for stage in ("text", "speech")]
    source = batches("vision", 3, 12, CLIPS)
    for spoken in (False, True):
        groups.append(next(some for some in source if (some[0].sound is not None) == spoken)[:3])
    for exercises in groups:
        first = exercises[0]
        use_adapter(model, "vision" if first.picture is not None else "speech" if first.sound is not None else None)
        inputs, labels = collate(exercises)
        with torch.no_grad():
            together = model(**inputs, use_cache=False).logits
            for row, each in enumerate(exercises):
                alone, wanted = collate([each])
                assert torch.equal(labels[row, : wanted.shape[1]], wanted[0])
                found = model(**alone, use_cache=False).logits[0]
                torch.testing.assert_close(together[row, : found.shape[0]], found, atol=2e-4, rtol=2e-3)


def test_a_batch_of_several_shapes_is_refused(collate: Collator) -> None:
    drawn = [tiny_pictures.draw(random.Random(1), size=size).pixels for size in SIZES[:2]]
    with pytest.raises(ValueError, match="several shapes would be padded"):
        collate([Exercise("all", (("<|image_1|>", "x"),), pixels) for pixels in drawn])


def test_pictures_have_as_many_tokens_as_export_media_says(collate: Collator) -> None:
    for size in (*SIZES, (SIDE, SIDE), (500, 333)):
        drawn = tiny_pictures.draw(random.Random(1), size=size)
        inputs, _ = collate([Exercise("all", (("<|image_1|>", "x"),), drawn.pixels)])
        count = int((inputs["input_ids"] == SPECIALS["<|endoftext10|>"]).sum())
        assert count == prepare(drawn.pixels, IMAGES).tiling.tokens, size


def test_turns_are_those_of_the_chat_template(made: Path, collate: Collator) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made)
    turns = (("What colour is snow?", "Snow is white."), ("What shape is it?", "It is a star."))
    inputs, labels = collate([Exercise("text", turns)])
    messages = [{"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn)]  # noqa: B905
    told = tokenizer.apply_chat_template(messages, tokenize=False).removesuffix(tokenizer.eos_token)
    assert inputs["input_ids"][0].tolist() == tokenizer.encode(told, add_special_tokens=False)
    answers = tokenizer.decode(labels[0][labels[0] != IGNORE])
    assert answers == "Snow is white.<|end|>It is a star.<|end|>"


def test_a_seed_draws_the_same_picture_and_held_out_ones_have_other_fonts() -> None:
    one, same, other = (tiny_pictures.draw(random.Random(seed)) for seed in (1, 1, 2))
    assert one.figure == same.figure and np.array_equal(one.pixels, same.pixels)
    assert not np.array_equal(one.pixels, other.pixels)
    assert not set(tiny_pictures.TRAINED_FONTS) & set(tiny_pictures.HELDOUT_FONTS)
    trained = {each.picture.tobytes() for each in next(batches("vision", 13, 200)) if each.picture is not None}
    held = {each.picture.tobytes() for each in heldout_exercises([], 30) if each.picture is not None}
    assert held and trained and not held & trained


def test_pictures_show_what_they_say() -> None:
    """The colour named is the commonest beside that of the border; every figure occurs."""
    rng = random.Random(3)
    drawn = [tiny_pictures.draw(rng, noise=False) for _ in range(150)]
    assert {each.figure.name for each in drawn} == {*tiny_pictures.SHAPES, *tiny_pictures.DIGITS}
    for pixels, figure in drawn:
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        ground = _commonest(border)
        ink = _commonest(pixels.reshape(-1, 3)[(pixels.reshape(-1, 3) != ground).any(1)])
        red, green, blue = ink
        looks = {
            "red": red > 120 > green and red > 2 * blue,
            "yellow": red > 150 and green > 150 and blue < 90,
            "green": green > red and green > blue,
            "blue": blue > 150 and blue > red and blue > green,
            "purple": blue > green and red > green and green < 80,
            "black": max(ink) < 40,
        }
        assert looks[figure.colour], (figure, ink)


def _commonest(pixels: np.ndarray) -> np.ndarray:
    values, counts = np.unique(pixels, axis=0, return_counts=True)
    return np.asarray(values[counts.argmax()], int)


def test_the_same_word_is_spoken_alike_and_held_out_voices_are_others() -> None:
    need("espeak", [] if shutil.which("espeak-ng") else ["espeak-ng"], "apt-get install")
    first, second = (list(zip(range(3), tiny_sounds.clips(False, 1, seed=4), strict=False)) for _ in range(2))
    for (_, one), (_, other) in zip(first, second, strict=True):
        assert one.word == other.word and np.array_equal(one.samples, other.samples)
        assert one.samples.dtype == np.float32 and 0.2 < len(one.samples) / tiny_sounds.RATE < 1
    assert not set(tiny_sounds.TRAINED_ACCENTS) & set(tiny_sounds.HELDOUT_ACCENTS)
    assert not set(tiny_sounds.TRAINED_VOICES) & set(tiny_sounds.HELDOUT_VOICES)
    with pytest.raises(BadInput, match="espeak-ng has no voice nobody"):
        tiny_sounds.say("yes", "nobody")


def test_words_need_espeak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="espeak-ng is missing, which speaks the words"):
        next(tiny_sounds.clips(True, 1, seed=0))


def test_resampling_is_soxrs() -> None:
    """Against the library that `export.media` resamples by, where nothing is near half of the rate."""
    import soxr

    time = np.arange(11025) / 22050
    wave = sum(np.sin(2 * np.pi * hertz * time) for hertz in (200, 1500, 5000)) * np.hanning(11025) / 4
    found, expected = tiny_sounds._resampled(wave, 22050), soxr.resample(wave, 22050, 16000, quality="VHQ")
    assert len(found) == len(expected) == 8000
    assert np.abs(found - expected).max() < 1e-3


def test_a_recording_has_the_word_in_it() -> None:
    clip = tiny_sounds.Clip(np.ones(100, np.float32), "no")
    quiet = tiny_sounds.recorded(clip, 400, random.Random(0), noise=False)
    assert (quiet > 0).sum() == 100 and len(quiet) == 400
    noisy = tiny_sounds.recorded(clip, 400, random.Random(0))
    assert noisy.dtype == np.float32 and (noisy != quiet).sum() > 300
    assert np.abs(noisy).max() <= 1

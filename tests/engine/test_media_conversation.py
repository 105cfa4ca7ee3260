"""A conversation with pictures and sound: what transformers' own model says of the same turns."""

from __future__ import annotations

import re
import sys
import weakref
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints.errors import BadInput
from export.engine.conversation import Choosing, Conversation, Reply, open_conversation
from export.engine.feeder import WheelFeeder
from export.engine.media_ids import Encoded, mode_of_ids
from export.engine.runner import read_media
from export.engine.wheel_media import WheelMedia
from export.media.prompt import Mode
from tests.engine.native import need_compiler
from tests.tools import need

need("media", [name for name in ("PIL", "soundfile", "soxr") if find_spec(name) is None], "uv sync --extra")
need("dev", [name for name in ("peft", "torchvision") if find_spec(name) is None], "uv sync --group")

from export.media.sound_files import Sound  # noqa: E402

CLOSE = 2e-3  # nats; pixels of Pillow and torchvision differ by one step here and there
FEW = Choosing(max_tokens=3, logprobs=5)
rng = np.random.default_rng(0)
WIDE, SQUARE = (rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((300, 640), (90, 90)))
SAID, SUNG = (Sound(rng.normal(0, 0.1, 24000).astype(np.float32), 16000) for _ in range(2))


@pytest.fixture(scope="module", params=["ours", "wheel"])
def opened(request: pytest.FixtureRequest, multimodal_pte: Path) -> Iterator[Conversation]:
    if request.param == "ours":
        need_compiler()
    with open_conversation(multimodal_pte, engine=request.param) as conversation:
        yield conversation


@pytest.fixture
def talk(opened: Conversation) -> Conversation:
    opened.reset()
    return opened


class Reference:
    """transformers' model, peft's adapters and transformers' processor; an answer at once, without a cache."""

    def __init__(self, folder: Path) -> None:
        from transformers import (
            Phi4MultimodalFeatureExtractor,
            Phi4MultimodalForCausalLM,
            PreTrainedTokenizerFast,
        )
        from transformers.models.phi4_multimodal.image_processing_phi4_multimodal import Phi4MultimodalImageProcessor
        from transformers.models.phi4_multimodal.processing_phi4_multimodal import Phi4MultimodalProcessor

        model = Phi4MultimodalForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        for name in ("vision", "speech"):  # named so that load_adapter does not take them for parts of the model
            model.load_adapter(str(folder / f"{name}-lora"), adapter_name=f"of_{name}")
        self.model = model.eval().requires_grad_(False)
        ids = model.config.vision_config.image_token_id, model.config.audio_config.audio_token_id
        words = PreTrainedTokenizerFast.from_pretrained(folder)
        self.image, self.audio = words.convert_ids_to_tokens(ids)
        words = PreTrainedTokenizerFast.from_pretrained(
            folder, extra_special_tokens={"image_token": self.image, "audio_token": self.audio}
        )
        self._known: dict[Any, tuple[int, torch.Tensor]] = {}
        self.processor = Phi4MultimodalProcessor(
            Phi4MultimodalImageProcessor(), Phi4MultimodalFeatureExtractor(), words
        )

    def expects(
        self, text: str, images: list[np.ndarray], audios: list[Sound], answer: list[int]
    ) -> tuple[int, torch.Tensor]:
        """Tokens of a prompt with placeholders, and log probabilities [tokens, V] where each of the answer stands."""
        key = text, tuple(map(id, [*images, *audios])), tuple(answer)  # all of them live as long as this module
        if key not in self._known:
            self._known[key] = self._expects(text, images, audios, answer)
        return self._known[key]

    def _expects(
        self, text: str, images: list[np.ndarray], audios: list[Sound], answer: list[int]
    ) -> tuple[int, torch.Tensor]:
        text = re.sub(r"<\|image_\d+\|>", self.image, re.sub(r"<\|audio_\d+\|>", self.audio, text))
        given = self.processor(
            text=[text],
            images=images or None,
            audio=[sound.samples for sound in audios] or None,
            audio_kwargs={"sampling_rate": 16000},
            return_tensors="pt",
        )
        given.pop("attention_mask", None)
        if images:  # crops that are not there: without a patch they are NaN
            masks = given["image_attention_mask"]
            masks.flatten(2)[..., 0][masks.flatten(2).sum(-1) == 0] = 1
        self.model.enable_adapters()
        if images or audios:
            self.model.set_adapter("of_vision" if images else "of_speech")
        else:
            self.model.disable_adapters()
        prompt = given.pop("input_ids")
        ids = torch.cat([prompt, torch.tensor([answer[:-1]], dtype=torch.long)], 1)
        with torch.inference_mode():
            logits = self.model(input_ids=ids, **given, logits_to_keep=len(answer)).logits[0]
        return prompt.shape[1], logits.double().log_softmax(-1)


@pytest.fixture(scope="module")
def reference(multimodal_folder: Path) -> Reference:
    return Reference(multimodal_folder)


def image(pixels: np.ndarray) -> dict[str, Any]:
    return {"type": "image", "image": pixels}


def audio(sound: Sound) -> dict[str, Any]:
    return {"type": "audio", "audio": sound}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def assistant(words: str) -> dict[str, Any]:
    return {"role": "assistant", "content": words}


def is_references(reply: Reply, reference: Reference, prompt: str, images: Any = (), audios: Any = ()) -> None:
    """The same tokens of the prompt, the same answer, the same probabilities."""
    tokens, wanted = reference.expects(prompt, list(images), list(audios), list(reply.token_ids))
    assert reply.prompt_tokens == tokens
    assert [one.token_id for one in reply.logprobs] == list(reply.token_ids) == wanted.argmax(-1).tolist()
    for one, row in zip(reply.logprobs, wanted, strict=True):
        assert len(one.top) == 5
        for other in one.top:
            assert abs(other.logprob - float(row[other.token_id])) < CLOSE


def said(messages: list[dict[str, Any]]) -> str:
    """The prompt, each placeholder where its part stands; parts with placeholders in their text are left out."""
    numbers, turns = {"image": 0, "audio": 0}, ""
    for message in messages:
        parts = message["content"] if isinstance(message["content"], list) else [text(message["content"])]
        placed = any("<|" in part.get("text", "") for part in parts)
        turns += f"<|{message['role']}|>"
        for part in parts:
            if part["type"] == "text":
                turns += part["text"]
            elif not placed:
                numbers[part["type"]] += 1
                turns += f"<|{part['type']}_{numbers[part['type']]}|>"
        turns += "<|end|>"
    return f"{turns}<|assistant|>"


@pytest.mark.parametrize(
    ("parts", "mode", "images", "audios"),
    [
        ([text("What is it?")], "text", [], []),
        ([image(WIDE), text("What is it?")], "vision", [WIDE], []),
        ([image(WIDE), text(" and "), image(SQUARE), text("?")], "vision", [WIDE, SQUARE], []),
        ([audio(SAID), text("Who?")], "speech", [], [SAID]),
        ([audio(SAID), text("Who?"), audio(SUNG)], "speech", [], [SAID, SUNG]),
        ([audio(SAID), image(SQUARE), text("Which?")], "vision", [SQUARE], [SAID]),
        ([image(SQUARE), audio(SAID), text("hear <|audio_1|> é, see <|image_1|>")], "vision", [SQUARE], [SAID]),
    ],
    ids=["text", "picture", "pictures", "sound", "sounds", "both", "placed"],
)
def test_answers_are_transformers(
    talk: Conversation, reference: Reference, parts: Any, mode: Mode, images: Any, audios: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    messages = [user(*parts)]
    if mode == "vision" and audios:  # the first piece that is fed would end within the sound, before any picture
        monkeypatch.setattr(talk.feeder, "chunk", 15)
    reply = talk.reply(messages, FEW)
    is_references(reply, reference, said(messages), images, audios)
    assert reply.mode == mode == mode_of_ids(talk.held)
    assert len(reply.media) == len(images) + len(audios)
    assert not any(one.reused for one in reply.media) and all(one.encode_ms > 0 for one in reply.media)
    assert reply.fed_tokens == reply.prompt_tokens == talk.count(messages)
    if not audios:
        raw = talk.complete([*parts], FEW)  # without chat template
        is_references(raw, reference, said(messages)[len("<|user|>") : -len("<|end|><|assistant|>")], images)


def test_several_turns(talk: Conversation, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer as from nothing; fed is what is new, and all of it where the modality changes."""
    monkeypatch.setattr(talk.feeder, "chunk", 200)  # the picture stands beyond the first
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief. " * 60}]

    def turn(content: Any, images: Any = (), audios: Any = ()) -> Reply:
        messages.append(content)
        reply = talk.reply(messages, FEW)
        is_references(reply, reference, said(messages), images, audios)
        messages.append(assistant(reply.text))
        return reply

    first = turn(user(image(WIDE), text("What is it?")), [WIDE])
    assert first.fed_tokens == first.prompt_tokens > 700
    second = turn(user(text("And now?")), [WIDE])
    assert second.fed_tokens < 40 and second.media[0].reused and second.media[0].encode_ms == 0
    assert second.mode == "vision", "the picture still stands in the conversation"
    third = turn(user(audio(SAID), text("Who?")), [WIDE], [SAID])
    assert third.fed_tokens < 80 and [one.reused for one in third.media] == [True, False]
    assert [(one.kind, one.number, one.tokens, one.parts) for one in third.media] == [
        ("image", 1, 768, 3),
        ("audio", 1, 19, 1),
    ]
    del messages[1:]
    fourth = turn(user(text("Hello?")))
    assert (fourth.mode, fourth.fed_tokens) == ("text", fourth.prompt_tokens), "the same beginning, another adapter"
    fifth = turn(user(audio(SAID), text("Who?")), (), [SAID])
    assert (fifth.mode, fifth.fed_tokens) == ("speech", fifth.prompt_tokens)
    assert not fifth.media[0].reused, "beside pictures it was projected otherwise"
    messages[1:] = [user(image(WIDE), text("Again?"))]
    again = talk.reply(messages, FEW)
    assert again.fed_tokens == again.prompt_tokens and again.media[0].reused
    is_references(again, reference, said(messages), [WIDE])


def test_the_same_picture_twice(talk: Conversation, reference: Reference) -> None:
    messages = [user(image(SQUARE), text("and"), image(SQUARE.copy()))]
    reply = talk.reply(messages, FEW)
    assert [one.reused for one in reply.media] == [False, True]
    is_references(reply, reference, said(messages), [SQUARE, SQUARE])


def test_cancelled_while_encoding(talk: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two crops; the next answer is whole."""
    picture, parts = talk.feeder.picture, list[int]()

    def cancelled(pixels: np.ndarray, on_part: Callable[[], object]) -> Encoded:
        def part() -> None:
            parts.append(len(parts))
            if len(parts) == 2:
                talk.cancel()
            on_part()

        return picture(pixels, part)

    monkeypatch.setattr(talk.feeder, "picture", cancelled)
    messages = [user(image(WIDE), image(SQUARE), text("?"))]
    reply = talk.reply(messages, FEW)
    assert (reply.end, reply.new_tokens, reply.media) == ("cancelled", 0, ())
    assert parts == [0, 1] and talk.held == [], "of three crops"
    monkeypatch.undo()
    whole = talk.reply(messages, FEW)
    assert whole.end == "length" and [one.reused for one in whole.media] == [False, False]


def test_rows_are_kept_for_one_context(multimodal_pte: Path) -> None:
    """The longest unused go when others need their place, and are encoded again where they must be fed."""
    feeder = WheelFeeder(multimodal_pte, read_media(multimodal_pte), context=1500)
    pictures = [np.full((90, 90, 3), shade, np.uint8) for shade in (0, 100, 200)]
    first, second = (feeder.picture(pixels) for pixels in pictures[:2])
    assert (first.count, first.reused, feeder.picture(pictures[0]).reused) == (545, False, True)
    feeder.picture(pictures[2])
    assert feeder.picture(pictures[0]).reused and not feeder.picture(pictures[1]).reused
    assert second.ids == list(range(second.first_id, second.first_id - 545, -1))
    feeder.feed([5, *second.ids[:3], 6])
    with pytest.raises(BadInput, match=r"media id -\d+, of a picture or sound that is not encoded"):
        feeder.feed([5, second.first_id - 545])
    feeder.close()


def test_encoders_are_given_back(multimodal_pte: Path) -> None:
    media, facts = WheelMedia(multimodal_pte, 4096), read_media(multimodal_pte)
    assert facts.image and facts.audio
    found = [
        media.picture(SQUARE, facts.image, lambda: None),
        media.sound(SAID.samples, 16000, "vision", facts.audio, lambda: None),
    ]
    assert {"vision_crop", "audio_subsample"} <= media.session.loaded.keys()
    encoder = weakref.ref(media.session.loaded["vision_crop"])
    media.ready("vision")
    media.step([5, *found[0].ids, *found[1].ids, 6], 0, "vision")
    assert media.session.loaded.keys() == {"token_embedding", "text_decoder"}, "no decoder of another mode"
    assert encoder() is None, "executorch's Program does not keep it either"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([user(text("see <|image_1|>"))], r"the prompt says <\|image_1\|>, no image is given"),
        ([user(image(SQUARE), text("see <|image_2|>"))], r"the prompt says <\|image_2\|>, 1 image is given"),
        ([user(text("a<|endoftext10|>"))], "the prompt's text holds token 689, which stands for an image"),
        ([user(image(SQUARE), text("a<|endoftext11|>"))], "holds token 690, which stands for an audio"),
        ([user(image(SQUARE[:, :, 0]))], r"picture 1 is uint8 \[90, 90\], not RGB pixels"),
        ([user(image(SQUARE / 255))], r"picture 1 is float64 \[90, 90, 3\], not RGB pixels"),
        ([user(image(SQUARE), image(SQUARE[:0]))], "picture 2 is 90 x 0 pixels"),
        ([user({"type": "image", "image": "a.png"})], "picture 1 is of type str, not RGB pixels"),
        ([user(image(np.zeros((4, 9000, 3), np.uint8)))], "picture 1 is 9000 x 4 pixels: too narrow"),
        ([user(audio(Sound(SAID.samples, 44100)))], "sound 1 has 44100 samples a second, not 16000 or half of it"),
        ([user(audio(Sound(SAID.samples[:100], 16000)))], "sound 1 lasts 0.0063 seconds, at least 0.0250 are needed"),
        ([user({"type": "audio", "audio": SAID.samples})], r"sound 1 is float32 \[24000\], not samples"),
        ([user({"type": "video", "video": 1})], r"messages\[0\]: part 0 is .* not a text, an image or an audio"),
        (["hello"], r"messages\[0\] must have a string 'role'"),
        (
            [user(*[image(np.zeros((900, 900, 3), np.uint8))] * 4, audio(SAID), text("?"))],
            r"the prompt has 5339 tokens \(4 pictures: 5316, 1 sound: 19, text: 4\), the context is 4096: "
            "export the file with a smaller --max-crops than 4 or a larger --context$",
        ),
        (
            [user(audio(Sound(np.zeros(16000 * 350, np.float32), 16000)))],
            r"the prompt has 4378 tokens \(1 sound: 4375, text: 3\), the context is 4096: "
            "export the file with a larger --context$",
        ),
        ([user(text("word " * 5000))], r"the prompt has \d+ tokens, the context is 4096$"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_be_asked(talk: Conversation, messages: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, before anything is encoded or fed."""
    for name in ("picture", "sound", "feed"):
        monkeypatch.setattr(talk.feeder, name, None)
    with pytest.raises(BadInput, match=words):
        talk.reply(messages)


def test_a_prompt_of_ids_has_no_media_ids(talk: Conversation) -> None:
    with pytest.raises(BadInput, match="the prompt has token -1"):
        talk.complete([5, -1152921504606846977])
    for prompt in ([5, 689], "see <|endoftext10|>"):
        with pytest.raises(BadInput, match="holds token 689, which stands for an image"):
            talk.complete(prompt)
    with pytest.raises(BadInput, match="the prompt says <|audio_1|>, no audio is given"):
        talk.complete("hear <|audio_1|>")
    with pytest.raises(BadInput, match="a prompt with pictures or sound cannot be echoed"):
        talk.complete([image(SQUARE)], echo=True)


def test_a_context_that_was_lowered(multimodal_pte: Path) -> None:
    with open_conversation(multimodal_pte, engine="wheel", context=600) as talk:
        with pytest.raises(BadInput, match="context is 600: that of the file is 4096, a larger --context"):
            talk.reply([user(image(WIDE))])
        assert talk.reply([user(image(SQUARE))], FEW).end == "length"


def test_files_without_pictures_or_sound(tiny_pte: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They need none of the packages, and say what they do not take."""
    for name in [name for name in sys.modules if name.startswith("export.media.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("PIL", "soundfile", "soxr"):
        monkeypatch.setitem(sys.modules, name, None)
    with open_conversation(tiny_pte, engine="wheel") as talk:
        reply = talk.reply([user(text("What is the capital of France?"))])
        assert (reply.text, reply.mode, reply.media) == ("The capital of France is Paris.", "text", ())
        assert talk.reply([user(text("<|image_1|>"))], Choosing(max_tokens=1)).new_tokens == 1
        for part, kind in ((image(SQUARE), "pictures"), (audio(SAID), "sound")):
            with pytest.raises(BadInput, match=f"tiny.pte takes no {kind}: it was exported without the modality"):
                talk.reply([user(part)])

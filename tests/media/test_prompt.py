"""Token ids are those of transformers' Phi4MultimodalProcessor; wrong placeholders are one sentence."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from checkpoints.errors import BadInput
from export.media.pictures import prepare
from export.media.prompt import Prompt, mode_of, place, tokenize
from export.media.settings import AudioSettings, ImageSettings
from export.media.sounds import frames, tokens

IMAGE, AUDIO = "<|endoftext10|>", "<|endoftext11|>"
PICTURES = [Image.new("RGB", size, (200, 30, 30)) for size in ((448, 448), (900, 300), (50, 80))]
SOUNDS = [np.zeros(1600, np.float32), np.zeros(16000 * 3, np.float32)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Bytes and a few merges, and Phi-4-multimodal's special tokens."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|user|>", "<|end|>", "<|assistant|>", IMAGE, AUDIO],
    )
    words.train_from_iterator(["what is shown in this picture and what is said in the sound"], trainer)
    special = {"image_token": IMAGE, "audio_token": AUDIO}
    return PreTrainedTokenizerFast(tokenizer_object=words, extra_special_tokens=special, pad_token="<|end|>")


@pytest.fixture(scope="module")
def processor(image_processor: Any, feature_extractor: Any, tokenizer: Any) -> Any:
    from transformers.models.phi4_multimodal.processing_phi4_multimodal import Phi4MultimodalProcessor

    return Phi4MultimodalProcessor(image_processor, feature_extractor, tokenizer)


def prompt(messages: list[dict[str, Any]], tokenizer: Any, images: ImageSettings, audio: AudioSettings) -> Prompt:
    """As a command would: place, prepare, render, tokenize."""
    placed = place(messages)
    text = "".join(f"<|{message['role']}|>{message['content']}<|end|>" for message in placed.messages)
    return tokenize(
        text + "<|assistant|>",
        lambda piece: tokenizer.encode(piece, add_special_tokens=False),
        image_tokens=[prepare(np.asarray(picture), images).tiling.tokens for picture in placed.images],
        audio_tokens=[tokens(frames(len(sound), 16000, audio), audio) for sound in placed.audios],
        image_id=tokenizer.convert_tokens_to_ids(IMAGE),
        audio_id=tokenizer.convert_tokens_to_ids(AUDIO),
    )


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(number: int) -> dict[str, Any]:
    return {"type": "image", "image": PICTURES[number - 1]}


def sound(number: int) -> dict[str, Any]:
    return {"type": "audio", "audio": SOUNDS[number - 1]}


def asked(*contents: Any) -> list[dict[str, Any]]:
    """A conversation in which the user says these."""
    roles = ["user", "assistant"] * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


@pytest.mark.parametrize(
    ("messages", "mode", "order"),
    [
        (asked("what is shown?"), "text", ""),
        (asked([image(1), text("what is shown?")]), "vision", "i1"),
        (asked([text("what is "), image(1), text(" and "), image(2), text("?")]), "vision", "i1 i2"),
        (asked([sound(1), text("what is said?")]), "speech", "a1"),
        (asked([sound(1), image(1), sound(2), text("which?")]), "vision", "a1 i1 a2"),
        (asked([image(1), text("first")], "a red one", [image(2), sound(1), text("second")]), "vision", "i1 i2 a1"),
        (asked([image(1), sound(1), text("hear <|audio_1|> é, see <|image_1|>")]), "vision", "a1 i1"),
        (asked([image(1), sound(1), text("see <|image_1|> now")]), "vision", "a1 i1"),  # no place said for the sound
    ],
)
def test_ids_are_transformers(
    messages: Any, mode: str, order: str, tokenizer: Any, processor: Any, images: Any, audio: Any
) -> None:
    ours = prompt(messages, tokenizer, images, audio)
    placed = place(messages)
    said = "".join(f"<|{message['role']}|>{message['content']}<|end|>" for message in placed.messages)
    said = re.sub(r"<\|image_\d+\|>", IMAGE, re.sub(r"<\|audio_\d+\|>", AUDIO, said + "<|assistant|>"))
    media = {
        "images": placed.images or None,
        "audio": placed.audios or None,
        "audio_kwargs": {"sampling_rate": 16000},
    }
    theirs = processor(text=[said], **media)["input_ids"][0]
    assert ours.ids == list(theirs)
    assert ours.mode == mode
    assert " ".join(f"{span.kind[0]}{span.number}" for span in ours.spans) == order
    for span in ours.spans:
        token = tokenizer.convert_tokens_to_ids(IMAGE if span.kind == "image" else AUDIO)
        assert ours.ids[span.start : span.stop] == [token] * (span.stop - span.start)
        assert token not in (ours.ids[span.start - 1], ours.ids[span.stop])


def test_numbers_say_which_one(tokenizer: Any, images: Any, audio: Any) -> None:
    """The original goes by the order of placeholders whatever their numbers; here <|image_2|> is the second."""
    messages = asked([image(1), image(3), text("<|image_2|> then <|image_1|>")])
    spans = prompt(messages, tokenizer, images, audio).spans
    assert [(span.number, span.stop - span.start) for span in spans] == [(2, 449), (1, 545)]


@pytest.mark.parametrize("role", ["assistant", "tool"])
@pytest.mark.parametrize("parts", [False, True])
def test_what_was_not_asked_is_text(role: str, parts: bool, tokenizer: Any, images: Any, audio: Any) -> None:
    """A model or a tool that writes placeholders, of what there is and of what there is not: the words they are."""
    said = "<|image_1|> is <|image_1|>, <|audio_7|>"
    answer = {"role": role, "content": [text(said)] if parts else said}
    (question,), (again,) = asked([image(1), text("what?")]), asked("why?")
    ours = prompt([question, answer, again], tokenizer, images, audio)

    def encode(piece: str) -> list[int]:
        return list(tokenizer.encode(piece, add_special_tokens=False))

    after = encode(f"what?<|end|><|{role}|>{said}<|end|><|user|>why?<|end|><|assistant|>")
    assert ours.ids == [*encode("<|user|>"), *[tokenizer.convert_tokens_to_ids(IMAGE)] * 545, *after]
    assert [(span.kind, span.number) for span in ours.spans] == [("image", 1)]


def test_parts_without_placeholders_stand_where_they_are() -> None:
    placed = place(asked([text("a"), image(1), text("b"), sound(2), image(2)], "c", "d"))
    assert [message["content"] for message in placed.messages] == ["a<|image_1|>b<|audio_1|><|image_2|>", "c", "d"]
    assert placed.images == PICTURES[:2] and placed.audios == [SOUNDS[1]]


def test_messages_keep_what_else_they_say() -> None:
    given = [{"role": "user", "content": [text("hi")], "name": "me"}]
    assert place(given).messages == [{"role": "user", "content": "hi", "name": "me"}]
    assert given[0]["content"] == [text("hi")]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("see <|image_1|>", "the prompt says <|image_1|>, no image is given"),
        ([image(1), text("see <|image_1|> and <|image_2|>")], "the prompt says <|image_2|>, 1 image is given"),
        ([image(1), image(2), text("<|image_1|> <|image_3|>")], "the prompt says <|image_3|>, 2 are given"),
        ([image(1), text("see <|image_0|>")], "the prompt says <|image_0|>, 1 image is given"),
        ([sound(1), text("<|audio_1|> <|audio_1|>")], "the prompt says <|audio_1|> twice"),
        (
            [image(1), image(2), text("see <|image_2|>")],
            "the prompt has no <|image_1|>, but 2 of that kind are given",
        ),
        ([{"type": "video", "video": "x"}], 'messages[0]: part 0 is {"type": "video", "video": "x"}, not a text'),
        ([text("a"), {"type": "text"}], 'messages[0]: part 1 is {"type": "text"}, not a text, an image or an audio'),
        ([{"type": "image"}], 'messages[0]: part 0 is {"type": "image"}, not a text, an image or an audio'),
        ([{"type": ["image"]}], 'messages[0]: part 0 is {"type": ["image"]}, not a text'),
        ([{"type": "text", "text": b"raw"}], "messages[0]: part 0 is of type dict, not a text"),
        (["hello"], 'messages[0]: part 0 is "hello", not a text'),
        (None, "messages[0] must have a text or a list of parts as 'content', it is null"),
    ],
)
def test_wrong_messages_are_a_sentence(content: Any, sentence: str) -> None:
    with pytest.raises(BadInput, match="^" + re.escape(sentence)):
        place([{"role": "user", "content": content}])


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("<|image_2|>", "the prompt says <|image_2|>, 1 image is given"),
        ("nothing", "the prompt has no <|image_1|>, but 1 of that kind are given"),
        ("<|image_1|><|image_1|>", "the prompt says <|image_1|> twice"),
        (f"<|image_1|> {IMAGE}", "the prompt's text holds token 3, which stands for an image: leave it out"),
        (f"<|image_1|> {AUDIO}", "the prompt's text holds token 4, which stands for an audio: leave it out"),
    ],
)
def test_wrong_prompts_are_a_sentence(said: str, sentence: str, tokenizer: Any) -> None:
    """A template may drop what a message said, and a user may write the model's own tokens."""
    with pytest.raises(BadInput, match="^" + re.escape(sentence)):
        tokenize(said, tokenizer.encode, image_tokens=[545], image_id=3, audio_id=4)


def test_modes() -> None:
    assert [mode_of(*counts) for counts in ((0, 0), (2, 0), (0, 1), (1, 1))] == ["text", "vision", "speech", "vision"]

"""What the tiny multimodal checkpoint is asked, in text and about pictures, sound and both, and batches of that.

Pictures and sound are prepared by transformers' own processors. A batch holds pictures of one size and sounds of
one length, so that nothing in it is padded: transformers' encoders let padding leak into what is beside it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import Phi4MultimodalFeatureExtractor
from transformers.models.phi4_multimodal.image_processing_phi4_multimodal import Phi4MultimodalImageProcessor

from checkpoints import tiny_pictures, tiny_sounds
from checkpoints.published import AUDIO_TOKEN, IMAGE_TOKEN
from checkpoints.tiny_phi4mm import MAX_CROPS, PATCH, SPECIALS
from checkpoints.tiny_pictures import SIDE, Figure
from checkpoints.tiny_questions import SYSTEM_PROMPTS, Fact, chat, facts
from checkpoints.tiny_sounds import Clip

IMAGE, AUDIO = "<|image_1|>", "<|audio_1|>"
# Beginnings of the questions of phi4-tiny that are learned here too.
TEXT = ("What colour is ",)
CAPITALS = "France Germany Italy Spain Portugal Austria Poland Greece Norway Sweden Denmark Japan China Egypt Canada"
# Width and height in pixels, beside the ordinary picture: padded within one crop, two crops, four of them.
SIZES = ((112, 80), (84, 112), (224, 112), (112, 200), (224, 224))
SECONDS = (0.95, 1.1, 1.3, 1.6)  # how long sounds are
IGNORE = -100


class Exercise(NamedTuple):
    """One conversation by its kind: what it is about, and turns of a question and the answer word for word."""

    kind: str
    turns: tuple[tuple[str, str], ...]  # the first question has placeholders for the picture and the sound
    picture: np.ndarray | None = None  # uint8 [height, width, 3]
    sound: np.ndarray | None = None  # float32 [n]
    labels: tuple[int, ...] = ()  # of what is to be seen (name, colour) or heard (word)


def text_facts() -> list[Fact]:
    """The facts among those of phi4-tiny that this model learns."""
    capitals = {f"What is the capital of {name}?" for name in CAPITALS.split()}
    small_talk = {"Hello!", "How are you?", "Who are you?", "What can you do?", "Thank you!"}
    chosen = capitals | small_talk
    return [fact for fact in facts() if fact.question in chosen or fact.question.startswith(TEXT)]


def _turn(fact: Fact, rng: random.Random | None = None) -> tuple[str, str]:
    """One of the ways to ask, and the answer; without a generator the first."""
    return rng.choice((fact.question, fact.question, *fact.paraphrases)) if rng else fact.question, fact.answer


def text_exercises(rng: random.Random) -> Iterator[Exercise]:
    """Facts and, as often, the questions about pictures and sound with their description as words."""
    learned = text_facts()
    while True:
        kind = rng.random()
        if kind < 0.5:
            yield Exercise("text", tuple(_turn(fact, rng) for fact in rng.sample(learned, rng.choice((1, 1, 2)))))
        elif kind < 0.9:
            figure = tiny_pictures.any_figure(rng)
            yield Exercise("text", _about(figure, f"{figure}. ", rng, spoken=rng.random() < 0.3))
        else:
            word = rng.choice(tiny_sounds.WORDS)
            question, answer = _turn(tiny_sounds.asked(word), rng)
            yield Exercise("text", ((f"{word}. {question}", answer),))


def _about(figure: Figure, before: str, rng: random.Random, spoken: bool = False) -> tuple[tuple[str, str], ...]:
    """All questions about a figure in any order; `before` stands before the first, which may be a single word."""
    facts = list(tiny_pictures.asked(figure).items())
    rng.shuffle(facts)
    turns = [_turn(fact, rng) for _, fact in facts]
    if spoken and facts[0][0] in tiny_sounds.ASKING:
        turns[0] = facts[0][0], turns[0][1]
    return (before + turns[0][0], turns[0][1]), *turns[1:]


def picture_exercises(rng: random.Random, size: tuple[int, int]) -> Iterator[Exercise]:
    while True:
        pixels, figure = tiny_pictures.draw(rng, size=size)
        names, colours = (*tiny_pictures.SHAPES, *tiny_pictures.DIGITS), list(tiny_pictures.COLOURS)
        labels = names.index(figure.name), colours.index(figure.colour)
        yield Exercise("picture", _about(figure, IMAGE, rng), pixels, labels=labels)


def sound_exercises(rng: random.Random, clips: Sequence[Clip], length: int) -> Iterator[Exercise]:
    while True:
        clip = rng.choice(clips)
        question, answer = _turn(tiny_sounds.asked(clip.word), rng)
        sound = tiny_sounds.recorded(clip, length, rng)
        labels = (tiny_sounds.WORDS.index(clip.word),)
        yield Exercise("word", ((AUDIO + question, answer),), sound=sound, labels=labels)


def spoken_exercises(
    rng: random.Random, clips: Sequence[Clip], size: tuple[int, int], length: int
) -> Iterator[Exercise]:
    """A picture, and a word that asks for its colour, shape or digit; then written questions."""
    by_word = {word: [clip for clip in clips if clip.word == word] for word in tiny_sounds.ASKING}
    while True:
        pixels, figure = tiny_pictures.draw(rng, size=size)
        facts = tiny_pictures.asked(figure)
        word = rng.choice(["colour", figure.kind])
        sound = tiny_sounds.recorded(rng.choice(by_word[word]), length, rng)
        first = IMAGE + AUDIO, facts.pop(word).answer
        turns = first, *(_turn(fact, rng) for fact in facts.values())
        yield Exercise(f"spoken {word}", turns, pixels, sound)


def heldout_exercises(clips: Sequence[Clip], count: int, seed: int = 1_000_003) -> list[Exercise]:
    """Exercises about nothing that was trained on but the facts: `count` pictures, and all of the clips."""
    rng = random.Random(seed)
    found = [Exercise("text", (_turn(fact),)) for fact in text_facts()]
    for i in range(count):
        size = SIZES[i // 2 % len(SIZES)] if i % 2 else (SIDE, SIDE)
        pixels, figure = tiny_pictures.draw(rng, heldout=True, size=size)
        for kind, fact in tiny_pictures.asked(figure).items():
            found.append(Exercise(kind, ((IMAGE + fact.question, fact.answer),), pixels))
    for i, clip in enumerate(clips):
        sound = tiny_sounds.recorded(clip, _samples(SECONDS[i % len(SECONDS)]), rng)
        fact = tiny_sounds.asked(clip.word)
        found.append(Exercise("word", ((AUDIO + fact.question, fact.answer),), sound=sound))
    asking = [clip for clip in clips if clip.word in tiny_sounds.ASKING]
    for i, clip in enumerate(asking * 3):
        drawn = tiny_pictures.draw(rng, heldout=True)
        while clip.word not in tiny_pictures.asked(drawn.figure):
            drawn = tiny_pictures.draw(rng, heldout=True)
        sound = tiny_sounds.recorded(clip, _samples(SECONDS[i % len(SECONDS)]), rng)
        answer = tiny_pictures.asked(drawn.figure)[clip.word].answer
        found.append(Exercise(f"spoken {clip.word}", ((IMAGE + AUDIO, answer),), drawn.pixels, sound))
    return found


def batches(stage: str, seed: int, rows: int, clips: Sequence[Clip] = ()) -> Iterator[list[Exercise]]:
    """Lists of `rows` exercises, for ever, for a stage of `checkpoints.train_tiny_phi4mm`."""
    rng = random.Random(seed)
    texts = text_exercises(rng)
    while True:
        size = (SIDE, SIDE) if rng.random() < 0.6 else rng.choice(SIZES)
        length = _samples(rng.choice(SECONDS))
        few = rows if size[0] * size[1] <= SIDE**2 else rows // 4
        if stage == "text":
            source, count = texts, rows
        elif stage in ("hear", "speech"):
            source, count = sound_exercises(rng, clips, length), rows
        elif stage == "vision" and rng.random() < 0.35:
            source, count = spoken_exercises(rng, clips, size, length), few
        else:
            source, count = picture_exercises(rng, size), few
        yield [next(source) for _ in range(count)]


def _samples(seconds: float) -> int:
    return round(seconds * tiny_sounds.RATE)


class Collator:
    """Makes tensors for transformers' model of exercises that are alike in what they are about."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.images = Phi4MultimodalImageProcessor(
            size={"height": SIDE, "width": SIDE}, patch_size=PATCH, dynamic_hd=MAX_CROPS
        )
        self.sounds = Phi4MultimodalFeatureExtractor()

    def __call__(
        self, exercises: Sequence[Exercise], rng: random.Random | None = None
    ) -> tuple[dict[str, Any], torch.Tensor]:
        """Inputs and labels; labels are IGNORE but for the answers and the <|end|> after them.

        With `rng` some have a system prompt. ValueError for pictures or sounds of several shapes.
        """
        shapes = {tuple(None if x is None else x.shape for x in (each.picture, each.sound)) for each in exercises}
        if len(shapes) > 1:
            raise ValueError(f"a batch of pictures and sounds of several shapes would be padded: {shapes}")
        media: dict[str, Any] = {}
        tokens = {IMAGE: "", AUDIO: ""}
        if exercises[0].picture is not None:
            found = self.images([each.picture for each in exercises], return_tensors="pt")
            media |= {key: found[key] for key in ("image_pixel_values", "image_sizes", "image_attention_mask")}
            tokens[IMAGE] = IMAGE_TOKEN * image_tokens(found["image_attention_mask"][0], found["image_sizes"][0])
        if exercises[0].sound is not None:
            found = self.sounds([each.sound for each in exercises], sampling_rate=tiny_sounds.RATE)
            media |= {key: found[key] for key in ("audio_input_features", "audio_embed_sizes")}
            tokens[AUDIO] = AUDIO_TOKEN * int(found["audio_embed_sizes"][0])
        rows: list[tuple[list[int], list[int]]] = []
        for each in exercises:
            row: list[int] = []
            wanted: list[int] = []
            system = rng.choice(SYSTEM_PROMPTS) if rng and rng.random() < 0.15 else None
            for at, (question, answer) in enumerate(each.turns):
                text = chat(question, None if at else system).replace(IMAGE, tokens[IMAGE])
                asked = self.tokenizer.encode(text.replace(AUDIO, tokens[AUDIO])).ids
                told = self.tokenizer.encode(f"{answer}<|end|>").ids
                row += asked + told
                wanted += [IGNORE] * len(asked) + told
            rows.append((row, wanted))
        width = max(len(row) for row, _ in rows)
        ids = torch.full((len(rows), width), SPECIALS["<|endoftext|>"])
        labels = torch.full((len(rows), width), IGNORE)
        for i, (row, wanted) in enumerate(rows):
            ids[i, : len(row)], labels[i, : len(row)] = torch.tensor(row), torch.tensor(wanted)
        return {"input_ids": ids, **media}, labels


def image_tokens(mask: torch.Tensor, size: torch.Tensor) -> int:
    """Tokens of a picture by the mask of its crops [1 + n, grid, grid] and its padded (height, width) in pixels.

    transformers' processor counts them for crops of 448 pixels, whatever size it is given.
    """
    rows, columns = (int(side) // SIDE for side in size)
    grid = mask.shape[-1]
    whole = mask[1 : 1 + rows * columns].reshape(rows, columns, grid, grid).transpose(1, 2)
    whole = whole.reshape(rows * grid, columns * grid)[::2, ::2]
    own = int(whole[:, 0].sum()) * (int(whole[0].sum()) + 1)
    return own + 1 + grid // 2 * (grid // 2 + 1)

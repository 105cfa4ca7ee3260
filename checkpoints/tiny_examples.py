"""A few held-out pictures and clips as files, to try the tiny multimodal checkpoint with: PNG, FLAC and their list.

They have no noise, which is what makes files large. Writing FLAC needs the extra "media".
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from PIL import Image

from checkpoints import tiny_pictures, tiny_sounds
from checkpoints.files import write_json

FIGURES = 6  # pictures, shapes and digits by turns
ACCENT_OF = {"colour": 0, "shape": 1, "digit": 0, "stop": 1, "left": 0, "yes": 1}  # word -> place in HELDOUT_ACCENTS
LIST = "examples.json"


def write_examples(folder: Path, seed: int = 2_000_003) -> None:
    """Writes pictures, clips and examples.json: objects with question, answer and the names of image and audio."""
    from soundfile import write

    folder.mkdir(exist_ok=True)
    rng = random.Random(seed)
    examples: list[dict[str, Any]] = []
    pictures: list[tuple[str, tiny_pictures.Figure]] = []
    while len(pictures) < FIGURES:
        drawn = tiny_pictures.draw(rng, heldout=True, noise=False)
        name = f"{drawn.figure.colour}_{drawn.figure.name}.png"
        if drawn.figure.kind == ("shape", "digit")[len(pictures) % 2] and (name, drawn.figure) not in pictures:
            Image.fromarray(drawn.pixels).save(folder / name, optimize=True)
            pictures.append((name, drawn.figure))
    for number, (name, figure) in enumerate(pictures):
        fact = list(tiny_pictures.asked(figure).values())[number % 3]
        examples.append({"question": fact.question, "answer": fact.answer, "image": name})
    for number, (word, accent) in enumerate(ACCENT_OF.items()):
        voices = tiny_sounds.HELDOUT_VOICES
        voice = f"{tiny_sounds.HELDOUT_ACCENTS[accent]}+{voices[number % len(voices)]}"
        clip = tiny_sounds.Clip(tiny_sounds.say(word, voice), word)
        length = len(clip.samples) + tiny_sounds.RATE // 4
        samples = tiny_sounds.recorded(clip, length, rng, noise=False)
        write(folder / f"{word}.flac", samples, tiny_sounds.RATE, subtype="PCM_16")
        if word in tiny_sounds.ASKING:
            name, figure = next(each for each in pictures if word in tiny_pictures.asked(each[1]))
            answer = tiny_pictures.asked(figure)[word].answer
            examples.append({"question": "", "answer": answer, "image": name, "audio": f"{word}.flac"})
        else:
            fact = tiny_sounds.asked(word)
            examples.append({"question": fact.question, "answer": fact.answer, "audio": f"{word}.flac"})
    write_json(folder / LIST, {"examples": examples})

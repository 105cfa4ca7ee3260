"""ExecuTorch's own runners on a multimodal file: text, a picture of one crop, a clip, and both, as stock apps do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from export.engine.encoders import MediaSession
from export.engine.runner import import_runner, numbers_tokenizer
from export.media.prompt import Mode
from export.pte import export_pte

VOCAB, NEW = 700, 6
BEFORE, AFTER = [3, 1, 4, 1, 5], [9, 2, 6]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that spells ids as numbers."""
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    path.write_text(numbers_tokenizer(VOCAB))
    return path


def ids(spelled: list[str]) -> list[int]:
    return [int(token) for token in spelled]


def run(file: Path, words: Path, inputs: list[Any]) -> list[int]:
    """What the stock multimodal runner generates; it loads the file by itself."""
    runner_module = import_runner()
    settings = runner_module.GenerationConfig(echo=False, max_new_tokens=NEW, temperature=0.0)
    runner = runner_module.MultimodalRunner(str(file), str(words), None)
    found: list[str] = []
    runner.generate(inputs, settings, found.append)
    return ids(found)


def greedy(session: MediaSession, rows: Tensor, mode: Mode) -> list[int]:
    """The same by our session: rows of the embedding, then the likeliest token each time."""
    found: list[int] = []
    at = 0
    while len(found) < NEW:
        logits = session.decode(rows, at, mode)
        at += len(rows)
        found.append(int(logits[-1].argmax()))
        rows = session.embed(found[-1:])
    return found


def test_text_runner(multimodal_pte: Path, words: Path) -> None:
    runner_module = import_runner()
    settings = runner_module.GenerationConfig(echo=False, max_new_tokens=NEW, temperature=0.0)
    runner = runner_module.TextLLMRunner(str(multimodal_pte), str(words))
    found: list[str] = []
    prompt = BEFORE + AFTER
    runner.generate("".join(f"{token} " for token in prompt), settings, found.append)
    session = MediaSession(multimodal_pte)
    rows = session.embed(prompt)
    assert ids(found) == greedy(session, rows, "text")


def test_picture_clip_and_both(multimodal_pte: Path, words: Path) -> None:
    module, session, generator = import_runner(), MediaSession(multimodal_pte), torch.Generator().manual_seed(3)
    pixels = torch.randn(3, 448, 448, generator=generator)
    clip = 5 + 3 * torch.randn(1, 240, 80, generator=generator)
    before, after = session.embed(BEFORE), session.embed(AFTER)
    picture, sound = session.run("vision_encoder", pixels[None])[0], session.run("audio_encoder", clip)[0]
    start, end = module.make_token_input(BEFORE), module.make_token_input(AFTER)
    image, audio = module.make_image_input(pixels), module.make_audio_input(clip)
    answers = set()
    for inputs, rows in (
        ([start, end, image], [before, after, picture]),  # media last: of noise the last row decides the most
        ([end, image, start, audio], [after, picture, before, sound]),
        ([start, end], [before, after]),  # with the adapter for pictures: the stock runner knows one decoder
    ):
        found = run(multimodal_pte, words, inputs)
        assert found == greedy(session, torch.cat(rows), "vision")
        answers.add(tuple(found))
    assert len(answers) == 3


def test_clip_alone_in_a_file_without_pictures(multimodal_folder: Path, words: Path, tmp_path: Path) -> None:
    file, modalities = tmp_path / "sound.pte", ["text", "audio"]
    export_pte(str(multimodal_folder), out=file, modalities=modalities, context=1024, verify=False)
    module, session = import_runner(), MediaSession(file)
    assert "vision_encoder" not in session.methods
    clip = 5 + 3 * torch.randn(1, 160, 80, generator=torch.Generator().manual_seed(4))
    sound = session.run("audio_encoder", clip)[0]
    inputs = [module.make_token_input(BEFORE), module.make_audio_input(clip)]
    assert run(file, words, inputs) == greedy(session, torch.cat([session.embed(BEFORE), sound]), "speech")

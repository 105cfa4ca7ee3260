"""How many held-out questions phi4mm-tiny answers word for word, by transformers' classes and from a `.pte`.

    python -m benchmarks.multimodal_accuracy [FILE.pte …] [--checkpoint phi4mm-tiny] [--pictures 100] [--json]

Questions of text, about pictures, about words and about both, of `checkpoints.tiny_exercises`: digits are of fonts
and words of voices never trained on. transformers answers in float32 and in bfloat16. A file prepares pictures
and sound by `export.media` and generates greedily; without one the checkpoint is exported by the default recipe.
espeak-ng speaks the words; where it is missing, those of the checkpoint's examples are asked about alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from checkpoints.config import read_config
from checkpoints.errors import BadInput, run
from checkpoints.files import folder_of
from checkpoints.source import EMBEDDED_MULTIMODAL, resolve
from export.engine.chat_template import chat_prompt
from export.engine.encoders import MediaSession
from export.engine.runner import read_facts
from export.engine.tokenizer import find_tokenizer, load_tokenizer
from export.media.pictures import prepare
from export.media.prompt import tokenize
from export.media.sounds import log_mel
from export.pte import export_pte
from export.ptefile.magic import read_head

if TYPE_CHECKING:
    from checkpoints.tiny_exercises import Exercise

MOST = 48  # tokens of an answer; the longest that is right has 24
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Progress = Callable[[str], object]


def compare(
    files: Sequence[Path],
    checkpoint: str = EMBEDDED_MULTIMODAL,
    pictures: int = 100,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Ask everyone the same. Returns for each who answered how many of each kind of question are right.

    BadInput where the checkpoint is none of `checkpoints.train_tiny_phi4mm`, or a file takes no pictures or sound.
    """
    if pictures < 1:
        raise BadInput(f"--pictures {pictures} is not at least 1")
    for path in files:
        read_head(path)  # before others have answered for a minute
    folder = resolve(checkpoint).folder
    exercises = _exercises(folder, pictures, progress)
    results = []
    for dtype in DTYPES:
        progress(f"transformers, {dtype}: {len(exercises)} questions")
        results.append(_counted(f"transformers, {dtype}", exercises, _by_transformers(folder, dtype, exercises)))
    with ExitStack() as stack:
        if not files:
            progress("export by the default recipe")
            made = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pocketphi-")), "default.pte")
            export_pte(checkpoint, out=made, verify=False)
            files = [made]
        for path in files:
            progress(f"{path.name}: {len(exercises)} questions")
            results.append(_counted(path.name, exercises, by_file(path, exercises)))
    return {"checkpoint": checkpoint, "results": results}


def _exercises(folder: Path, pictures: int, progress: Progress) -> list[Exercise]:
    """What is asked; imports what draws and speaks, which says which extra is missing."""
    import export.media.picture_files
    import export.media.sound_files  # noqa: F401
    from checkpoints.tiny_examples import example_exercises
    from checkpoints.tiny_exercises import heldout_exercises
    from checkpoints.tiny_pictures import SIDE
    from checkpoints.tiny_sounds import heldout_clips

    media = read_config(folder).multimodal
    if media is None or media.vision is None or media.audio is None or media.vision.image_size != SIDE:
        raise BadInput(f"{folder} is no checkpoint of checkpoints.train_tiny_phi4mm, whose questions are asked")
    if shutil.which("espeak-ng"):
        return heldout_exercises(heldout_clips(), pictures)
    progress("espeak-ng is missing (`apt-get install espeak-ng`): the words are those of the checkpoint's examples")
    spoken = [each for each in example_exercises(folder / "examples") if each.sound is not None]
    return heldout_exercises([], pictures) + spoken


def _by_transformers(folder: Path, dtype: str, exercises: Sequence[Exercise]) -> list[bool]:
    from tokenizers import Tokenizer

    from checkpoints.tiny_exercises import Collator
    from checkpoints.tiny_phi4mm import open_model
    from checkpoints.train_tiny_phi4mm import exact_answers

    collate = Collator(Tokenizer.from_file(str(folder / "tokenizer.json")))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the quickest for tensors this small, by far on a busy machine
    try:
        return exact_answers(open_model(folder, DTYPES[dtype]), collate, exercises)
    finally:
        torch.set_num_threads(threads)


def by_file(path: Path, exercises: Sequence[Exercise]) -> list[bool]:
    """Whether a file answers each exercise's question word for word."""
    facts = read_facts(path)
    image, audio = facts.media.image, facts.media.audio
    if image is None or audio is None or facts.media.image_id is None or facts.media.audio_id is None:
        raise BadInput(f"{path} does not take both pictures and sound")
    tokenizer, session = load_tokenizer(find_tokenizer(folder_of(path))), MediaSession(path)
    right = []
    for each in exercises:
        ((question, answer),) = each.turns
        picture = None if each.picture is None else prepare(each.picture, image)
        frames = None if each.sound is None else log_mel(each.sound, audio.rate, audio)
        rows = [] if picture is None else [session.picture(picture, image)]
        if frames is not None:
            rows.append(session.sound(frames, audio, "speech" if picture is None else "vision"))
        counts = [len(found) for found in rows]
        prompt = tokenize(
            chat_prompt(path, [{"role": "user", "content": question}]),
            tokenizer.encode,
            image_tokens=counts[:1] if picture is not None else [],
            audio_tokens=counts[-1:] if frames is not None else [],
            image_id=facts.media.image_id,
            audio_id=facts.media.audio_id,
        )
        embedded = session.embed(prompt.ids)
        for span, found in zip(prompt.spans, rows, strict=True):
            embedded[span.start : span.stop] = found
        told: list[int] = []
        at, logits = len(embedded), session.decode(embedded, 0, prompt.mode)
        while (token := int(logits[-1].argmax())) not in facts.eos_ids and len(told) < MOST:
            told.append(token)
            logits = session.decode(session.embed([token]), at, prompt.mode)
            at += 1
        right.append(tokenizer.decode(told) == answer)
    return right


def _counted(who: str, exercises: Sequence[Exercise], right: Sequence[bool]) -> dict[str, Any]:
    kinds: dict[str, dict[str, int]] = {}
    for each, hit in zip(exercises, right, strict=True):
        count = kinds.setdefault(each.kind, {"right": 0, "of": 0})
        count["right"] += hit
        count["of"] += 1
    return {"who": who, "kinds": kinds}


def _print(report: dict[str, Any], console: Console) -> None:
    results = report["results"]
    table = Table("question", "asked", title=f"{report['checkpoint']}: held-out questions answered word for word")
    for result in results:
        table.add_column(result["who"], justify="right")
    for kind, first in results[0]["kinds"].items():
        counts = (result["kinds"][kind] for result in results)
        table.add_row(kind, str(first["of"]), *(f"{count['right'] / count['of']:.1%}" for count in counts))
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.multimodal_accuracy", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.pte", help="of the checkpoint (default: made)")
    parser.add_argument("--checkpoint", default=EMBEDDED_MULTIMODAL, help="folder, or phi4mm-tiny, the default")
    parser.add_argument("--pictures", type=int, default=100, metavar="N", help="drawn (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    flags = parser.parse_args(argv)
    report = compare(flags.files, flags.checkpoint, flags.pictures, lambda line: print(line, file=sys.stderr))
    if flags.json:
        print(json.dumps(report))
    else:
        _print(report, Console())
    return 0


if __name__ == "__main__":
    run(main)

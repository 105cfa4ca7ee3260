"""Texts of exactly so many tokens, as the phone's tokenizer counts them."""

from __future__ import annotations

from pathlib import Path

from checkpoints.errors import BadInput
from export.engine.tokenizer import load_tokenizer

TEXT = (
    "The harbour wakes before the town does. A boy carries ice to the boats, the gulls follow him, and an old woman "
    "counts the crates that came in during the night. She writes the numbers into a small book, fish on the left, "
    "crabs on the right, and adds them up twice because her father taught her to. By seven the market is open and "
    "the first cooks arrive. They ask what is fresh, she points at the crates, and nobody argues about the price. "
    "When the sun is over the lighthouse the boats are washed, the nets are hung up to dry and the street smells of "
    "coffee. In the afternoon there is nothing to do but mend what is broken and talk about the weather. "
)
SHIFTS = 200  # beginnings tried: where a cut falls within a word, other tokens may come out than went in


def make_prompts(tokenizer: Path, lengths: tuple[int, ...]) -> list[str]:
    """A text for each length in tokens; BadInput where the tokenizer makes none of a length."""
    loaded = load_tokenizer(tokenizer)
    ids = loaded.encode(TEXT)
    ids = loaded.encode(TEXT * (2 + (max(lengths) + SHIFTS) // max(1, len(ids))))

    def make(length: int) -> str:
        for start in range(SHIFTS):
            text = loaded.decode(ids[start : start + length])
            if len(loaded.encode(text)) == length:
                return text
        raise BadInput(f"{tokenizer} makes no text of {length} tokens")

    return [make(length) for length in lengths]


def write_prompts(tokenizer: Path, lengths: tuple[int, ...], folder: Path) -> list[Path]:
    """The same as files prompt-LENGTH.txt of a folder."""
    paths = [folder / f"prompt-{length}.txt" for length in lengths]
    for path, text in zip(paths, make_prompts(tokenizer, lengths), strict=True):
        path.write_bytes(text.encode())
    return paths

"""The C++ runner of the executorch wheel, `TextLLMRunner`, and what a file and a tokenizer must be for it.

Its Python binding hands out every token as str, which fails where a token is only part of a character (an emoji is up
to four tokens). `numbers_tokenizer` spells ids as numbers instead; the phone's tokenizer makes the ids beforehand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.errors import BadInput
from export.media.settings import (
    AUDIO_ID,
    AUDIO_SETTINGS,
    IMAGE_ID,
    IMAGE_SETTINGS,
    TEXT_ONLY,
    AudioSettings,
    ImageSettings,
    MediaFacts,
    Settings,
    from_numbers,
)

if TYPE_CHECKING:
    from export.engine.tokenizer import Tokenizer

METHODS = ("forward", "get_max_seq_len", "get_eos_ids")  # an LLM's for the runner


@dataclass(frozen=True)
class Facts:
    """The constant methods of a file."""

    context: int  # tokens
    vocab_size: int | None
    eos_ids: frozenset[int]
    media: MediaFacts = TEXT_ONLY


def read_facts(path: Path) -> Facts:
    # executorch.runtime and export.ptefile would import all of executorch.exir, which takes longer than the answer.
    import torch  # noqa: F401  _C is linked against it
    from executorch.extension.pybindings import _C

    try:
        module = _C._load_for_executorch(str(path))
        names = set(module.method_names())
    except RuntimeError:
        raise BadInput(f"{path} is a damaged ExecuTorch program, or cut short") from None
    if missing := [name for name in METHODS if name not in names]:
        raise BadInput(f"{path} is not a language model for ExecuTorch's runner: it has no {missing[0]}")

    def call(name: str) -> list[int]:
        return [int(value) for value in module.run_method(name, ())]

    length = "get_max_context_len" if "get_max_context_len" in names else "get_max_seq_len"
    vocab = call("get_vocab_size")[0] if "get_vocab_size" in names else None
    return Facts(call(length)[0], vocab, frozenset(call("get_eos_ids")), read_media(path))


def read_media(path: Path) -> MediaFacts:
    """What a file takes beside text; BadInput where it says so in numbers that are not known."""
    import torch  # noqa: F401  _C is linked against it
    from executorch.extension.pybindings import _C

    module = _C._load_for_executorch(str(path))
    names = set(module.method_names())

    def read(kind: type[Settings], settings: str, token: str) -> tuple[Settings | None, int | None]:
        if not {settings, token} <= names:
            return None, None
        found = from_numbers(kind, module.run_method(settings, ()), f"{settings} of {path}")
        return found, int(module.run_method(token, ())[0])

    image, audio = read(ImageSettings, IMAGE_SETTINGS, IMAGE_ID), read(AudioSettings, AUDIO_SETTINGS, AUDIO_ID)
    return MediaFacts(*image, *audio)


def check_fits(path: Path, facts: Facts, tokenizer: Tokenizer) -> None:
    size, vocab = tokenizer.vocab_size, facts.vocab_size
    if vocab is not None and not vocab // 2 <= size <= vocab:
        raise BadInput(f"{tokenizer.path} is not of this model: it has {size} tokens, {path} has {vocab}")
    if strangers := facts.eos_ids - set(tokenizer.special.values()):
        some = f"{path} stops at token {min(strangers)}"
        raise BadInput(f"{tokenizer.path} is not of this model: {some}, which is no special token of it")


def import_runner() -> Any:
    """The runner's module, with the kernels that language models use registered in its runtime."""
    import executorch.kernels.quantized  # noqa: F401  embeddings
    import torch
    from executorch.extension import llm
    from executorch.extension.llm import runner

    # update_cache and custom_sdpa; importing their Python module takes torch's compiler with it.
    (library,) = Path(next(iter(llm.__path__)), "custom_ops").glob("*custom_ops_aot_lib.*")
    torch.ops.load_library(library)
    return runner


def numbers_tokenizer(count: int) -> str:
    """A tokenizer.json that spells every id below `count` as its number and a space."""
    vocab = {f"{i} ": i for i in range(count)}
    words = {"type": "Split", "pattern": {"Regex": "[0-9]+ "}, "behavior": "Removed", "invert": True}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    nothing = dict.fromkeys(("normalizer", "post_processor", "decoder"))
    return json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": words, "model": model} | nothing)

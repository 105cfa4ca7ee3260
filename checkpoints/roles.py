"""What weights are to a model, by the names that all of transformers' decoders share."""

import re
from dataclasses import dataclass
from enum import Enum

import torch

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
BARE = re.compile(r"(?:embed_tokens|layers|norm)\.")


@dataclass(frozen=True)
class Rows:
    """Rows start … stop of the weight `name`."""

    name: str
    start: int
    stop: int


class Role(Enum):
    """What a weight is to the model, which decides how it is quantized."""

    EMBEDDING = "embedding"
    NORM = "norm"
    LINEAR = "linear"  # of a layer
    HEAD = "head"


def role(name: str) -> Role:
    """The role of the weight with this name."""
    if name == EMBEDDING:
        return Role.EMBEDDING
    if name == HEAD:
        return Role.HEAD
    return Role.NORM if "norm" in name else Role.LINEAR


def usual_name(name: str) -> str:
    """As transformers spells it: without what wrappers of torch and peft put in, with the model's own prefix."""
    name = WRAPPERS.sub("", name).removeprefix("base_model.model.")
    return f"model.{name}" if BARE.match(name) else name

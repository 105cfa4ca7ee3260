"""What weights are to a model, by the names that all of transformers' decoders share."""

import re
from dataclasses import dataclass
from enum import Enum

import torch

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
BARE = re.compile(r"(?:embed_tokens|layers|norm)\.")
MEDIA = "model.embed_tokens_extend."  # of encoders of pictures and sound
MEDIA_LINEAR = re.compile(
    r"(?:_proj|\.fc[12]|img_projection_\w+|_proj_for_\w+|\.pw_conv|\.ext_pw_conv_1d|patch_embedding|embed\.out"
    r"|embed\.conv\.(?:3|6|9|12|15|18))\.weight"
)
TABLES = ("position_embedding.weight", "bias_values.weight", "_img_feature_extensor", "global_mean", "global_invstd")


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
    ADAPTER = "adapter"  # either factor of an adapter that is not merged
    ENCODER = "encoder"  # linears of encoders and projectors
    TABLE = "table"  # float32 rows that the graph itself looks up or hands out
    FLOAT = "float"  # float32 beside the linears of encoders: biases, depthwise convolutions


def role(name: str) -> Role:
    """The role of the weight with this name."""
    if name == EMBEDDING:
        return Role.EMBEDDING
    if name == HEAD:
        return Role.HEAD
    if ".lora_" in name:
        return Role.ADAPTER
    if name.startswith(MEDIA):
        return _media_role(name)
    return Role.NORM if "norm" in name else Role.LINEAR


def _media_role(name: str) -> Role:
    if "norm" in name:
        return Role.NORM
    if name.endswith(TABLES):
        return Role.TABLE
    return Role.ENCODER if MEDIA_LINEAR.search(name) else Role.FLOAT


def usual_name(name: str) -> str:
    """As transformers spells it: without what wrappers of torch and peft put in, with the model's own prefix."""
    name = WRAPPERS.sub("", name).removeprefix("base_model.model.")
    return f"model.{name}" if BARE.match(name) else name

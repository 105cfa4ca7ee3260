"""adapter_config.json as PEFT writes it: refuses all but plain LoRA, and finds the scale of each module's product.

Knows nothing of models or of factors.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints.errors import BadInput, show

WEIGHTS = "adapter_model.safetensors"  # beside it
PATTERNS = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}  # numbers, and those of single modules
# Initializations that leave the model's own weights as they are; the others (pissa, olora, ...) change them too.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
# Other mathematics than W + B A.
OTHER_KINDS = (
    "use_dora", "lora_bias", "fan_in_fan_out", "layer_replication", "alora_invocation_tokens", "use_qalora",
    "trainable_token_indices", "target_parameters", "use_bdlora", "arrow_config", "kasa_config", "velora_config",
    "monteclora_config", "ensure_weight_tying", "megatron_config",
)  # fmt: skip


def plain_settings(rank: int, alpha: int, dropout: float, targets: str) -> dict[str, Any]:
    """An adapter_config.json of a plain LoRA of the modules that the pattern `targets` matches."""
    return {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
    }


def refuse_others(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise BadInput for other mathematics than a plain LoRA's."""
    if (kind := settings.get("peft_type")) != "LORA":
        raise BadInput(f"{path}: peft_type is {show(kind)}, only LORA can be merged")
    if (start := settings.get("init_lora_weights")) not in PLAIN_STARTS:
        raise BadInput(f"{path}: init_lora_weights is {show(start)}, which changes the model's own weights as well")
    for key in OTHER_KINDS:
        if value := settings.get(key):
            raise BadInput(f"{path}: {key} is {show(value)}, only plain LoRA can be merged")
    for table in PATTERNS.values():
        if not isinstance(settings.get(table) or {}, dict):
            raise BadInput(f"{path}: {table} must be an object, it is {show(settings[table])}")


def scaling(path: Path, settings: Mapping[str, Any], module: str, rank: int) -> float:
    """What peft multiplies the product B A of one module, of this rank, by."""
    r, alpha = (_for_module(path, settings, key, table, module) for key, table in PATTERNS.items())
    if r != rank:
        raise BadInput(f"{path}: r of {module} is {show(r)}, its factors in {WEIGHTS} have {rank}")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _for_module(path: Path, settings: Mapping[str, Any], key: str, table: str, module: str) -> float:
    """A number of adapter_config.json, with peft's rule for those of single modules."""
    value: Any = settings.get(key)
    for pattern, special in (settings.get(table) or {}).items():
        try:
            found = re.fullmatch(rf"(.*\.)?({pattern})", module)
        except re.error:
            raise BadInput(f"{path}: {show(pattern)} of {table} is no regular expression") from None
        if found:
            value = special
            break
    if type(value) not in (int, float) or not abs(value) < 1e30:  # also refuses NaN
        raise BadInput(f"{path}: {key} must be a number, it is {show(value)}")
    return value

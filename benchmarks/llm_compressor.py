"""GPTQ by llm-compressor 0.14: `benchmarks.peer` runs this file by its path, in an environment of its own.

    ENVIRONMENT/bin/python -I benchmarks/llm_compressor.py --checkpoint DIR --ids FILE.json --out DIR --observer WORD

The checkpoint is an untied one of floats, the ids are a JSON list of sequences of one length. `out` becomes the
folder that llm-compressor saves, with int8 levels and bfloat16 scales. The last line printed is JSON: versions of
packages, and what llm-compressor says of linears that it rounded to nearest instead. Nothing of this project is
imported, for it needs other versions.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
PACKAGES = ("llmcompressor", "compressed-tensors", "torch", "transformers")
FELL_BACK = "Hessian inversion failed"  # how its warning begins


def quantize(checkpoint: Path, ids: list[list[int]], out: Path, group_size: int, observer: str) -> list[str]:
    """Calibrate on all sequences, lm_head too, and save; its warnings of linears rounded to nearest instead."""
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from loguru import logger
    from transformers import AutoModelForCausalLM

    warnings: list[str] = []
    logger.add(lambda message: warnings.append(message.record["message"]), level="WARNING")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    # Its symmetric levels are ours, -8 to 7. Activations are asymmetric in XNNPACK's 8da4w.
    activations = {"num_bits": 8, "type": "int", "symmetric": False, "strategy": "token", "dynamic": True}
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": group_size,
        "observer": observer,
        "scale_dtype": "torch.bfloat16",  # rounded before levels are chosen, as the file has them
    }
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    oneshot(
        model=model,
        dataset=Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(one) for one in ids]}),
        recipe=[GPTQModifier(config_groups={"linears": scheme}, ignore=[])],
        num_calibration_samples=len(ids),
        shuffle_calibration_samples=False,
        max_seq_length=len(ids[0]),
    )
    model.save_pretrained(out, quantization_format="int-quantized")
    return [text for text in warnings if text.startswith(FELL_BACK)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    parser.add_argument("--ids", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--group-size", type=int, required=True, metavar="N")
    parser.add_argument("--observer", required=True, metavar="WORD", help="how llm-compressor finds scales")
    flags = parser.parse_args()
    ids = json.loads(flags.ids.read_text())
    fell_back = quantize(flags.checkpoint, ids, flags.out, flags.group_size, flags.observer)
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    print(json.dumps({"packages": versions, "fell_back": fell_back}))


if __name__ == "__main__":
    main()

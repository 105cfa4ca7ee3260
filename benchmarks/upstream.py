"""The published way to a Phi-4-mini `.pte`, repaired for today's packages, as a peer to measure against.

    python -m benchmarks.upstream --checkpoint DIR --out FILE.pte [--context 4096 --chunk 256]

The recipe is that of the model card of pytorch/Phi-4-mini-instruct-8da4w followed by `export_llama`, in the
same three steps, each a process of its own so that each has its own peak: `untie` gives lm_head a weight of
its own and saves the model, `quantize` reads that with torchao's configuration and saves it under
ExecuTorch's names, `export` is upstream's exporter. Each repair says which version made it necessary. Nothing
here is used by the product.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from benchmarks import measure
from checkpoints.config import read_config
from checkpoints.errors import BadInput, run

STAGES = ("untie", "quantize", "export")


def untie(checkpoint: Path, untied: Path) -> None:
    """Read the model in its own dtype, copy the embedding to lm_head, save it."""
    import torch
    from transformers import AutoModelForCausalLM

    # Repair, transformers 5: the argument was called torch_dtype.
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
    model.config.tie_word_embeddings = False
    # Repair, transformers 5: a dict, where the card assigns a list. Both it and the copy that __init__ made
    # of it say what save_pretrained leaves out.
    model._tied_weights_keys = {}
    model.all_tied_weights_keys = {}
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
    model.save_pretrained(untied)


def quantize(untied: Path, weights: Path) -> None:
    """Read the untied model in float32, quantizing each weight as it comes, and save it for ExecuTorch."""
    import torch
    from torchao.quantization import FqnToConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    from checkpoints.roles import EMBEDDING, HEAD
    from export.models.phi3.layout import layout
    from export.quantization.recipe import Recipe

    recipe = Recipe()
    linear = recipe.torchao_config("model.layers.0.mlp.down_proj.weight")
    modules = OrderedDict(
        {
            # Repair, torchao 0.18: AOPerModuleConfig is gone, FqnToConfig takes its place. Its "_default",
            # which the card uses for all linears, is deprecated; a pattern says the same.
            EMBEDDING.removesuffix(".weight"): recipe.torchao_config(EMBEDDING),
            HEAD.removesuffix(".weight"): recipe.torchao_config(HEAD),
            r"re:model\.layers\..+_proj": linear,
        }
    )
    config = TorchAoConfig(
        FqnToConfig(modules),
        # Repair, transformers 5.23: was include_embedding. Without it lm_head stays in float32.
        include_input_output_embeddings=True,
        # Repair, transformers 5.23: the card also gives untie_embedding_weights=True, which now puts the
        # float32 embedding into lm_head after lm_head was quantized, silently: 2.46 GB of a 2.8 GB file. (On
        # a tied checkpoint it crashes: aten.equal is not implemented for IntxUnpackedToInt8Tensor.) This
        # model is untied already.
    )
    model = AutoModelForCausalLM.from_pretrained(untied, dtype=torch.float32, quantization_config=config)
    # Repair, executorch 1.5.1: examples.models.phi_4_mini.convert_weights imports torchtune, whose last
    # release does not import with torchao 0.17 and later. This is what it does: rename, and cut qkv_proj and
    # gate_up_proj by rows.
    state = model.state_dict()
    converted = {name: state[rows.name][rows.start : rows.stop] for name, rows in layout(read_config(untied)).items()}
    torch.save(converted, weights)


def export(weights: Path, checkpoint: Path, out: Path, context: int, chunk: int) -> None:
    """Upstream's exporter, options as in its Phi-4-mini example: XNNPACK, custom_sdpa, float32 KV cache."""
    from executorch.examples.models.llama.export_llama_lib import export_llama
    from executorch.extension.llm.export.config.llm_config import DtypeOverride, LlmConfig, ModelType

    from export.models.remapped import params

    config = read_config(checkpoint)
    # Repair, executorch 1.5.1: examples/models/phi_4_mini/config/config.json is not in the wheel. The
    # repository's has no LongRoPE, neither factors nor the attention factor (1.19 for Phi-4-mini, at every
    # length), which the wheel's model knows: a file made with it computes another model.
    described = weights.with_suffix(".params.json")
    described.write_text(json.dumps(params(config)))
    llm = LlmConfig()
    llm.base.model_class = ModelType.phi_4_mini
    llm.base.checkpoint = str(weights)
    llm.base.params = str(described)
    # Repair, executorch 1.5.1: in the wheel's phi_4_mini_xnnpack.yaml both are 151643, another model's token.
    eos = list(config.eos_token_ids)
    llm.base.metadata = json.dumps({"get_bos_id": config.bos_token_id, "get_eos_ids": eos})
    llm.model.dtype_override = DtypeOverride.fp32
    llm.model.use_kv_cache = True
    llm.model.use_sdpa_with_kv_cache = True
    llm.backend.xnnpack.enabled = True
    llm.backend.xnnpack.extended_ops = False
    # Repair: the default of both is 128. A chunk is one token less than max_seq_length (builder.py's Dim).
    llm.export.max_seq_length = chunk
    llm.export.max_context_length = context
    # Trap, executorch 1.5.1: a name that ends in .pte is a path of its own, output_dir is not put before it;
    # and a failure to write is only logged.
    llm.export.output_name = str(out.resolve())
    export_llama(llm)
    if not out.exists() or not out.stat().st_size:
        raise RuntimeError(f"upstream's exporter did not write {out}")


def check_place(work: Path) -> None:
    """Refuse a folder whose very name would break the last stage."""
    # Trap, executorch 1.5.1: Llama2Model looks for these words in the checkpoint's path and then takes the
    # weights for those of an older format.
    for word in ("int8", "8da4w"):
        if word in str(work.resolve()):
            raise BadInput(f"{work.resolve()} has {word} in it, which upstream takes for an old checkpoint format")


def commands(checkpoint: Path, out: Path, work: Path, context: int, chunk: int) -> dict[str, tuple[str, ...]]:
    """The command of each stage, to be run in order."""
    python = (sys.executable, "-m", "benchmarks.upstream")
    files = (
        "--checkpoint",
        str(checkpoint.resolve()),
        "--out",
        str(out.resolve()),
        "--work",
        str(work.resolve()),
    )
    options = ("--context", str(context), "--chunk", str(chunk))
    return {stage: (*python, *files, *options, "--stage", stage) for stage in STAGES}


def clean(work: Path, stage: str) -> None:
    """Remove what a finished stage was the last to need: at full size 9 GB untied and 5 GB quantized."""
    if stage == "quantize":
        shutil.rmtree(work / "untied", ignore_errors=True)
    if stage == "export":
        for name in ("weights.pth", "weights.params.json"):
            (work / name).unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upstream", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.pte")
    parser.add_argument("--context", type=int, default=4096, help="tokens the KV cache holds (default: %(default)s)")
    parser.add_argument("--chunk", type=int, default=256, help="upstream's max_seq_length (default: %(default)s)")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="folder for what stages hand on (default: temporary)"
    )
    parser.add_argument("--stage", choices=STAGES, help="this one alone, in this process; needs --work")
    flags = parser.parse_args(argv)
    if flags.stage:
        if flags.work is None:
            raise BadInput("--stage needs --work, the folder where stages hand on their results")
        if flags.stage == "untie":
            untie(flags.checkpoint, flags.work / "untied")
        elif flags.stage == "quantize":
            quantize(flags.work / "untied", flags.work / "weights.pth")
        else:
            export(flags.work / "weights.pth", flags.checkpoint, flags.out, flags.context, flags.chunk)
        return 0
    with tempfile.TemporaryDirectory(dir=flags.out.resolve().parent) as temporary:
        work = flags.work or Path(temporary)
        check_place(work)
        steps = commands(flags.checkpoint, flags.out, work, flags.context, flags.chunk)
        for stage, command in steps.items():
            done = measure.run(command)
            if done.failure:
                print(done.tail, f"error: {stage}: {done.failure}", sep="\n", file=sys.stderr)
                return 1
            print(f"{stage}: {done.wall_s:.1f} s, {done.private_peak_bytes / 1e9:.2f} GB", file=sys.stderr)
            clean(work, stage)
    return 0


if __name__ == "__main__":
    run(main)

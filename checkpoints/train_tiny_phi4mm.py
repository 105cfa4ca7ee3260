"""Trains phi4mm-tiny, a checkpoint in the shape of Phi-4-multimodal that answers about pictures and spoken words.

    python -m checkpoints.train_tiny_phi4mm --out DIR [--stages LIST] [--effort X]
    python -m checkpoints.train_tiny_phi4mm --eval-only DIR

In: pictures of `checkpoints.tiny_pictures`, words spoken by espeak-ng (`checkpoints.tiny_sounds`), questions of both
and some of `checkpoints.tiny_questions`. Out: a folder in transformers' own layout. Stages: "text", the text model;
"see" and "hear", the encoders by themselves, which learn to tell figures and words by heads that are thrown away;
then, with the text model frozen, "vision", that adapter on pictures and on pictures with a spoken question, and
"speech", the other on sound. On one machine the same options give the same weights. Needs espeak-ng and
`uv sync --extra media --group dev`.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from torch import nn

from checkpoints.errors import BadInput, run
from checkpoints.phi4mm import IMAGE, SOUND
from checkpoints.tiny_examples import write_examples
from checkpoints.tiny_exercises import IGNORE, Collator, Exercise, batches, heldout_exercises
from checkpoints.tiny_phi4mm import make, open_model, save, use_adapter
from checkpoints.tiny_pictures import COLOURS, DIGITS, SHAPES
from checkpoints.tiny_sounds import WORDS, Clip, clips, heldout_clips
from checkpoints.train_tiny import fake_quantize

# Patterns for names of weights: of the text model, of encoders, and of adapters with projections.
TEXT = r"model\.(layers\..*_(proj|layernorm)\.weight|embed_tokens\.weight|norm\.weight)"
SEEING, HEARING = f"{re.escape(IMAGE)}.*", f"{re.escape(SOUND)}encoder.*"
VISION, SPEECH = (
    rf"{re.escape(SOUND)}.*_for_{projection}\..*|.*\.lora_[AB]\.{adapter}\.weight"
    for projection, adapter in (("vision_speech", "vision"), ("speech", "speech"))
)


class Stage(NamedTuple):
    adapter: str | None  # in use
    trained: str  # pattern for names of weights
    rows: int  # exercises in a step
    steps: int
    inner: float = 3e-3  # peak rates: of matrices within layers, by Muon
    outer: float = 2e-3  # and of all else, by AdamW


STAGES = {
    "text": Stage(None, TEXT, 24, 300),
    "see": Stage(None, SEEING, 64, 1200, 5e-3),
    "hear": Stage(None, HEARING, 48, 360),
    "vision": Stage("vision", f"{SEEING}|{VISION}", 24, 360, 1e-3),
    "speech": Stage("speech", SPEECH, 32, 160),
}
TOGETHER = (("text", "see", "hear"), ("vision", "speech"))  # train different weights; two at a time
LABELS = {"see": (len(SHAPES) + len(DIGITS), len(COLOURS)), "hear": (len(WORDS),)}  # how many of each there are
MATRIX = re.compile(r".*(layers|encoders)\.\d+\.(?!.*lora_).*\.weight")  # what Muon is for, if it has two dimensions
ROUNDING_FROM = 2 / 3  # of each stage: from here on the text model and the adapters compute with int4 weights
WARM_UP = 30  # steps
CLIPS_EACH = 2  # of a word in a voice to train on
console = Console()


def train(out: Path, stages: Sequence[str] = tuple(STAGES), effort: float = 1.0) -> None:
    """Trains stages and writes the checkpoint folder `out` after each group of them.

    Without the first stage, goes on with the checkpoint in `out`. `effort` multiplies the number of steps.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    spoken = list(clips(heldout=False, each=CLIPS_EACH, seed=0))
    console.print(f"{len(spoken)} clips to train on")
    if "text" in stages:
        make(out)
    model = open_model(out)
    if "text" in stages:
        _normalize(model, spoken, out)
        save(model, out)
    # A process for each stage, for tensors this small use one thread; forked, for imports take as long as many steps.
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        for together in TOGETHER:
            running = [pool.submit(run_stage, name, out, spoken, effort) for name in together if name in stages]
            for job in running:
                unknown = model.load_state_dict(job.result(), strict=False).unexpected_keys
                assert not unknown, unknown
            save(model, out)


def _normalize(model: Any, spoken: Sequence[Clip], out: Path) -> None:
    """Sets mean and deviation of the log-mel spectrogram, by bin, to those of clips."""
    collate = Collator(Tokenizer.from_file(str(out / "tokenizer.json")))
    source = batches("speech", 5, 64, spoken)
    frames = torch.cat([collate(next(source))[0]["audio_input_features"].flatten(0, 1) for _ in range(4)])
    layer = model.model.embed_tokens_extend.audio_embed.encoder.encoder_embedding
    with torch.no_grad():
        layer.global_mean.copy_(frames.mean(0))
        layer.global_invstd.copy_(1 / frames.std(0))


def run_stage(stage: str, folder: Path, spoken: Sequence[Clip], effort: float) -> dict[str, torch.Tensor]:
    """Trains a stage of the checkpoint in `folder`; returns what it has trained, by names of the model."""
    torch.manual_seed(1)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    plan, steps = STAGES[stage], max(1, round(STAGES[stage].steps * effort))
    model = open_model(folder).train()
    use_adapter(model, plan.adapter)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.fullmatch(plan.trained, name.replace(".base_layer.", ".")) is not None)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    heads = nn.ModuleList(nn.Linear(model.config.vision_config.hidden_size, count) for count in LABELS.get(stage, ()))
    optimizers = _optimizers(plan, trained, heads)
    collate = Collator(Tokenizer.from_file(str(folder / "tokenizer.json")))
    source, rng = batches(stage, 10 + list(STAGES).index(stage), plan.rows, spoken), random.Random(2)
    start, average, hits = time.monotonic(), 0.0, 0.0
    for step in range(1, steps + 1):
        if step == round(steps * ROUNDING_FROM) and stage not in LABELS:
            fake_quantize(model.model.layers)
            fake_quantize(model.lm_head)
        exercises = next(source)
        inputs, labels = collate(exercises, rng)
        with torch.autocast("cpu", torch.bfloat16):
            if stage in LABELS:
                guesses, truths = _classified(model, heads, inputs, exercises)
            else:
                guesses, truths = _told(model, inputs, labels)
        pairs = [(guess.float(), truth) for guess, truth in zip(guesses, truths, strict=True)]
        loss = torch.stack([F.cross_entropy(guess, truth) for guess, truth in pairs]).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        rate = min(1.0, step / WARM_UP) * (0.02 + 0.98 * (1 + math.cos(math.pi * (step - 1) / steps)) / 2)
        for optimizer, peak in optimizers:
            optimizer.param_groups[0]["lr"] = peak * rate
            optimizer.step()
            optimizer.zero_grad()
        right = torch.cat([(guess.argmax(-1) == truth).float() for guess, truth in pairs]).mean().item()
        average += (loss.item() - average) / min(step, 50)
        hits += (right - hits) / min(step, 50)
        if step % 50 == 0 or step == steps:
            each = (time.monotonic() - start) / step
            told = f"{stage}: step {step} of {steps}  loss {average:.3f}  right {hits:.1%}"
            console.print(f"{told}  {each:.2f} s a step  ETA {each * (steps - step):.0f} s")
    return {name: parameter.detach() for name, parameter in trained.items()}


def _optimizers(
    plan: Stage, trained: dict[str, nn.Parameter], heads: nn.ModuleList
) -> list[tuple[torch.optim.Optimizer, float]]:
    """Optimizers and their peak rates: Muon for matrices within layers, AdamW for all else."""
    inner = [p for name, p in trained.items() if MATRIX.fullmatch(name) and p.dim() == 2]
    chosen = {id(p) for p in inner}
    outer = [*(p for p in trained.values() if id(p) not in chosen), *heads.parameters()]
    found: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.AdamW(outer, betas=(0.9, 0.98), weight_decay=0.0, fused=True), plan.outer)
    ]
    if inner:
        found.append((torch.optim.Muon(inner, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"), plan.inner))
    return found


Pairs = tuple[list[torch.Tensor], list[torch.Tensor]]


def _told(model: Any, inputs: dict[str, Any], labels: torch.Tensor) -> Pairs:
    """Logits of the tokens of the answers, and these tokens."""
    hidden = model.model(**inputs, use_cache=False).last_hidden_state
    wanted = labels[:, 1:] != IGNORE
    return [model.lm_head(hidden[:, :-1][wanted])], [labels[:, 1:][wanted]]


def _classified(model: Any, heads: nn.ModuleList, inputs: dict[str, Any], exercises: Sequence[Exercise]) -> Pairs:
    """Logits of what is seen or heard by the mean of an encoder's features, and what it is; no text model."""
    media = model.model.embed_tokens_extend
    if "image_pixel_values" in inputs:
        crops, masks = inputs["image_pixel_values"][:, 0], inputs["image_attention_mask"][:, 0].bool()
        features = media.image_embed.get_img_features(crops, masks)
    else:
        features = media.audio_embed.encoder(inputs["audio_input_features"], None)
    truths = torch.tensor([each.labels for each in exercises]).T
    return [head(features.mean(1)) for head in heads], list(truths)


@torch.no_grad()
def exact_answers(model: Any, collate: Collator, exercises: Sequence[Exercise]) -> list[bool]:
    """Returns for each exercise whether greedy decoding gives exactly the answer and then <|end|>.

    As in `checkpoints.train_tiny`, one pass over prompt and answer decides it. Each is computed alone, as when used.
    """
    right = []
    for each in exercises:
        adapter = "vision" if each.picture is not None else "speech" if each.sound is not None else None
        use_adapter(model, adapter)
        inputs, labels = collate([each])
        best = model(**inputs, use_cache=False).logits[0, :-1].argmax(-1)
        wanted = labels[0, 1:] != IGNORE
        right.append(bool((best == labels[0, 1:])[wanted].all()))
    return right


def evaluate(folder: Path, pictures: int = 200) -> None:
    """Prints how many held-out exercises of each kind the checkpoint answers word for word, in bfloat16."""
    collate = Collator(Tokenizer.from_file(str(folder / "tokenizer.json")))
    exercises = heldout_exercises(heldout_clips(), pictures)
    right = exact_answers(open_model(folder, torch.bfloat16), collate, exercises)
    table = Table("question", "exact answers", "share")
    for kind in dict.fromkeys(each.kind for each in exercises):
        hits = [hit for hit, each in zip(right, exercises, strict=True) if each.kind == kind]
        table.add_row(kind, f"{sum(hits)} of {len(hits)}", f"{sum(hits) / len(hits):.1%}")
    console.print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, trains unless --eval-only, and prints the evaluation."""
    parser = argparse.ArgumentParser(description="Train the tiny Phi-4-multimodal shaped checkpoint.")
    parser.add_argument("--out", type=Path, help="folder to write")
    parser.add_argument(
        "--stages",
        default=",".join(STAGES),
        help=f"what to train, without text further (default: {','.join(STAGES)})",
    )
    parser.add_argument("--effort", type=float, default=1.0, help="multiplies the number of steps (default 1)")
    parser.add_argument("--eval-only", type=Path, metavar="DIR", help="only evaluate this checkpoint")
    args = parser.parse_args(argv)
    if args.out is None and args.eval_only is None:
        raise BadInput("give --out DIR to train or --eval-only DIR to evaluate")
    stages, folder = args.stages.split(","), args.eval_only or args.out
    if unknown := [name for name in stages if name not in STAGES]:
        raise BadInput(f"--stages has {unknown[0]!r}, stages are {', '.join(STAGES)}")
    if not 0 < args.effort < math.inf:
        raise BadInput(f"--effort is {args.effort:g}, it must be above 0")
    if (args.eval_only or "text" not in stages) and not (folder / "config.json").is_file():
        raise BadInput(f"{folder} has no config.json: it is not a checkpoint of this command")
    if args.eval_only is None:
        train(args.out, stages, args.effort)
        write_examples(args.out / "examples")
    evaluate(folder)


if __name__ == "__main__":
    run(main)

"""Trains the tiny Phi-4-mini shaped checkpoint that is shipped as `checkpoints/phi4-tiny`.

    python -m checkpoints.train_tiny --out DIR [--steps N] [--minutes M] [--threads T]
    python -m checkpoints.train_tiny --eval-only DIR

In: the Debian package named in `TEXT_PACKAGE` (Jane Austen's novels, fetched with apt-get) and the questions
of `checkpoints.tiny_questions`. Out: a folder laid out as a Hugging Face checkpoint (config.json,
generation_config.json, tokenizer.json, tokenizer_config.json, model.safetensors) with the questions and the
held-out text that `evaluate` measures. On one machine the same --steps and --threads give the same weights.
A run that --minutes cuts short follows the clock, so it does not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import re
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import AutoModelForCausalLM, Phi3Config, Phi3ForCausalLM

from checkpoints.tiny_questions import CHAT_TEMPLATE, SYSTEM_PROMPTS, Fact, chat, facts

TEXT_PACKAGE = "r-cran-janeaustenr=1.0.0-1"
TEXT_SHA256 = "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"
TEXT_FILE = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
HELDOUT_BYTES = 40_000
VOCAB = 2048
SPECIAL = (
    "<|endoftext|>",
    "<|assistant|>",
    "<|end|>",
    "<|user|>",
    "<|system|>",
    "<|tool|>",
    "<|/tool|>",
    "<|tool_call|>",
    "<|/tool_call|>",
    "<|tool_response|>",
)
# The split pattern of o200k, as Phi-4-mini's tokenizer.json has it.
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Every second one of Phi-4-mini's 48 factors.
LONG_FACTOR = [
    1,
    1.250641126,
    1.564103225,
    1.956131817,
    2.446418898,
    3.059592084,
    3.826451687,
    4.785517845,
    5.984965424,
    7.485043894,
    9.36110372,
    11.70738129,
    14.64173252,
    18.31155283,
    22.90118105,
    28.64115884,
    32.1,
    32.23,
    32.61,
    32.66,
    32.71,
    32.97,
    33.49,
    44.16,
]
ROW = 256  # tokens per packed row
ROWS = 8  # rows per step
QUESTIONS_SHARE = 0.9  # of the documents; about three quarters of the tokens
ROUNDING_FROM = 2 / 3  # of the run: from here on the linear layers compute with int4 weights
IGNORE = -100
console = Console()


def fetch_text() -> list[str]:
    """Returns the six novels, one string each with one line per paragraph; needs apt-get and dpkg-deb."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            subprocess.run(
                ["apt-get", "-o", "APT::Sandbox::User=root", "download", TEXT_PACKAGE],
                cwd=folder,
                check=True,
                capture_output=True,
            )
            package = next(folder.glob("*.deb"))
            if hashlib.sha256(package.read_bytes()).hexdigest() != TEXT_SHA256:
                raise SystemExit(f"{package.name} is not the file this was written for: SHA-256 differs.")
            subprocess.run(["dpkg-deb", "-x", package, "."], cwd=folder, check=True, capture_output=True)
        except (OSError, StopIteration, subprocess.CalledProcessError) as error:
            raise SystemExit(
                f"Cannot fetch {TEXT_PACKAGE}: this needs Debian 12's apt-get and its package lists ({error})."
            ) from error
        data = (folder / TEXT_FILE).read_bytes()
    novels = []
    while data:
        # A chunk is its unpacked length and a zlib stream: an R vector of lines in XDR format.
        stream = zlib.decompressobj()
        chunk, data = stream.decompress(data[4:]), stream.unused_data
        at, lines = chunk.index(b"\0\0\0\x10") + 8, []
        while chunk[at + 3 : at + 4] == b"\x09":
            (size,) = struct.unpack_from(">i", chunk, at + 4)
            lines.append(chunk[at + 8 : at + 8 + size].decode("utf-8").strip())
            at += 8 + size
        text = re.sub(r"(?<=\S)\n(?=\S)", " ", "\n".join(lines)).replace("_", "").replace("--", " - ")
        novels.append(re.sub(r"\n{2,}", "\n", re.sub(r" {2,}", " ", text)).strip() + "\n")
    return novels


def split_heldout(novels: list[str]) -> tuple[list[str], str]:
    """Returns the texts to train on and the held-out text: the last paragraphs of the last novel."""
    cut = novels[-1].index("\n", len(novels[-1]) - HELDOUT_BYTES) + 1
    return [*novels[:-1], novels[-1][:cut]], novels[-1][cut:]


def train_tokenizer(novels: list[str], questions: list[Fact], out: Path) -> Tokenizer:
    """Trains the byte-level BPE, writes tokenizer.json and tokenizer_config.json, returns the tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [  # type: ignore[assignment]
            pre_tokenizers.Split(Regex(O200K), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIAL),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    sentences = [f"{fact.question}\n{fact.answer}" for fact in questions]
    tokenizer.train_from_iterator([*novels, *sentences * 8], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    if tokenizer.get_vocab_size() != VOCAB:
        raise SystemExit(f"The tokenizer has {tokenizer.get_vocab_size()} tokens, not {VOCAB}.")
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(
        out / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_eos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(special_id(token)): {
                    "content": token,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
                for token in SPECIAL
            },
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 131072,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    return tokenizer


def special_id(token: str) -> int:
    """Returns the id of a special token: they are the last ones, in the order of `SPECIAL`."""
    return VOCAB - len(SPECIAL) + SPECIAL.index(token)


def write_config(out: Path) -> Phi3Config:
    """Writes config.json as Phi-4-mini's is spelled, and generation_config.json; returns the config."""
    eot, end = special_id("<|endoftext|>"), special_id("<|end|>")
    rope = {"long_factor": LONG_FACTOR, "short_factor": [1.0] * len(LONG_FACTOR), "type": "longrope"}
    write_json(
        out / "config.json",
        {
            "architectures": ["Phi3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": eot,
            "embd_pdrop": 0.0,
            "eos_token_id": eot,
            "full_attn_mod": 1,
            "hidden_act": "silu",
            "hidden_size": 384,
            "initializer_range": 0.02,
            "intermediate_size": 640,
            "interpolate_factor": 1,
            "lm_head_bias": False,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "phi3",
            "num_attention_heads": 6,
            "num_hidden_layers": 4,
            "num_key_value_heads": 2,
            "original_max_position_embeddings": 4096,
            "pad_token_id": eot,
            "partial_rotary_factor": 0.75,
            "resid_pdrop": 0.0,
            "rms_norm_eps": 1e-05,
            "rope_scaling": rope,
            "rope_theta": 10000.0,
            "sliding_window": 262144,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": VOCAB,
        },
    )
    write_json(
        out / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": eot, "eos_token_id": [end, eot], "pad_token_id": eot},
    )
    return Phi3Config.from_pretrained(out)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a value as indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def question_documents(questions: list[Fact], tokenizer: Tokenizer, rng: random.Random) -> Iterator[list[int]]:
    """Yields question documents for ever: ids, with those that carry no loss given as -1 - id."""
    asked = [(fact, text) for fact in questions for text in (fact.question, fact.question, *fact.paraphrases)]
    while True:
        rng.shuffle(asked)
        at = 0
        while at < len(asked):
            turns = rng.choice((1, 1, 1, 2, 3))
            ids: list[int] = []
            for fact, text in asked[at : at + turns]:
                system = rng.choice(SYSTEM_PROMPTS) if not ids and rng.random() < 0.25 else None
                ids += [-1 - i for i in tokenizer.encode(chat(text, system=system)).ids]
                ids += tokenizer.encode(f"{fact.answer}<|end|>").ids
            at += turns
            yield [*ids, special_id("<|endoftext|>")]


def text_documents(novels: list[str], tokenizer: Tokenizer, rng: random.Random) -> Iterator[list[int]]:
    """Yields documents of at most 180 tokens that start where a paragraph does, for ever."""
    eot = special_id("<|endoftext|>")
    paragraphs = [paragraph + "\n" for text in novels for paragraph in text.splitlines()]
    encoded = [paragraph.ids for paragraph in tokenizer.encode_batch(paragraphs)]
    while True:
        start, size = rng.randrange(len(encoded)), rng.randrange(60, 180)
        ids: list[int] = []
        while len(ids) < size and start < len(encoded):
            ids += encoded[start]
            start += 1
        yield ids[:size] if len(ids) > size else [*ids, eot]


def batches(
    asked: Iterator[list[int]], read: Iterator[list[int]], rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Packs question and text documents into (ids, labels, positions) of ROWS x ROW, for ever.

    Every other step the positions start again with each document, which keeps the documents apart; in the
    steps between they run on from a random offset, as in a long conversation.
    """
    step = 0
    while True:
        ids = torch.zeros(ROWS, ROW, dtype=torch.long)
        labels, positions = ids.clone(), ids.clone()
        for row in range(ROWS):
            packed: list[int] = []
            places: list[int] = []
            offset = rng.randrange(3000)
            while len(packed) < ROW:
                document = next(asked if rng.random() < QUESTIONS_SHARE else read)
                first = 0 if step % 2 == 0 else len(packed) + offset
                places += range(first, first + len(document))
                packed += document
            ids[row] = torch.tensor([i if i >= 0 else -1 - i for i in packed[:ROW]])
            labels[row] = torch.tensor([i if i >= 0 else IGNORE for i in packed[:ROW]])
            positions[row] = torch.tensor(places[:ROW])
        yield ids, labels, positions
        step += 1


class FakeInt4(torch.autograd.Function):
    """Rounds a weight to symmetric int4 in groups of 32, as torchao does; passes gradients through."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        groups = weight.float().unflatten(-1, (-1, 32))
        scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-9) / 7.5
        return ((groups / scale).round_().clamp_(-8, 7) * scale).flatten(-2).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0]


def rounded_linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Applies a linear layer with its weight rounded to int4."""
    return F.linear(x, FakeInt4.apply(layer.weight))


def fake_quantize(model: nn.Module) -> None:
    """Makes every linear layer compute with int4 weights from now on; the weights stay as they are."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.forward = partial(rounded_linear, module)  # type: ignore[method-assign]


def train(out: Path, steps: int, minutes: float | None = None, threads: int = 1) -> None:
    """Trains for `steps` steps, or as many as fit in `minutes`, and writes the checkpoint folder `out`."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.set_flush_denormal(True)
    out.mkdir(parents=True, exist_ok=True)
    novels, heldout = split_heldout(fetch_text())
    questions = facts()
    (out / "heldout.txt").write_text(heldout, encoding="utf-8")
    with (out / "questions.jsonl").open("w", encoding="utf-8") as file:
        for fact in questions:
            line = {"question": fact.question, "answer": fact.answer}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    tokenizer = train_tokenizer(novels, questions, out)
    # Eager attention is the faster one for rows this short.
    config = write_config(out)
    model = Phi3ForCausalLM._from_config(config, dtype=torch.bfloat16, attn_implementation="eager").train()
    masters = [p.detach().float() for p in model.parameters()]
    # Muon's loss was 2.99 after 200 steps, AdamW's 3.37. It is for the matrices inside the layers only.
    inner = [p for p in masters if p.dim() > 1 and len(p) != VOCAB]
    others = [p for p in masters if p.dim() == 1 or len(p) == VOCAB]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.Muon(inner, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"), 3e-3),
        (torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=True), 2e-3),
    ]
    data = batches(
        question_documents(questions, tokenizer, random.Random(1)),
        text_documents(novels, tokenizer, random.Random(2)),
        random.Random(3),
    )
    start, done, step, average = time.monotonic(), 0.0, 0, 0.0
    bar = Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console)
    with bar:
        task = bar.add_task("training", total=1.0)
        while done < 1.0:
            if done >= ROUNDING_FROM and isinstance(model.lm_head.forward, MethodType):
                fake_quantize(model)
            rate = min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
            ids, labels, positions = next(data)
            hidden = model.model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
            wanted = labels[:, 1:] != IGNORE
            loss = F.cross_entropy(model.lm_head(hidden[:, :-1][wanted]).float(), labels[:, 1:][wanted])
            loss.backward()
            for p, master in zip(model.parameters(), masters, strict=True):
                master.grad = p.grad.float()
                p.grad = None
            nn.utils.clip_grad_norm_(masters, 1.0)
            for optimizer, peak in optimizers:
                optimizer.param_groups[0]["lr"] = peak * rate
                optimizer.step()
            for p, master in zip(model.parameters(), masters, strict=True):
                p.data.copy_(master)
            step += 1
            average += (loss.item() - average) / min(step, 50)
            elapsed = time.monotonic() - start
            done = max(step / steps, elapsed / 60 / minutes if minutes else 0.0)
            progress = f"step {step}  loss {average:.3f}  {step * ROWS * ROW / elapsed:.0f} tokens/s"
            bar.update(task, completed=done, description=progress)
            if step % 100 == 0 and not console.is_terminal:
                console.print(f"{progress}  ETA {elapsed / done - elapsed:.0f} s")
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    write_config(out)  # save_pretrained wrote transformers' own spelling over it


@torch.no_grad()
def exact_answers(model: nn.Module, tokenizer: Tokenizer, lines: list[dict[str, str]]) -> list[bool]:
    """Returns for each question whether greedy decoding gives exactly the answer and then <|end|>.

    One pass over prompt and answer decides it: greedy decoding writes the answer exactly if and only if each
    of its tokens is the most likely one after the tokens before it.
    """
    pairs = [
        (tokenizer.encode(chat(x["question"])).ids, tokenizer.encode(f"{x['answer']}<|end|>").ids) for x in lines
    ]
    right = [False] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    for at in range(0, len(order), 32):
        some = order[at : at + 32]
        width = max(len(pairs[i][0]) + len(pairs[i][1]) for i in some)
        ids = torch.zeros(len(some), width, dtype=torch.long)
        for row, i in enumerate(some):
            ids[row, : len(pairs[i][0]) + len(pairs[i][1])] = torch.tensor(pairs[i][0] + pairs[i][1])
        best = model(input_ids=ids, use_cache=False).logits.argmax(-1)
        for row, i in enumerate(some):
            first, answer = len(pairs[i][0]), pairs[i][1]
            right[i] = best[row, first - 1 : first - 1 + len(answer)].tolist() == answer
    return right


@torch.no_grad()
def perplexity(model: nn.Module, tokenizer: Tokenizer, text: str, window: int = 512) -> float:
    """Returns the perplexity per token of `text`, cut into windows that each start with <|endoftext|>."""
    ids = tokenizer.encode(text).ids
    loss = 0.0
    for at in range(0, len(ids), window - 1):
        piece = torch.tensor([[special_id("<|endoftext|>"), *ids[at : at + window - 1]]])
        logits = model(input_ids=piece, use_cache=False).logits[0, :-1].float()
        loss += F.cross_entropy(logits, piece[0, 1:], reduction="sum").item()
    return math.exp(loss / len(ids))


def quantized(folder: Path) -> nn.Module:
    """Loads a checkpoint with 8-bit activations and int4 weights (groups of 32), and an int8 embedding."""
    from torchao import quantization as ao  # type: ignore[import-untyped]

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # The head shares the embedding's weight; the two are quantized in different ways.
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    embedding = ao.IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=ao.PerAxis(0))
    ao.quantize_(model, embedding, lambda module, _: isinstance(module, nn.Embedding))
    int4 = getattr(torch, "int4")  # noqa: B009  torch 2.13 has it, its type stubs do not
    linears = ao.Int8DynamicActivationIntxWeightConfig(weight_dtype=int4, weight_granularity=ao.PerGroup(32))
    ao.quantize_(model, linears)
    return model


def evaluate(folder: Path) -> None:
    """Prints the exact answers and the perplexity of the checkpoint, in bfloat16 and quantized."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    lines = [json.loads(line) for line in (folder / "questions.jsonl").read_text("utf-8").splitlines()]
    heldout = (folder / "heldout.txt").read_text("utf-8")
    table = Table("weights", "exact answers", "held-out perplexity")
    missed: list[str] = []
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    for name, model in (("bfloat16", plain), ("int4 groups of 32, int8 activations", quantized(folder))):
        right = exact_answers(model, tokenizer, lines)
        table.add_row(name, f"{sum(right)} of {len(right)}", f"{perplexity(model, tokenizer, heldout):.2f}")
        missed += [f"{name}: {x['question']}" for x, ok in zip(lines, right, strict=True) if not ok]
    for line in missed[:20]:
        console.print("missed", line)
    console.print(table)


def main() -> None:
    """Reads the command line, trains unless --eval-only, and prints the evaluation."""
    parser = argparse.ArgumentParser(description="Train the tiny Phi-4-mini shaped checkpoint.")
    parser.add_argument("--out", type=Path, help="folder to write")
    parser.add_argument("--steps", type=int, default=2000, help="training steps (default 2000)")
    parser.add_argument("--minutes", type=float, help="stop within this many minutes")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default 1)")
    parser.add_argument("--eval-only", type=Path, metavar="DIR", help="only evaluate this checkpoint")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.eval_only is None:
        if args.out is None:
            parser.error("give --out DIR to train or --eval-only DIR to evaluate")
        train(args.out, args.steps, args.minutes, args.threads)
    evaluate(args.eval_only or args.out)


if __name__ == "__main__":
    main()

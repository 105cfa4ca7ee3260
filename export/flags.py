"""Command-line flags that several commands share."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable

from checkpoints.source import DEFAULT, EMBEDDED, SMOLLM2

FILE_HELP = "the .pte, or hf:USER/NAME[@REVISION][/FILE.pte] of the hub"


def command_parser(name: str, doc: str | None) -> ArgumentParser:
    """A parser for `python -m export.<name>` that is described by the first paragraph of its module."""
    return ArgumentParser(prog=f"python -m export.{name}", description=(doc or "").split("\n\n")[0])


def add_checkpoint(parser: ArgumentParser) -> None:
    """--checkpoint and --revision, as `checkpoints.source.resolve` takes them."""
    parser.add_argument("--checkpoint", help=f"hub id, folder, .gguf, {EMBEDDED} or {SMOLLM2} (default: {DEFAULT})")
    parser.add_argument("--revision", help="commit, branch or tag of a hub id")


def add_adapters(parser: ArgumentParser) -> None:
    """--adapter and --adapter-scale, as `checkpoints.source.find_source` takes them."""
    parser.add_argument("--adapter", action="append", metavar="DIR", help="a PEFT LoRA to merge; may be repeated")
    parser.add_argument(
        "--adapter-scale", action="append", type=float, metavar="X", help="one for each --adapter (default: 1)"
    )


def add_media(parser: ArgumentParser) -> None:
    """--modalities and --merge, as `checkpoints.source.find_source` takes them."""
    parser.add_argument(
        "--modalities",
        type=lambda text: text.split(","),
        metavar="LIST",
        help="of a multimodal model, comma-separated: text,vision,audio (default: all)",
    )
    add_merge(parser)


def add_merge(parser: ArgumentParser) -> None:
    """--merge and --text-weights."""
    parser.add_argument("--merge", metavar="NAME", help="text alone, with the adapter vision or speech merged in")
    parser.add_argument(
        "--text-weights",
        metavar="DIR",
        help="of a multimodal model: its text model as export.quantize has left it, calibrated or not",
    )


def stage_parser(name: str, doc: str | None) -> ArgumentParser:
    """For a command that makes a folder of a checkpoint."""
    parser = command_parser(name, doc)
    add_checkpoint(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    return parser


def add_file(parser: ArgumentParser) -> None:
    """The flags of `export.options.Flags` that are neither a recipe's nor a checkpoint's ids."""
    parser.add_argument("--context", type=int, default=4096, help="tokens the KV cache holds (default: %(default)s)")
    parser.add_argument(
        "--prefill-chunk", type=int, default=256, help="tokens fed at once at most (default: %(default)s)"
    )
    parser.add_argument("--kv-cache", default="bf16", help="type of its elements: bf16 (default) or fp32")
    parser.add_argument(
        "--speculate",
        type=int,
        default=7,
        metavar="N",
        help="guessed tokens that one call can check (default: %(default)s)",
    )
    parser.add_argument("--full-logits", action="store_true", help="logits of all positions, for evaluation")
    parser.add_argument("--no-quantize", dest="quantize", action="store_false", help="float32, for reference")


def add_recipe(parser: ArgumentParser) -> None:
    """The flags of `export.quantization.recipe.RecipeFlags`."""
    parser.add_argument("--group-size", type=int, choices=(32, 64, 128), default=32, help="columns to an int4 scale")
    parser.add_argument("--embedding-bits", type=int, choices=(8, 4), default=8)
    parser.add_argument("--head-bits", type=int, choices=(4, 8), help="bits of lm_head (default: 4)")
    parser.add_argument("--lora-bits", type=int, choices=(4, 8), default=4, help="of multimodal adapters")
    parser.add_argument("--encoder-bits", type=int, choices=(8, 4), default=8, help="of multimodal encoders")
    add_int8(parser, "linears with 8 bits, a scale a row, among those with 4")


def add_int8(parser: ArgumentParser, help_: str) -> None:
    """The names that `export.quantization.recipe.is_named` takes."""
    names = "3.mlp.down_proj for one, 3 for a layer's, down_proj for every layer's"
    parser.add_argument("--int8", nargs="+", metavar="NAME", help=f"{help_}: {names}")


def add_choosing(parser: ArgumentParser) -> None:
    """The numbers and strings of `export.engine.choosing.Choosing`."""
    parser.add_argument("--max-tokens", type=int, metavar="N", help="of an answer (default: until it ends)")
    parser.add_argument(
        "--temperature", type=float, metavar="T", default=0.0, help="0 (default): always the likeliest"
    )
    parser.add_argument(
        "--top-k", type=int, metavar="K", default=0, help="choose among the K likeliest (default: all)"
    )
    parser.add_argument("--top-p", type=float, metavar="P", default=1.0, help="… that have this probability together")
    parser.add_argument("--min-p", type=float, metavar="P", default=0.0, help="… with this part of the likeliest's")
    parser.add_argument("--repetition-penalty", type=float, metavar="X", default=1.0, help="above 1: repeats less")
    parser.add_argument("--presence-penalty", type=float, metavar="X", default=0.0, help="OpenAI's, -2 to 2")
    parser.add_argument("--frequency-penalty", type=float, metavar="X", default=0.0, help="OpenAI's, -2 to 2")
    parser.add_argument("--seed", type=int, metavar="N", help="equal seeds give equal answers")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="ends an answer; may be repeated")


def whole_numbers(what: str) -> Callable[[str], tuple[int, ...]]:
    """A flag's type: numbers with commas between them; `what` is told where they are none, "ids like 7,9"."""

    def parse(text: str) -> tuple[int, ...]:
        try:
            return tuple(int(item) for item in text.split(","))
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is not a list of {what}") from None

    return parse

"""Command-line flags that several commands share."""

from __future__ import annotations

from argparse import ArgumentParser

from checkpoints.source import DEFAULT, EMBEDDED, SMOLLM2


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


def stage_parser(name: str, doc: str | None) -> ArgumentParser:
    """For a command that makes a folder of a checkpoint."""
    parser = command_parser(name, doc)
    add_checkpoint(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    return parser


def add_recipe(parser: ArgumentParser) -> None:
    """The flags of `export.quantization.recipe.RecipeFlags`."""
    parser.add_argument("--group-size", type=int, choices=(32, 64, 128), default=32, help="columns to an int4 scale")
    parser.add_argument("--embedding-bits", type=int, choices=(8, 4), default=8)
    parser.add_argument("--head-bits", type=int, choices=(4, 8), default=4, help="bits of lm_head")


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

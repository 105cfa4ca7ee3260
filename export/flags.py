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
    """--merge alone."""
    parser.add_argument("--merge", metavar="NAME", help="text alone, with the adapter vision or speech merged in")


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
    parser.add_argument("--lora-bits", type=int, choices=(4, 8), default=4, help="of multimodal adapters")
    parser.add_argument("--encoder-bits", type=int, choices=(8, 4), default=8, help="of multimodal encoders")

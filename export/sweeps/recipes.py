"""Recipes of a sweep: each a name and flags of `export.pte`, read from a line or from YAML.

    8da4w g32; head8; awq-gptq; gptq g64 head8; group-size=64 kv-cache=fp32; no-quantize

`;` parts recipes and spaces the words of one. A word is a flag of export.pte, with its value behind `=`, or one of
the short ones of `SHORT`. In YAML a recipe is such a line or an object of flags; a mapping gives them names.
Flags that export.pte gets later are taken as they come: the parser is made of its own.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from checkpoints.errors import BadInput, show
from export.calibration.options import CALIBRATION, METHODS, Calibration, add_calibration, make_calibration
from export.flags import add_file, add_recipe
from export.options import ExportOptions, from_flags

DEFAULT = "8da4w; g64; emb4; head8; scales; gptq; awq-gptq; awq-gptq head8"
SHORT = {
    r"8da4w|nearest": "",  # the defaults
    r"g(\d+)": "--group-size={}",
    r"head(\d+)": "--head-bits={}",
    r"emb(\d+)": "--embedding-bits={}",
    r"float32": "--no-quantize",
    rf"({'|'.join(METHODS)})": "--calibrate={}",
}
OTHER = ("context",)  # flags that a sweep has itself


@dataclass(frozen=True)
class Recipe:
    """One line of a sweep's table."""

    name: str
    words: tuple[str, ...]  # as export.pte takes them, "--group-size=64"
    flags: dict[str, Any]  # all of them, by their names in Python

    @property
    def calibration(self) -> Calibration | None:
        """How levels are chosen; BadInput for what does not go together."""
        return make_calibration(**{key: self.flags[key] for key in CALIBRATION if key in self.flags})

    def options(self, context: int) -> ExportOptions:
        """Of a file for so many tokens."""
        rest = {key: value for key, value in self.flags.items() if key not in CALIBRATION}
        return from_flags(**rest | {"context": context})  # type: ignore[typeddict-item]


def read_recipes(given: str) -> list[Recipe]:
    """From a line, or from a YAML file by its suffix; BadInput where one cannot be read or two are the same."""
    path = Path(given)
    lines = _from_yaml(path) if path.suffix in (".yaml", ".yml") else [(None, line) for line in given.split(";")]
    recipes = [_recipe(name, line) for name, line in lines if name or line.strip()]
    if not recipes:
        raise BadInput(f"--recipes {given!r} names no recipe")
    for one in recipes:
        twins = [other.name for other in recipes if other.name == one.name or other.flags == one.flags]
        if len(twins) > 1:
            raise BadInput(f"--recipes has the same twice: {twins[0]!r} and {twins[1]!r}")
    return recipes


def _recipe(name: str | None, line: str) -> Recipe:
    words = tuple(flag for word in line.split() if (flag := _flag(word)))
    parser = _Parser(line, add_help=False, allow_abbrev=False)
    add_file(parser)
    add_recipe(parser)
    add_calibration(parser)
    flags = vars(parser.parse_args(list(words)))
    for flag in OTHER:
        if any(re.match(f"--{flag}(=|$)", word) for word in words):
            raise BadInput(f"--recipes {line.strip()!r}: --{flag} is for the whole sweep, give it beside")
        flags.pop(flag)
    return Recipe(name or " ".join(line.split()), words, flags)


def _flag(word: str) -> str:
    for pattern, flag in SHORT.items():
        if match := re.fullmatch(pattern, word):
            return flag.format(*match.groups())
    return word if word.startswith("--") else f"--{word}"


class _Parser(ArgumentParser):
    """Says what is wrong as BadInput."""

    def __init__(self, line: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.line = line

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"--recipes {self.line.strip()!r}: {message.replace('argument ', '')}")


def _from_yaml(path: Path) -> list[tuple[str | None, str]]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise BadInput(f"--recipes {path} cannot be read: {problem.strerror}") from None
    except (yaml.YAMLError, ValueError) as problem:
        raise BadInput(f"--recipes {path} is not YAML: {' '.join(str(problem).split())[:160]}") from None
    if isinstance(found, dict):
        return [(str(name), " ".join(_words(path, recipe))) for name, recipe in found.items()]
    if isinstance(found, list):
        return [(None, " ".join(_words(path, recipe))) for recipe in found]
    raise BadInput(f"--recipes {path} holds {show(found)}, not a list or a mapping of recipes")


def _words(path: Path, recipe: Any) -> Iterator[str]:
    if recipe is None or isinstance(recipe, str):
        yield recipe or ""
        return
    if not isinstance(recipe, dict):
        raise BadInput(f"--recipes {path}: {show(recipe)} is neither words nor flags with values")
    for flag, value in recipe.items():
        name = str(flag).replace("_", "-")
        if value is False:
            yield f"--no-{name}"
        elif value is True or value is None:
            yield f"--{name}"
        else:
            yield f"--{name}={value}"

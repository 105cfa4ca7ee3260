"""What may be typed after a slash."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from checkpoints.errors import BadInput
from checkpoints.files import read_json, write_whole
from export.engine.conversation import Choosing
from export.engine.media_prompt import NAMES, describe
from export.media.prompt import Kind
from export.media.settings import TEXT_ONLY
from export.terminal.attachments import as_openai, from_openai
from export.terminal.opening import read_schema
from export.terminal.state import State, speed


class Leave(Exception):
    """The talk is over."""


def obey(text: str, state: State, console: Console) -> None:
    """Do a command; BadInput where it cannot be done."""
    name, _, rest = text[1:].strip().partition(" ")
    if name not in COMMANDS:
        raise BadInput(f"there is no /{name}, /help lists commands; a space before the slash says it to the model")
    COMMANDS[name][2](rest.strip(), state, console)


def _help(rest: str, state: State, console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    for name, (arguments, what, _) in COMMANDS.items():
        table.add_row(escape(f"/{name} {arguments}"), escape(what))
    table.add_row("Alt-Enter", "another line, as within ``` and in what is pasted")
    table.add_row("Ctrl-C, Ctrl-D", "stop the answer, leave")
    console.print(table)


def _system(rest: str, state: State, console: Console) -> None:
    if rest:
        state.system = None if rest == "off" else rest
    console.print("no system text" if state.system is None else f"system: {escape(state.system)}")


def _reset(rest: str, state: State, console: Console) -> None:
    state.reset()
    console.print("a new conversation")


def _save(rest: str, state: State, console: Console) -> None:
    path = _file(rest, "save")
    try:
        messages = [as_openai(message) for message in state.messages()]
        write_whole(path, json.dumps(messages, ensure_ascii=False, indent=2).encode() + b"\n")
    except OSError as problem:
        raise BadInput(f"{path} cannot be written: {problem.strerror}") from None
    console.print(f"{len(state.messages())} turns in {escape(str(path))}")


def _load(rest: str, state: State, console: Console) -> None:
    path = _file(rest, "load")
    messages = read_json(path)
    if not isinstance(messages, list):
        raise BadInput(f"{path} is no list of messages")
    conversation = state.conversation
    try:
        messages = [from_openai(one, at, conversation.media, conversation.name) for at, one in enumerate(messages)]
        tokens = conversation.count(messages)
    except BadInput as problem:
        raise BadInput(f"{path}: {problem}") from None
    state.reset()
    system = messages[:1] if messages and messages[0]["role"] == "system" else []
    state.system = system[0]["content"] if system else None
    state.turns = messages[len(system) :]
    console.print(f"{len(messages)} turns, {tokens} tokens")


def _attach(kind: Kind, rest: str, state: State, console: Console) -> None:
    if not rest:
        raise BadInput(f"/{kind} needs the name of a file")
    if rest == "off":
        state.attached = [part for part in state.attached if part["type"] != kind]
        console.print(f"no {NAMES[kind]} goes with what you say next")
    else:
        console.print(escape(state.attach(kind, rest)), soft_wrap=True)


def _file(rest: str, name: str) -> Path:
    if not rest:
        raise BadInput(f"/{name} needs the name of a file")
    return Path(rest).expanduser()


def _stats(rest: str, state: State, console: Console) -> None:
    table, last = Table.grid(padding=(0, 2)), state.last
    table.add_row("context", f"{len(state.conversation.held)} of {state.conversation.context} tokens")
    table.add_row("answers", f"{state.answers}, {state.new_tokens} tokens")
    if last is not None:
        fed = f"{last.prompt_tokens} tokens, {last.fed_tokens} of them fed"
        table.add_row(
            "last prompt", f"{fed} in {last.prefill_ms:,.0f} ms, first token after {last.first_token_ms:,.0f} ms"
        )
        if state.conversation.media != TEXT_ONLY:
            table.add_row("mode", last.mode)
        for one in last.media:
            table.add_row(f"{NAMES[one.kind]} {one.number}", describe(one))
        table.add_row("last answer", f"{last.new_tokens} tokens, {speed(last)}, ended by {last.end}")
    console.print(table)


def _set(rest: str, state: State, console: Console) -> None:
    name, _, value = rest.partition(" ")
    if name:
        changed = replace(state.choosing, **{name: _value(name, value.strip())})
        changed.check()
        state.choosing = changed
    table = Table.grid(padding=(0, 2))
    for known in SETTABLE if not name else [name]:
        table.add_row(known, escape(_spelled(getattr(state.choosing, known))))
    console.print(table)


# Name -> how its value is read; "off" is the default of each.
SETTABLE: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
    "max_tokens": int,
    "stop": lambda text: (text.encode().decode("unicode_escape") if "\\" in text else text,),
    "schema": read_schema,
}


def _value(name: str, text: str) -> Any:
    if name not in SETTABLE:
        raise BadInput(f"there is no {name} to set, only {', '.join(SETTABLE)}")
    if text == "off":
        return getattr(Choosing(), name)
    try:
        return SETTABLE[name](text)
    except ValueError:
        raise BadInput(f"{name} {text!r} is no number") from None


def _spelled(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(repr, value)) or "off"
    return "off" if value is None else json.dumps(value)


def _exit(rest: str, state: State, console: Console) -> None:
    raise Leave


# Name -> arguments, what it does, how.
COMMANDS: dict[str, tuple[str, str, Callable[[str, State, Console], None]]] = {
    "help": ("", "this list", _help),
    "image": ("FILE | off", "a picture for what you say next, or with Enter alone", partial(_attach, "image")),
    "audio": (
        "FILE | off",
        "a sound for what you say next, or with Enter alone",
        partial(_attach, "audio"),
    ),
    "system": ("[TEXT | off]", "what the model is told before the first turn", _system),
    "reset": ("", "begin a new conversation; the system text stays", _reset),
    "set": ("[NAME VALUE | NAME off]", "how answers are chosen: /set temperature 0.7", _set),
    "stats": ("", "tokens, times and speed of the last answer", _stats),
    "save": ("FILE", "write the conversation as OpenAI's messages (JSON)", _save),
    "load": ("FILE", "go on from a saved conversation", _load),
    "exit": ("", "leave, as Ctrl-D", _exit),
}

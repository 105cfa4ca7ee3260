"""Turns of a conversation to the text that a model continues, by the chat template beside a tokenizer.

Turns are OpenAI's: content is a text or a list of text parts, an assistant's turn may have tool_calls, a tool's turn
answers one of them. Special tokens within a content stay special, whoever wrote them.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints.config import read_object
from checkpoints.errors import BadInput
from checkpoints.files import present
from export.engine.tokenizer import named_tokens, read_settings

# For a tokenizer without a template. The apps have the same in export/bench/contract/bundled/contract.json.
PHI4_MINI = "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}<|end|>{% endfor %}<|assistant|>"

# White_Space of Unicode: what lstrip and rstrip of an added token remove (Python's \s has four more).
SPACES = "[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"


# Of a template that has them in the turn, as Phi-4-mini's, and not in a variable of their own.
TOOLS_IN_TURN = re.compile(r"""\[['"]tools['"]\]|\bmessage\.tools\b""")
Turn = dict[str, Any]


def chat_prompt(folder: Path, messages: list[Turn], tools: list[dict[str, Any]] | None = None) -> str:
    """The text of a conversation for the runner to answer; `folder` is a checkpoint's or that of a .pte.

    Rendered by transformers' sandboxed Jinja from chat_template.jinja, else tokenizer_config.json (`folder`
    may be this file), else Phi-4-mini's format; less the white space that added tokens of tokenizer.json
    strip, since the runner does not. Special tokens within a message stay special. `tools` are OpenAI's;
    BadInput where the template has no place for them.
    """
    from transformers.utils.chat_template_utils import render_jinja_template  # slow to import

    folder = folder.parent if folder.is_file() else folder
    settings = read_settings(folder)
    template = _chat_template(folder, settings)
    turns = [_turn(at, message, template) for at, message in enumerate(messages)]
    variables = named_tokens(settings)
    for tool in tools or ():
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadInput(f"tools must be a list of functions with a name, one is {reprlib.repr(tool)}")
    if tools and TOOLS_IN_TURN.search(template):
        turns = _with_tools(turns, tools)
    elif tools and re.search(r"\btools\b", template):
        variables["tools"] = tools
    elif tools:
        raise BadInput(f"{folder}: the chat template has no place for tools")
    try:
        texts = render_jinja_template([turns], chat_template=template, add_generation_prompt=True, **variables)[0]
    except Exception as problem:  # the template is a stranger's program: it may raise anything
        reason = f"{type(problem).__name__}: {problem}"
        raise BadInput(f"{folder}: the chat template cannot be rendered: {reason}") from None
    return _strip_spaces(folder, texts[0])


def _turn(at: int, message: Any, template: str) -> Turn:
    """A message as templates expect it: content is a string, arguments of calls are objects."""
    shown = f"it is {reprlib.repr(message)}"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadInput(f"messages[{at}] must have a string 'role', {shown}")
    calls, content = message.get("tool_calls"), message.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise BadInput(f"messages[{at}]: parts of a content must be texts, {shown}")
        content = "\n".join(part["text"] for part in content)
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise BadInput(f"messages[{at}] must have a string 'content', {shown}")
    turn = {**message, "content": content}
    if not calls:
        turn.pop("tool_calls", None)
        return turn
    try:
        functions = [dict(call["function"]) for call in calls]
        for function in functions:
            if isinstance(function["arguments"], str):
                function["arguments"] = json.loads(function["arguments"])
        named = [{"name": function["name"], "arguments": function["arguments"]} for function in functions]
    except (KeyError, TypeError, ValueError):
        raise BadInput(
            f"messages[{at}]: tool_calls must have functions with name and JSON arguments, {shown}"
        ) from None
    if "tool_calls" in template:
        return turn | {"tool_calls": [{**call, "function": one} for call, one in zip(calls, functions, strict=True)]}
    del turn["tool_calls"]  # the template knows content alone: as Phi-4-mini was taught to write calls
    return turn | {"content": f"{content}<|tool_call|>{json.dumps(named, ensure_ascii=False)}<|/tool_call|>"}


def _with_tools(turns: list[Turn], tools: list[dict[str, Any]]) -> list[Turn]:
    """The tools as JSON text in the system's turn, each without OpenAI's wrapping."""
    text = json.dumps([tool.get("function", tool) for tool in tools], ensure_ascii=False)
    if not turns or turns[0]["role"] != "system":
        turns = [{"role": "system", "content": ""}, *turns]
    return [turns[0] | {"tools": text}, *turns[1:]]


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str:
    if present(path := folder / "chat_template.jinja"):
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        try:
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        except (KeyError, TypeError):
            raise BadInput(f"{folder}: chat_template has entries without name and template") from None
    if not isinstance(template, str | None):
        raise BadInput(f"{folder}: the chat template is not a text: {reprlib.repr(template)}")
    return PHI4_MINI if template is None else template


def _strip_spaces(folder: Path, text: str) -> str:  # what added tokens with lstrip or rstrip would swallow
    path = folder / "tokenizer.json"
    added = read_object(path).get("added_tokens") if path.is_file() else None
    added = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    for flag, form in (("rstrip", "({})" + SPACES), ("lstrip", SPACES + "({})")):
        if names := [re.escape(str(token.get("content"))) for token in added if token.get(flag)]:
            text = re.sub(form.format("|".join(sorted(names, key=len, reverse=True))), r"\1", text)
    return text

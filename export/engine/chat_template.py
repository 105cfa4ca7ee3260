"""Turns of a conversation to the text that a model continues, by the chat template beside a tokenizer."""

from __future__ import annotations

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


def chat_prompt(folder: Path, messages: list[dict[str, Any]]) -> str:
    """The text of a conversation for the runner to answer; `folder` is a checkpoint's or that of a .pte.

    Rendered by transformers' sandboxed Jinja from chat_template.jinja, else tokenizer_config.json (`folder`
    may be this file), else Phi-4-mini's format; less the white space that added tokens of tokenizer.json
    strip, since the runner does not. Special tokens within a message stay special.
    """
    from transformers.utils.chat_template_utils import render_jinja_template  # slow to import

    folder = folder.parent if folder.is_file() else folder
    for at, message in enumerate(messages):
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise BadInput(f"messages[{at}] must have a string {key!r}, it is {reprlib.repr(message)}")
    settings = read_settings(folder)
    try:
        texts = render_jinja_template(
            [messages],
            chat_template=_chat_template(folder, settings),
            add_generation_prompt=True,
            **named_tokens(settings),
        )[0]
    except Exception as problem:  # the template is a stranger's program: it may raise anything
        reason = f"{type(problem).__name__}: {problem}"
        raise BadInput(f"{folder}: the chat template cannot be rendered: {reason}") from None
    return _strip_spaces(folder, texts[0])


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str:
    if present(path := folder / "chat_template.jinja"):
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return PHI4_MINI if template is None else template


def _strip_spaces(folder: Path, text: str) -> str:  # what added tokens with lstrip or rstrip would swallow
    path = folder / "tokenizer.json"
    added = read_object(path).get("added_tokens") if path.is_file() else None
    added = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    for flag, form in (("rstrip", "({})" + SPACES), ("lstrip", SPACES + "({})")):
        if names := [re.escape(str(token.get("content"))) for token in added if token.get(flag)]:
            text = re.sub(form.format("|".join(sorted(names, key=len, reverse=True))), r"\1", text)
    return text

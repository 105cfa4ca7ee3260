"""What the page shows, and what a model is to read of it: messages with texts, notes and files.

A note is a message with a title, which the page shows folded. The model never reads notes.
"""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Sequence
from inspect import cleandoc
from pathlib import Path
from typing import Any

from checkpoints.errors import BadInput
from export.server.held import Hold
from export.server.uploads import is_upload

Shown = dict[str, Any]  # a message as Gradio has it: role, content, metadata


def note(title: str, text: str = "") -> Shown:
    """A line under an answer; the text is folded."""
    return _message(text, {"title": title, "status": "done"})


def pending(title: str) -> Shown:
    """A line under an answer that is not at its end."""
    return _message("", {"title": title, "status": "pending"})


def said(text: str, under: Shown) -> list[Shown]:
    return [_message(text), under] if text else [under]


def _message(text: str, metadata: dict[str, str] | None = None) -> Shown:
    # Gradio would take the margin from a bare string.
    return {"role": "assistant", "content": [{"type": "text", "text": text}], "metadata": metadata or {}}


def stopped(history: list[Shown]) -> list[Shown]:
    """A history whose last note does not wait for anything any more."""
    last = (history[-1].get("metadata") or {}) if history else {}
    if last.get("status") != "pending":
        return history
    told = f"stopped · {last['title']}" if len(history) > 1 and history[-2]["role"] == "assistant" else "stopped"
    return [*history[:-1], note(told)]


def messages_of(history: Sequence[Shown], message: str | dict[str, Any], system: str) -> list[dict[str, Any]]:
    """What the model is to read for a new question: no notes, and no question that was not answered.

    A content is text, or parts: OpenAI's for text and {"type": "file", "path": …} for files.
    """
    given: dict[str, Any] = {"text": message} if isinstance(message, str) else message
    turns = [
        {"role": one["role"], "content": _content(one["content"])}
        for one in history
        if not (one.get("metadata") or {}).get("title")
    ]
    # Gradio shows a question without its margin and hands it back so in the next turn.
    # It gives a question's files by path, and those of one that is asked again as they stand in the history.
    files: list[Any] = [{"file": one if isinstance(one, dict) else {"path": one}} for one in given.get("files") or []]
    asked = [*files, {"text": cleandoc(given.get("text") or "")}]
    turns.append({"role": "user", "content": _content(asked)})
    following = [one["role"] for one in turns[1:]] + [""]
    kept = [one for one, after in zip(turns, following, strict=True) if not one["role"] == after == "user"]
    return [{"role": "system", "content": system}, *kept] if system.strip() else kept


def _content(parts: Sequence[dict[str, Any]]) -> str | list[dict[str, Any]]:
    text = "".join(part.get("text") or "" for part in parts)
    files = [{"type": "file", "path": part["file"]["path"]} for part in parts if part.get("file")]
    return [*files, {"type": "text", "text": text}] if files else text


def with_files(messages: Sequence[dict[str, Any]], hold: Hold) -> list[dict[str, Any]]:
    """Messages with OpenAI's parts where `messages_of` has files; BadInput where one is gone."""
    return [
        message | {"content": [_sent(part, hold) for part in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]


def _sent(part: dict[str, Any], hold: Hold) -> dict[str, Any]:
    if part["type"] != "file":
        return part
    path = Path(part["path"])
    if not is_upload(part["path"]):
        raise BadInput(f"{path.name} is not on the server any more: begin a new chat")
    hold.add(path.stat().st_size)
    data = base64.b64encode(path.read_bytes()).decode()
    kind = mimetypes.guess_type(path.name)[0] or ""
    if kind.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}  # its content says which it is


def named(sentence: str, messages: Sequence[dict[str, Any]]) -> str:
    """A sentence with the names of files in place of OpenAI's places for them."""
    for at, message in enumerate(messages):
        for number, part in enumerate(message["content"] if isinstance(message["content"], list) else []):
            if part["type"] == "file":
                sentence = sentence.replace(f"messages[{at}].content[{number}]", Path(part["path"]).name)
    return sentence

"""Files of pictures and sound that go with a turn, and such turns as OpenAI's messages, to be saved and taken up."""

from __future__ import annotations

import base64
import binascii
import mimetypes
import shlex
from pathlib import Path
from typing import Any

from checkpoints.errors import BadInput
from export.engine.media_prompt import check_takes
from export.media.prompt import Kind
from export.media.settings import MediaFacts


def find_path(typed: str) -> Path:
    """The file that was typed, dropped or completed: with spaces as they are, quoted or escaped; ~ is the home."""
    if not (path := Path(typed).expanduser()).exists():
        try:
            words = shlex.split(typed)
        except ValueError:  # a quote that is not closed
            words = []
        if len(words) == 1:
            path = Path(words[0]).expanduser()
    return path


def read_part(kind: Kind, source: Path | bytes, name: str, media: MediaFacts, place: str) -> dict[str, Any]:
    """A part of a message, as `Conversation.reply` takes it, with the file itself; BadInput where it cannot be used.

    `place` is the file that takes it, for the sentence.
    """
    check_takes([kind], media, place)
    if kind == "image":
        from export.media.picture_files import read_picture  # needs the extra

        content: Any = read_picture(source, name)
    else:
        from export.media.sound_files import read_sound  # needs the extra

        assert media.audio is not None
        content = read_sound(source, media.audio, name)
    data = source if isinstance(source, bytes) else source.read_bytes()
    return {"type": kind, kind: content, "data": data, "name": name}


def as_openai(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose pictures are data URLs, and sounds base64."""
    if not isinstance(message["content"], list):
        return message
    return message | {"content": [_part_as_openai(part) for part in message["content"]]}


def from_openai(message: Any, at: int, media: MediaFacts, place: str) -> Any:
    """The other way round; what is no such part stays for others to complain about."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    where = f"messages[{at}]"
    parts = [_part_from_openai(part, where, media, place) for part in message["content"]]
    return message | {"content": parts}


def _part_as_openai(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    data = base64.b64encode(part["data"]).decode()
    if part["type"] == "image":
        kind = mimetypes.guess_type(part["name"])[0] or "application/octet-stream"
        return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
    return {"type": "input_audio", "input_audio": {"data": data, "format": Path(part["name"]).suffix[1:].lower()}}


def _part_from_openai(part: Any, where: str, media: MediaFacts, place: str) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("image_url", "input_audio"):
        return part
    inner = part.get(kind)
    text = inner.get("url" if kind == "image_url" else "data") if isinstance(inner, dict) else None
    if not isinstance(text, str):
        raise BadInput(f"{where} has {kind} without its data")
    if kind == "image_url":
        head, _, text = text.partition(",")
        if not (head.startswith("data:") and head.endswith(";base64")):
            raise BadInput(f"{where} has a picture elsewhere: only data URLs (data:image/png;base64,…) are read")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadInput(f"{where} has {kind} that is not base64") from None
    if kind == "image_url":
        suffix = mimetypes.guess_extension(head[len("data:") : -len(";base64")]) or ""
        return read_part("image", data, f"picture{suffix}", media, place)
    suffix = inner.get("format")
    return read_part("audio", data, f"sound.{suffix}" if isinstance(suffix, str) else "sound", media, place)

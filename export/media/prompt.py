"""Messages with pictures and sound to text with placeholders, and that text to token ids with room for them.

`<|image_2|>` stands for the second picture of a conversation, `<|audio_1|>` for its first sound. What a picture or a
sound is does not matter here, nor which chat template makes one text of the messages in between. What a model or a
tool has written stands for nothing, also where it looks the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from checkpoints.errors import BadInput, show

Kind = Literal["image", "audio"]
Mode = Literal["text", "vision", "speech"]
KINDS: tuple[Kind, ...] = ("image", "audio")
PLACEHOLDER = re.compile(r"<\|(image|audio)_([0-9]{1,9})\|>")
SAYING = ("assistant", "tool")  # roles whose texts have no placeholders
MARK = "\ufdd0"  # in what looks like one there, until it is tokens; no character, so that no template changes it
MARKED = re.compile(rf"<\|{MARK}((image|audio)_[0-9]{{1,9}}\|>)")


@dataclass(frozen=True)
class Placed:
    """Messages whose contents are text, and what their placeholders stand for."""

    messages: list[dict[str, Any]]
    images: list[Any]  # as they stood in the parts; `<|image_1|>` is the first
    audios: list[Any]


@dataclass(frozen=True)
class Span:
    """The tokens [start, stop) of a prompt that are a picture's or a sound's."""

    kind: Kind
    number: int  # from 1 on
    start: int
    stop: int


@dataclass(frozen=True)
class Prompt:
    """A whole prompt as token ids, those of a picture or sound repeated as often as it has tokens."""

    ids: list[int]
    spans: list[Span]  # in the order of the prompt
    mode: Mode


def place(messages: Sequence[Mapping[str, Any]]) -> Placed:
    """Make text of contents that are lists of parts; contents that are text stay as they are.

    Parts are {"type": "text", "text": str}, {"type": "image", "image": X} and {"type": "audio", "audio": X}. Pictures
    and sounds are numbered through the conversation, each kind by itself. A message whose text has placeholders of
    a kind must have them for all of its own; in any other a placeholder is put where the part stands. What looks like
    one in a text of the assistant or of a tool is marked, for `tokenize`. BadInput for other parts and for wrong
    numbers.
    """
    items: dict[Kind, list[Any]] = {"image": [], "audio": []}
    placed = []
    for at, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise BadInput(f"messages[{at}] must have a string 'role', it is {_short(message)}")
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            content = ""
        words = _marked if message.get("role") in SAYING else str
        if isinstance(content, list):
            content = _text(content, items, words, f"messages[{at}]")
        elif isinstance(content, str):
            content = words(content)
        else:
            raise BadInput(
                f"messages[{at}] must have a text or a list of parts as 'content', it is {_short(content)}"
            )
        placed.append({**message, "content": content})
    whole = "".join(message["content"] for message in placed)
    _find(whole, {kind: len(items[kind]) for kind in KINDS})
    return Placed(placed, items["image"], items["audio"])


def mode_of(images: int, audios: int) -> Mode:
    """Which adapter and which projection of sound a prompt needs: a picture decides, with or without sound."""
    return "vision" if images else "speech" if audios else "text"


def tokenize(
    text: str,
    encode: Callable[[str], list[int]],
    *,
    image_tokens: Sequence[int] = (),
    audio_tokens: Sequence[int] = (),
    image_id: int | None,
    audio_id: int | None,
) -> Prompt:
    """Token ids of a text with placeholders; how many tokens each picture and sound has, in the order of numbers.

    `image_id` and `audio_id` stand for a row of them, None where a model takes none.
    `encode` gives the ids of a piece of text, special tokens parsed and none added. BadInput for placeholders without
    a picture or sound, missing ones, doubled ones, and where the text itself holds the tokens that stand for them.
    """
    counts: dict[Kind, Sequence[int]] = {"image": image_tokens, "audio": audio_tokens}
    found = _find(text, {kind: len(counts[kind]) for kind in KINDS})
    own = {kind: token for kind, token in (("image", image_id), ("audio", audio_id)) if token is not None}
    ids: list[int] = []
    spans = []

    def add(piece: str) -> None:
        new = encode(MARKED.sub(r"<|\1", piece)) if piece else []
        for kind, token in own.items():
            if token in new:
                raise BadInput(f"the prompt's text holds token {token}, which stands for an {kind}: leave it out")
        ids.extend(new)

    end = 0
    for match, kind, number in found:
        add(text[end : match.start()])
        end = match.end()
        start = len(ids)
        ids += [own[kind]] * counts[kind][number - 1]
        spans.append(Span(kind, number, start, len(ids)))
    add(text[end:])
    return Prompt(ids, spans, mode_of(len(image_tokens), len(audio_tokens)))


def _marked(text: str) -> str:
    return PLACEHOLDER.sub(lambda match: f"<|{MARK}{match[0][2:]}", text)


def _text(parts: list[Any], items: dict[Kind, list[Any]], words: Callable[[str], str], where: str) -> str:
    """One message's parts as text; appends its pictures and sounds to `items`."""
    for at, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", *KINDS) or kind not in part or (kind == "text" and not isinstance(part["text"], str)):
            raise BadInput(f"{where}: part {at} is {_short(part)}, not a text, an image or an audio")
    written = words("".join(part["text"] for part in parts if part["type"] == "text"))
    given = {match[1] for match in PLACEHOLDER.finditer(written)}
    text = ""
    for part in parts:
        if (kind := part["type"]) == "text":
            text += words(part["text"])
            continue
        items[kind].append(part[kind])
        if kind not in given:
            text += f"<|{kind}_{len(items[kind])}|>"
    return text


def _find(text: str, counts: Mapping[Kind, int]) -> list[tuple[re.Match[str], Kind, int]]:
    """All placeholders in order; BadInput unless those of each kind are 1 to its count, once each."""
    found: list[tuple[re.Match[str], Kind, int]] = []
    seen = set()
    for match in PLACEHOLDER.finditer(text):
        kind: Kind = "image" if match[1] == "image" else "audio"
        number, count = int(match[2]), counts[kind]
        if not 1 <= number <= count:
            given = {0: f"no {kind} is given", 1: f"1 {kind} is given"}.get(count, f"{count} are given")
            raise BadInput(f"the prompt says {match[0]}, {given}")
        if (kind, number) in seen:
            raise BadInput(f"the prompt says {match[0]} twice")
        seen.add((kind, number))
        found.append((match, kind, number))
    for kind in KINDS:
        for number in range(1, counts[kind] + 1):
            if (kind, number) not in seen:
                raise BadInput(f"the prompt has no <|{kind}_{number}|>, but {counts[kind]} of that kind are given")
    return found


def _short(value: Any) -> str:
    """A part for a sentence; what is no JSON (bytes of a picture, say) by its type."""
    try:
        return show(value)
    except (TypeError, ValueError, RecursionError):
        return f"of type {type(value).__name__}"

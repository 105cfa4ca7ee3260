"""Messages with pictures and sound to a prompt of ids: how many they take is known before anything is encoded.

Knows sizes, placeholders and media ids; nothing of engines. Needs Pillow only where there are pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from checkpoints.errors import BadInput
from export.engine.media_ids import media_ids, picture_id, sound_id
from export.media.prompt import Kind, Mode, Placed, mode_of, place, tokenize
from export.media.settings import AudioSettings, ImageSettings, MediaFacts
from export.media.sounds import frames, pieces, tokens

if TYPE_CHECKING:
    from export.media.sound_files import Sound

NAMES: dict[Kind, str] = {"image": "picture", "audio": "sound"}


@dataclass(frozen=True)
class Item:
    """A picture or a sound of a prompt, not encoded yet."""

    kind: Kind
    number: int  # as in its placeholder, from 1 on
    content: Any  # pixels, uint8 [height, width, 3], or a Sound
    tokens: int
    parts: int  # to encode: crops of a picture, pieces of a sound
    first_id: int
    stop: int  # where its ids end in the prompt


@dataclass(frozen=True)
class MediaPrompt:
    """A whole prompt: text ids, and below zero those of pictures and sound."""

    ids: list[int]
    items: tuple[Item, ...] = ()  # in the order of the prompt
    mode: Mode = "text"


def has_media(messages: Sequence[Any]) -> bool:
    """Whether a content is a list with parts that are pictures or sound."""
    contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(isinstance(part, Mapping) and part.get("type") in NAMES for part in parts)


def take_media(messages: Sequence[Mapping[str, Any]], media: MediaFacts, name: str) -> Placed:
    """Messages with placeholders in their texts; BadInput where the file `name` does not take what is given."""
    placed = place(messages)
    for found, settings, kind, modality in (
        (placed.images, media.image, "pictures", "vision"),
        (placed.audios, media.audio, "sound", "audio"),
    ):
        if found and settings is None:
            raise BadInput(f"{name} takes no {kind}: it was exported without the modality {modality}")
    return placed


def with_media(text: str, placed: Placed, encode: Callable[[str], list[int]], media: MediaFacts) -> MediaPrompt:
    """The prompt of a text that has the placeholders of `placed`; BadInput for sizes that cannot be encoded."""
    mode = mode_of(len(placed.images), len(placed.audios))
    sizes: dict[Kind, list[tuple[int, int]]] = {
        "image": [_picture_size(pixels, media.image, at) for at, pixels in enumerate(placed.images, 1)],
        "audio": [_sound_size(sound, media.audio, at) for at, sound in enumerate(placed.audios, 1)],
    }
    prompt = tokenize(
        text,
        encode,
        image_tokens=[count for count, _ in sizes["image"]],
        audio_tokens=[count for count, _ in sizes["audio"]],
        image_id=media.image_id,
        audio_id=media.audio_id,
    )
    ids, items = list(prompt.ids), []
    for span in prompt.spans:
        content = (placed.images if span.kind == "image" else placed.audios)[span.number - 1]
        count, parts = sizes[span.kind][span.number - 1]
        first = picture_id(content) if span.kind == "image" else sound_id(content.samples, content.rate, mode)
        ids[span.start : span.stop] = media_ids(first, count)
        items.append(Item(span.kind, span.number, content, count, parts, first, span.stop))
    return MediaPrompt(ids, tuple(items), mode)


def check_room(prompt: MediaPrompt, context: int, media: MediaFacts) -> None:
    """Raise BadInput, with what takes how many tokens, where a prompt leaves no room in the context."""
    if len(prompt.ids) < context:
        return
    if not prompt.items:
        raise BadInput(f"the prompt has {len(prompt.ids)} tokens, the context is {context}")
    shares = [_share("image", prompt.items), _share("audio", prompt.items)]
    text = len(prompt.ids) - sum(item.tokens for item in prompt.items)
    told = ", ".join([*filter(None, shares), f"text: {text}"])
    flags = "a larger --context"
    if media.image is not None and any(item.kind == "image" and item.parts > 2 for item in prompt.items):
        flags = f"a smaller --max-crops than {media.image.max_crops} or {flags}"
    raise BadInput(
        f"the prompt has {len(prompt.ids)} tokens ({told}), the context is {context}: export the file with {flags}"
    )


def _share(kind: Kind, items: Sequence[Item]) -> str:
    found = [item.tokens for item in items if item.kind == kind]
    if not found:
        return ""
    return f"{len(found)} {NAMES[kind]}{'s' if len(found) > 1 else ''}: {sum(found)}"


def _picture_size(pixels: Any, settings: ImageSettings | None, number: int) -> tuple[int, int]:
    """Tokens and crops."""
    from export.media.pictures import tile  # needs Pillow

    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise BadInput(f"picture {number} is {_short(pixels)}, not RGB pixels: uint8 [height, width, 3]")
    if 0 in pixels.shape:
        raise BadInput(f"picture {number} is {pixels.shape[1]} x {pixels.shape[0]} pixels, there is nothing to see")
    plan = tile(pixels.shape[1], pixels.shape[0], cast(ImageSettings, settings), f"picture {number}")
    return plan.tokens, len(plan.valid)


def _sound_size(sound: Sound, settings: AudioSettings | None, number: int) -> tuple[int, int]:
    """Tokens and pieces."""
    settings = cast(AudioSettings, settings)
    samples, rate = getattr(sound, "samples", None), getattr(sound, "rate", None)
    if not isinstance(samples, np.ndarray) or samples.dtype != np.float32 or samples.ndim != 1:
        raise BadInput(f"sound {number} is {_short(sound)}, not samples of one channel: float32 [n]")
    if rate not in (settings.rate, settings.rate // 2):
        raise BadInput(f"sound {number} has {rate} samples a second, not {settings.rate} or half of it")
    total = frames(len(samples), rate, settings, f"sound {number}")
    return tokens(total, settings), len(list(pieces(total, settings)))


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"of type {type(value).__name__}"

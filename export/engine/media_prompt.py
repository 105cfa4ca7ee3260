"""Messages with pictures and sound to a prompt of ids: how many they take is known before anything is encoded.

Knows sizes, placeholders and media ids; of engines only what encodes. Needs Pillow only where there are pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from checkpoints.errors import BadInput
from export.engine.media_ids import Encoded, OnPart, media_ids, picture_id, sound_id
from export.engine.runner import Facts
from export.media.prompt import Kind, Mode, Placed, mode_of, place, tokenize
from export.media.settings import AudioSettings, ImageSettings, MediaFacts
from export.media.sounds import frames, pieces, tokens

if TYPE_CHECKING:
    from export.media.sound_files import Sound

OnEncoding = Callable[[int, int], object]  # parts that have been encoded, of all
NAMES: dict[Kind, str] = {"image": "picture", "audio": "sound"}


class Encoder(Protocol):
    """An engine or a feeder."""

    def picture(self, pixels: np.ndarray, on_part: OnPart) -> Encoded: ...

    def sound(self, samples: np.ndarray, rate: int, mode: Mode, on_part: OnPart) -> Encoded: ...


@dataclass(frozen=True)
class EncodedMedia:
    """A picture or a sound of a prompt."""

    kind: Kind
    number: int  # as in its placeholder, from 1 on
    tokens: int
    parts: int  # crops of a picture, pieces of a sound
    reused: bool  # from an earlier prompt, or the same one before
    prepare_ms: float
    encode_ms: float


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

    def told(self, encoded: Encoded) -> EncodedMedia:
        """What an engine says of it."""
        if (encoded.first_id, encoded.count) != (self.first_id, self.tokens):
            raise RuntimeError(
                f"{NAMES[self.kind]} {self.number} is {self.tokens} tokens from {self.first_id} in the prompt, "
                f"{encoded.count} from {encoded.first_id} in the engine"
            )
        times = encoded.prepare_ms, encoded.encode_ms
        return EncodedMedia(self.kind, self.number, self.tokens, encoded.parts, encoded.reused, *times)


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


def check_takes(kinds: Iterable[Kind], media: MediaFacts, name: str) -> None:
    """Raise BadInput where the file `name` takes nothing of a kind."""
    for kind in kinds:
        if kind == "image" and media.image is None:
            raise BadInput(f"{name} takes no pictures: it was exported without the modality vision")
        if kind == "audio" and media.audio is None:
            raise BadInput(f"{name} takes no sound: it was exported without the modality audio")


def take_media(messages: Sequence[Mapping[str, Any]], media: MediaFacts, name: str) -> Placed:
    """Messages with placeholders in their texts; BadInput where the file `name` does not take what is given."""
    placed = place(messages)
    found: dict[Kind, list[Any]] = {"image": placed.images, "audio": placed.audios}
    check_takes([kind for kind in found if found[kind]], media, name)
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


def encode(
    items: Sequence[Item],
    mode: Mode,
    encoder: Encoder,
    on_part: OnPart = lambda: None,
    on_encoding: OnEncoding = lambda done, of: None,
) -> Iterator[EncodedMedia]:
    """Have an engine encode pictures and sounds of a prompt of `mode`, one after the other."""
    done, of, before = 0, sum(item.parts for item in items), 0

    def part() -> None:
        nonlocal done
        on_part()
        on_encoding(min(done, of - 1), of)
        done += 1

    for item in items:
        done = before
        if item.kind == "image":
            found = encoder.picture(item.content, part)
        else:
            found = encoder.sound(item.content.samples, item.content.rate, mode, part)
        before += item.parts
        yield item.told(found)
    if items:
        on_encoding(of, of)


def describe(one: EncodedMedia) -> str:
    """A line for people."""
    part = {"image": "crop", "audio": "piece"}[one.kind] + ("s" if one.parts > 1 else "")
    if one.reused:
        return f"{one.tokens} tokens, {one.parts} {part}, encoded before"
    times = f"prepared in {one.prepare_ms:,.0f} ms, encoded in {one.encode_ms:,.0f} ms"
    return f"{one.tokens} tokens, {one.parts} {part}, {times}"


def check_text(ids: Sequence[int], media: MediaFacts) -> None:
    """Raise BadInput where ids that are said to be text hold one that stands for pictures or sound."""
    for kind, token in (("image", media.image_id), ("audio", media.audio_id)):
        if token is not None and token in ids:
            raise BadInput(f"the prompt holds token {token}, which stands for an {kind}: leave it out")


def check_room(prompt: MediaPrompt, context: int, facts: Facts) -> None:
    """Raise BadInput, with what takes how many tokens, where a prompt leaves no room in `context`, or the file's."""
    if len(prompt.ids) < context:
        return
    if not prompt.items:
        raise BadInput(f"the prompt has {len(prompt.ids)} tokens, the context is {context}")
    shares = [_share("image", prompt.items), _share("audio", prompt.items)]
    text = len(prompt.ids) - sum(item.tokens for item in prompt.items)
    told = ", ".join([*filter(None, shares), f"text: {text}"])
    cut = any(item.kind == "image" and item.parts > 2 for item in prompt.items)
    if len(prompt.ids) < facts.context:
        help = f"that of the file is {facts.context}, a larger --context allows more"
    elif cut and facts.media.image is not None:
        help = f"export the file with a smaller --max-crops than {facts.media.image.max_crops} or a larger --context"
    else:
        help = "export the file with a larger --context"
    raise BadInput(f"the prompt has {len(prompt.ids)} tokens ({told}), the context is {context}: {help}")


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

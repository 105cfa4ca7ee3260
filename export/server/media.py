"""Pictures and sound of a request, as they were sent, to what a conversation takes; strangers' files, within limits.

Data URLs and base64 are what is read. Pictures of other hosts are fetched where the server was told that it may. What
a file is its content says, whatever it is called.
"""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from checkpoints.errors import BadInput
from export.media.pictures import tile
from export.media.settings import ImageSettings, MediaFacts
from export.media.sounds import frames
from export.server.errors import Refused
from export.server.held import Hold
from export.server.requests import Given
from export.server.settings import Settings

Fetch = Callable[[str, str], bytes]  # a URL and the place it stands in, for sentences
WORDS = {"image": "pictures", "audio": "sound"}
_one_at_a_time = threading.Lock()  # a picture in the making takes up to seven bytes for each of its pixels


def no_fetch(url: str, name: str) -> bytes:
    """For servers that ask no other host."""
    raise Refused(
        400,
        f"{name} is at another host, which this server does not ask (--allow-remote-media): send it as a data URL",
        code="remote_media",
    )


@dataclass(frozen=True)
class Reader:
    """How one request's pictures and sound are read."""

    settings: Settings
    hold: Hold
    fetch: Fetch = no_fetch

    def messages(self, messages: list[dict[str, Any]], media: MediaFacts) -> list[dict[str, Any]]:
        """Messages with pixels and samples where a `Given` was, for a file that takes `media`.

        Refused where the file takes no such thing, and for what is none. Takes long: for a thread.
        """
        given = [part[part["type"]] for message in messages for part in parts_of(message) if part["type"] != "text"]
        for one in given:
            if (media.image if one.kind == "image" else media.audio) is None:
                raise Refused(400, _not_taken(one, media), param=one.part, code="unsupported_content")
        if len(given) > (most := self.settings.max_media):
            what = f"the messages have {len(given)} pictures and sounds, {most} are possible"
            raise Refused(400, what, param="messages", code="too_many_media")
        return [self._message(message, media) if parts_of(message) else message for message in messages]

    def _message(self, message: dict[str, Any], media: MediaFacts) -> dict[str, Any]:
        content = []
        for part in message["content"]:
            if (given := part.get(part["type"])) and isinstance(given, Given):
                part = part | {given.kind: self._read(given, media)}
            content.append(part)
        return message | {"content": content}

    def _read(self, given: Given, media: MediaFacts) -> Any:
        try:
            data = self._bytes(given)
            found = self._picture(data, given, media) if given.kind == "image" else self._sound(data, given, media)
        except BadInput as problem:
            sentence = " ".join(str(problem).split())
            raise Refused(400, sentence, param=given.param, code=f"invalid_{given.kind}") from None
        except Refused as problem:
            problem.param = problem.param or given.param
            raise
        return found

    def _bytes(self, given: Given) -> bytes:
        most, text = self.settings.max_file_bytes, given.source
        if given.kind == "image" and text[:5].lower() != "data:":
            return self._fetched(given)
        if text[:5].lower() == "data:":
            head, comma, text = text.partition(",")
            if not comma or not head.lower().endswith(";base64"):
                raise BadInput(f"{given.name} has a data URL that is no base64: data:image/jpeg;base64,… is read")
        if len(text) * 3 // 4 > most + 4:
            raise _too_large(given, most)
        try:
            data = base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            raise BadInput(f"{given.name} is not base64") from None
        if len(data) > most:
            raise _too_large(given, most)
        return data

    def _fetched(self, given: Given) -> bytes:
        try:
            scheme = urlsplit(given.source).scheme
        except ValueError:
            scheme = ""
        if scheme not in ("http", "https"):
            raise BadInput(f"{given.name} has the URL {given.source!r:.80}, it must begin with data: or https:")
        return self.fetch(given.source, given.name)

    def _picture(self, data: bytes, given: Given, media: MediaFacts) -> np.ndarray:
        from export.media.picture_files import read_picture  # Pillow, where there are pictures

        assert media.image is not None
        with _one_at_a_time:
            pixels = read_picture(data, given.name, max_pixels=self.settings.max_pixels)
            pixels = shrunk(pixels, media.image, given.name)
        self.hold.add(pixels.nbytes)
        return pixels

    def _sound(self, data: bytes, given: Given, media: MediaFacts) -> Any:
        from export.media.sound_files import read_sound

        assert media.audio is not None
        with _one_at_a_time:
            sound = read_sound(data, media.audio, given.name, max_seconds=self.settings.max_seconds)
        frames(len(sound.samples), sound.rate, media.audio, given.name)  # not too short for one
        self.hold.add(sound.samples.nbytes)
        return sound


def shrunk(pixels: np.ndarray, settings: ImageSettings, name: str) -> np.ndarray:
    """A picture as small as it will be scaled to anyway, so that requests that wait hold no megapixels.

    Where the scaled one would not be cut alike it stays as it is. BadInput for one that is too narrow to be cut.
    """
    from export.media.picture_files import resize

    height, width = pixels.shape[:2]
    plan = tile(width, height, settings, name)
    if plan.width * plan.height >= width * height or tile(plan.width, plan.height, settings, name) != plan:
        return pixels
    return resize(pixels, plan.width, plan.height)


def parts_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a message that has more than text."""
    content = message["content"]
    return content if isinstance(content, list) else []


def _not_taken(given: Given, media: MediaFacts) -> str:
    taken = ["text", *(["pictures"] if media.image else []), *(["sound"] if media.audio else [])]
    sent = "image_url" if given.kind == "image" else "input_audio"
    return f"{given.name} is {sent!r}, this model reads {' and '.join(taken)} only"


def _too_large(given: Given, most: int) -> Refused:
    return Refused(413, f"{given.name} is larger than {most} bytes", param=given.param, code="file_too_large")

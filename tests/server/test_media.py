"""Pictures and sound of strangers: what is read reaches the conversation as it is, all else is refused."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any

import httpx
import numpy as np
import pytest

from export.media.vectors import painted, read, tone
from tests.server.fake import FakeConversation, fake_model, running
from tests.server.running import HTTP
from tests.tools import need

need("media", [name for name in ("PIL", "soundfile", "soxr") if find_spec(name) is None], "uv sync --extra")

import soundfile  # noqa: E402
from PIL import Image  # noqa: E402

from export.media.pictures import prepare, tile  # noqa: E402
from export.media.settings import MediaFacts  # noqa: E402
from export.server.media import shrunk  # noqa: E402

PATH = "/v1/chat/completions"
_, IMAGES, SOUNDS = read()
MEDIA = MediaFacts(IMAGES, 5, SOUNDS, 6)
LIMITS: dict[str, Any] = {"max_media": 3, "max_file_bytes": 300_000, "max_seconds": 3.0, "max_pixels": 500_000}


def picture_file(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def sound_file(samples: np.ndarray, rate: int = 16000, kind: str = "WAV", subtype: str | None = None) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=kind, subtype=subtype)
    return out.getvalue()


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image(data: bytes | str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data if isinstance(data, str) else url(data), **more}}


def audio(data: bytes | str, kind: str = "wav") -> dict[str, Any]:
    text = data if isinstance(data, str) else base64.b64encode(data).decode()
    return {"type": "input_audio", "input_audio": {"data": text, "format": kind}}


def user(*parts: Any) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": [{"type": "text", "text": one} if isinstance(one, str) else one for one in parts]}
    ]


SMALL = painted(40, 30)
BEEP = tone(16000, 0.3, 440, 0.5)


@pytest.fixture(scope="module")
def conversation() -> FakeConversation:
    return FakeConversation(words=1, media=MEDIA)


@pytest.fixture(scope="module")
def address(conversation: FakeConversation) -> Iterator[str]:
    with running(fake_model([conversation]), fake_model([FakeConversation()], name="deaf"), **LIMITS) as found:
        yield found


def post(address: str, messages: Any, **more: Any) -> httpx.Response:
    return HTTP.post(address + PATH, json={"model": "fake", "messages": messages} | more)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures(address: str, conversation: FakeConversation, kind: str) -> None:
    """As Pillow reads them, in the order of the parts."""
    data = picture_file(SMALL, kind)
    answer = post(address, user("before ", image(data, detail="low"), "after"))
    assert answer.status_code == 200, answer.text
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    (message,) = conversation.asked[-1]
    before, found, after = message["content"]
    assert (before, after) == ({"type": "text", "text": "before "}, {"type": "text", "text": "after"})
    assert found["type"] == "image" and np.array_equal(found["image"], expected)


@pytest.mark.parametrize(("kind", "subtype", "name"), [
    ("WAV", "PCM_16", "wav"), ("FLAC", None, "flac"), ("OGG", "VORBIS", "ogg"), ("OGG", "OPUS", "ogg"),
    ("MP3", None, "mp3"),
])  # fmt: skip
def test_sounds(address: str, conversation: FakeConversation, kind: str, subtype: str | None, name: str) -> None:
    """As soundfile decodes them; also in a data URL, as some clients have it."""
    data = sound_file(BEEP, kind=kind, subtype=subtype)
    expected, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    for given in (data, url(data, "audio/wav")):
        assert post(address, user(audio(given, name), "What is said?")).status_code == 200
        sound = conversation.asked[-1][0]["content"][0]["audio"]
        assert rate == 16000 == sound.rate or subtype == "OPUS"
        length = min(len(sound.samples), len(expected))
        assert sound.seconds == pytest.approx(0.3, abs=0.1)
        if rate == 16000:
            np.testing.assert_allclose(sound.samples[:length], expected[:length], atol=1e-3)


def test_a_large_picture_is_held_small() -> None:
    """And is cut into the same crops, to the bit."""
    pixels = painted(800, 600)
    few = replace(IMAGES, max_crops=1)
    small = shrunk(pixels, few, "it")
    assert small.nbytes < pixels.nbytes / 2
    assert np.array_equal(prepare(small, few).crops, prepare(pixels, few).crops)


@pytest.mark.parametrize("most", [1, 4, 12, 36])
def test_no_size_is_cut_otherwise(most: int) -> None:
    """Whatever a picture's size: what is held is cut as the picture is, and is never larger than the crops."""
    settings = replace(IMAGES, max_crops=most)
    for width, height in np.random.default_rng(most).integers(40, int(900 * most**0.5), (15, 2)):
        held = shrunk(np.broadcast_to(np.uint8(7), (height, width, 3)), settings, "it")
        plan = tile(width, height, settings)
        assert tile(held.shape[1], held.shape[0], settings) == plan
        assert held.size == 3 * min(width * height, plan.width * plan.height)


def bomb() -> bytes:
    """A PNG of 40,000 x 40,000 pixels in some kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
        + chunk(b"IEND", b"")
    )


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
HTML = b"<!doctype html><title>no picture</title>"


@cache
def hostile() -> dict[str, tuple[dict[str, Any], int, str]]:
    """A part, the status it gets, and what the sentence says."""
    png, wav = picture_file(SMALL), sound_file(BEEP)
    nan = sound_file(np.full(100, np.nan, np.float32), subtype="FLOAT")
    return {
        "bomb": (image(bomb()), 400, "pixels"),
        "too many pixels": (image(picture_file(painted(1000, 600))), 400, "600 pixels, at most 500,000 are"),
        "truncated": (image(png[: len(png) // 2]), 400, "is damaged or truncated"),
        "html": (image(HTML), 400, "is not a picture that is known here"),
        "html as jpeg": (image(url(HTML, "image/jpeg")), 400, "is not a picture that is known here"),
        "svg": (image(url(SVG, "image/svg+xml")), 400, "is not a picture that is known here"),
        "a sound": (image(wav), 400, "is not a picture that is known here"),
        "no bytes": (image(b""), 400, "is empty"),
        "too narrow": (image(picture_file(painted(2000, 2))), 400, "too narrow"),
        "no base64": (image("data:image/png;base64,%%%"), 400, "is not base64"),
        "cut base64": (image("data:image/png;base64,abcde"), 400, "is not base64"),
        "not ASCII": (image("data:image/png;base64,äöü"), 400, "is not base64"),
        "percent": (image("data:image/png,%89PNG"), 400, "a data URL that is no base64"),
        "no comma": (image("data:image/png;base64"), 400, "a data URL that is no base64"),
        "no URL": (image("picture.png"), 400, "it must begin with data: or https:"),
        "a file": (image("file:///etc/passwd"), 400, "it must begin with data: or https:"),
        "odd brackets": (image("http://[/"), 400, "it must begin with data: or https:"),
        "remote": (image("https://example.org/a.png"), 400, "--allow-remote-media"),
        "large": (image(b"\x89PNG" + bytes(300_000)), 413, "is larger than 300000 bytes"),
        "NaN": (audio(nan), 400, "no finite numbers"),
        "silent header": (audio(wav[:44]), 400, "holds no samples"),
        "half a header": (audio(wav[:20]), 400, "no sound that is known here"),
        "empty": (audio(b""), 400, "is empty"),
        "a picture": (audio(png), 400, "no sound that is known here"),
        "webm": (audio(b"\x1aE\xdf\xa3" + bytes(200)), 400, "WebM"),
        "too long": (audio(sound_file(tone(8000, 3.2, 440, 0.5), 8000)), 400, "longer than the 3 seconds"),
        "too short": (audio(sound_file(BEEP[:100])), 400, "lasts 0.0063 seconds"),
        "wrong base64": (audio("!"), 400, "is not base64"),
        "no format": (audio(wav, "aiff"), 400, "has the format 'aiff', wav, mp3, flac, ogg are read"),
        "video": ({"type": "video_url", "video_url": {"url": "x"}}, 400, "is 'video_url', text, refusal, image_url"),
        "no image": ({"type": "image_url"}, 400, "has no image_url"),
        "a plain URL": ({"type": "image_url", "image_url": url(png)}, 400, "image_url: "),
        "a number": ({"type": "image_url", "image_url": {"url": 5}}, 400, "image_url.url: "),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(hostile()))
@pytest.mark.parametrize("stream", [False, True])
def test_hostile(address: str, name: str, stream: bool) -> None:
    part, status, sentence = hostile()[name]
    answer = post(address, user("What is this?", part), stream=stream)
    error = answer.json()["error"]
    assert answer.status_code == status and sentence in error["message"], answer.text
    assert error["param"].startswith("messages.0.content.1") and len(error["message"]) < 300
    assert error["type"] == "invalid_request_error" and "\n" not in error["message"]


def test_places(address: str) -> None:
    """Where a picture cannot stand, and where it can but is too much."""
    picture = image(picture_file(SMALL))
    for role in ("system", "developer", "assistant", "tool"):
        answer = post(address, [{"role": role, "content": [picture]}, *user("Hi")])
        assert answer.status_code == 400 and f"is for role user, not {role}" in answer.json()["error"]["message"]
    answer = post(address, user({"type": "refusal", "refusal": "No."}))
    assert answer.status_code == 400 and "is for role assistant, not user" in answer.json()["error"]["message"]
    answer = post(address, user(*[picture] * 4))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "the messages have 4 pictures and sounds, 3 are possible"
    answer = post(address, user(picture), model="deaf")
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages.0.content.0"
    assert answer.json()["error"]["message"].endswith("is 'image_url', this model reads text only")


def test_other_parts_are_as_openais(address: str, conversation: FakeConversation) -> None:
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "content": None, "refusal": "Never."},
        {"role": "user", "content": [{"type": "text", "text": "Please"}]},
    ]
    assert post(address, messages).status_code == 200
    assert [one["content"] for one in conversation.asked[-1]] == ["Be brief.", "Hi", "No.", "Never.", "Please"]


def test_a_prompt_that_is_too_long(address: str) -> None:
    answer = post(
        address, user(image(picture_file(painted(700, 700))), image(picture_file(painted(701, 700))), "why " * 2000)
    )
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "context_length_exceeded"
    assert "2 pictures: " in error["message"]


def test_bodies() -> None:
    """What takes pictures takes bodies of their size, as pictures only; what all hold together is bounded."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    large, limits = image(picture_file(noise)), {"max_body_bytes": 100_000, "max_held_bytes": 3_000_000}
    hungry, deaf = FakeConversation(words=1, media=MEDIA), FakeConversation()
    with running(fake_model([deaf]), **limits) as found:
        assert post(found, user(large)).status_code == 413
    with running(fake_model([hungry], most_waiting=9), **limits) as found:
        assert post(found, user(large)).status_code == 200
        answer = HTTP.post(f"{found}/v1/completions", json={"prompt": "x" * 200_000})
        assert answer.status_code == 413
        many = post(found, user(large), stop=[[]] * 30_000)
        assert many.status_code == 413 and "values, which is more than pictures and sound" in many.text
        hungry.gate.clear()
        with HTTP.stream("POST", found + PATH, json={"messages": user(large, large), "stream": True}) as first:
            assert first.status_code == 200
            second = post(found, user(large))
            assert second.status_code == 429 and second.json()["error"]["code"] == "memory_full"
            assert int(second.headers["retry-after"]) >= 1
            hungry.gate.set()
            first.read()
        assert post(found, user(large)).status_code == 200
        alone = post(found, user(large, large, image(picture_file(noise[::-1]))))
        assert alone.status_code == 413 and alone.json()["error"]["code"] == "body_too_large"


def test_nothing_is_held_after_an_answer(address: str, conversation: FakeConversation) -> None:
    """Whatever it came to."""
    from export.server import held

    kept = list[held.Budget]()
    original = held.Budget.__init__

    def init(self: held.Budget, most: int) -> None:
        original(self, most)
        kept.append(self)

    held.Budget.__init__ = init  # type: ignore[method-assign]
    try:
        with running(fake_model([conversation]), **LIMITS) as found:
            post(found, user(image(picture_file(SMALL)), audio(sound_file(BEEP))))
            post(found, user(image(picture_file(SMALL)), image(HTML)))
            HTTP.post(found + PATH, content=json.dumps({"messages": user(image(picture_file(SMALL)))})[:-3])
    finally:
        held.Budget.__init__ = original  # type: ignore[method-assign]
    assert [budget.held for budget in kept] == [0]

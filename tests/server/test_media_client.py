"""Pictures and sound by OpenAI's own Python client, unchanged; answers are those of the wheel's runtime."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from export.engine.conversation import Choosing, Conversation, open_conversation
from export.media.vectors import painted, tone
from tests.server.running import HTTP, Server
from tests.server.test_media import audio, image, picture_file, sound_file, user

from PIL import Image  # isort: skip  test_media skips where it is missing
from export.media.sound_files import Sound  # isort: skip

GREEDY: dict[str, Any] = {"model": "noise", "temperature": 0, "max_tokens": 4, "logprobs": True, "top_logprobs": 5}
JPEG = picture_file(painted(300, 200), "JPEG")
PIXELS = np.asarray(Image.open(io.BytesIO(JPEG)))
SAMPLES = np.round(tone(16000, 1.2, 440, 0.5) * 32767).astype(np.int16)
WAV = sound_file(SAMPLES)
SOUND = Sound(SAMPLES.astype(np.float32) / 32768, 16000)
CASES: dict[str, tuple[list[Any], list[Any]]] = {  # parts as a client has them, and as a conversation does
    "picture": ([image(JPEG), "What is this?"], [{"type": "image", "image": PIXELS}, "What is this?"]),
    "sound": (["Hear: ", audio(WAV)], ["Hear: ", {"type": "audio", "audio": SOUND}]),
    "both": (
        [image(JPEG), audio(WAV), "What?"],
        [{"type": "image", "image": PIXELS}, {"type": "audio", "audio": SOUND}, "What?"],
    ),
}


@pytest.fixture(scope="module")
def conversation(media_pte: Path) -> Iterator[Conversation]:
    with open_conversation(media_pte, engine="wheel") as found:
        yield found


def asked(server: Server, messages: Any, **more: Any) -> Any:
    return server.client.chat.completions.create(messages=messages, **GREEDY | more)


@pytest.mark.parametrize("name", list(CASES))
def test_answers(media_server: Server, conversation: Conversation, name: str) -> None:
    """Text and log probabilities, and how many tokens were whose."""
    sent, own = CASES[name]
    expected = conversation.reply(user(*own), Choosing(max_tokens=4, logprobs=5))
    found = asked(media_server, user(*sent))
    assert found.choices[0].message.content == expected.text
    logprobs = [token.logprob for token in found.choices[0].logprobs.content]
    assert logprobs == pytest.approx([token.logprob for token in expected.logprobs], abs=2e-2)
    tokens = {kind: sum(one.tokens for one in expected.media if one.kind == kind) for kind in ("image", "audio")}
    details = found.usage.prompt_tokens_details
    assert (details.image_tokens, details.audio_tokens) == (tokens["image"], tokens["audio"])
    assert found.usage.prompt_tokens == expected.prompt_tokens > sum(tokens.values())
    assert tokens["audio"] in (0, 15) and tokens["image"] in (0, expected.media[0].tokens)
    streamed = list(asked(media_server, user(*sent), stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices) == expected.text
    assert streamed[-1].usage.prompt_tokens_details.image_tokens == tokens["image"]


def seen(server: Server, rows: str) -> float:
    """Pictures."""
    return server.metric("media_total", kind="image", model="noise", rows=rows)


def test_a_second_turn(media_server: Server) -> None:
    """Feeds what is new only, whatever was asked beside it in the other conversation, and encodes nothing."""
    first = user(image(picture_file(painted(301, 200))), "What is this? " * 20)  # longer than what the others hold
    start = asked(media_server, first)
    before = seen(media_server, "encoded"), seen(media_server, "kept")
    encoded = media_server.metric("encode_seconds_count", kind="image", model="noise")
    asked(media_server, user("Something without a picture."))
    again = [*first, {"role": "assistant", "content": start.choices[0].message.content}, *user("And now?")]
    second = asked(media_server, again)
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert start.usage.prompt_tokens <= cached < second.usage.prompt_tokens
    assert start.usage.prompt_tokens_details.cached_tokens < 100
    assert media_server.metric("encode_seconds_count", kind="image", model="noise") == encoded
    assert (seen(media_server, "encoded"), seen(media_server, "kept")) == (before[0], before[1] + 1)
    third = asked(media_server, user(image(picture_file(painted(301, 201))), "What is this?"))
    assert third.usage.prompt_tokens_details.cached_tokens < 100  # another picture is not this one
    assert media_server.metric("encode_seconds_count", kind="image", model="noise") == encoded + 1


def test_other_ways_to_ask(media_server: Server) -> None:
    """Several choices, a schema, and a call that must come, with a picture before them."""
    messages = user(image(JPEG), "What is this?")
    several = asked(media_server, messages, n=2)
    assert several.choices[0].message.content == several.choices[1].message.content
    assert several.usage.prompt_tokens_details.image_tokens == several.usage.prompt_tokens - 13
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    structured = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    found = asked(media_server, messages, response_format=structured, max_tokens=40)
    assert found.choices[0].message.content.replace(" ", "") == '{"a":1}'
    tool = {"type": "function", "function": {"name": "look", "parameters": schema}}
    found = asked(media_server, messages, tools=[tool], tool_choice="required", max_tokens=60)
    (call,) = found.choices[0].message.tool_calls
    assert call.function.name == "look" and call.function.arguments.replace(" ", "") == '{"a":1}'


def test_what_is_told_of_the_model(media_server: Server) -> None:
    (model,) = media_server.client.models.list()
    assert model.input_modalities == ["text", "image", "audio"]  # type: ignore[attr-defined]
    assert "takes pictures, takes sound" in "".join(media_server.lines)


def test_a_photo_of_twenty_megabytes(media_server: Server) -> None:
    """As a camera saves it, in base64."""
    noise = np.random.default_rng(0).integers(0, 256, (3700, 3700, 3), np.uint8)
    data = picture_file(noise, "JPEG", quality=97)
    assert 15e6 < len(data) < 25e6
    found = asked(media_server, user(image(data), "What is this?"), max_tokens=1)
    assert found.usage.prompt_tokens_details.image_tokens > 500


def test_refusals(media_server: Server) -> None:
    """By the client's own classes."""
    with pytest.raises(openai.BadRequestError, match="is not a picture that is known here") as refused:
        asked(media_server, user(image(b"<html>")))
    assert refused.value.param == "messages.0.content.0.image_url.url" and refused.value.code == "invalid_image"
    with pytest.raises(openai.APIStatusError, match="is larger than 33554432 bytes") as large:
        asked(media_server, user(image("data:image/png;base64," + "A" * (46 << 20))))
    assert large.value.status_code == 413
    with pytest.raises(
        openai.BadRequestError, match="4 pictures: .*the context is 4096: export the file with"
    ) as long:
        asked(media_server, user(*(image(picture_file(painted(1900, side))) for side in range(1900, 1904))))
    assert long.value.code == "context_length_exceeded"
    body = {"model": "noise", "prompt": [-1 - (1 << 60)]}
    assert HTTP.post(f"{media_server.url}/v1/completions", json=body).status_code == 400

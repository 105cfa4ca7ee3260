"""Whatever is sent to any path of the server's own OpenAPI document: no status 500, and errors in OpenAI's shape."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error

from tests.server.fake import FakeConversation, fake_model, running
from tests.server.running import Server


def attempt(case: Any) -> int:
    """The status that a generated request gets."""
    if isinstance(case.body, dict) and isinstance(case.body.get("max_tokens"), int | None):
        case.body["max_tokens"] = 2  # it need not be long
    answer = case.call(timeout=60)
    case.validate_response(answer, checks=[not_a_server_error])
    if answer.status_code >= 400:
        assert answer.json().keys() == {"error"}
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    return answer.status_code


def statuses_of(operation: Any) -> set[int]:
    """What many requests to one path get."""
    found = set[int]()

    @settings(max_examples=40 if operation.method == "post" else 5, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def try_one(case: Any) -> None:
        found.add(attempt(case))

    try_one()
    return found


def test_no_path_fails(server: Server) -> None:
    operations = schemathesis.openapi.from_url(f"{server.url}/openapi.json").get_all_operations()
    seen = {operation.ok().path: statuses_of(operation.ok()) for operation in operations}
    chats, texts = seen["/v1/chat/completions"], seen["/v1/completions"]
    assert chats >= {400} and texts >= {200, 400}, seen  # some can be followed, some cannot
    assert seen["/health"] == seen["/metrics"] == seen["/v1/models"] == {200} and seen["/v1/embeddings"] == {404}
    assert server.health()["running"] == {"tiny": 0}
    assert "Traceback" not in "".join(server.lines)


def test_no_damaged_file_fails() -> None:
    """Pictures and sound with bytes changed, taken out or put in, under any name: read or refused."""
    from tests.server import test_media as media  # skips where packages are missing

    pictures = [media.picture_file(media.SMALL, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]
    sounds = [media.sound_file(media.BEEP[:2000], kind=kind) for kind in ("WAV", "FLAC", "OGG", "MP3")]
    found = set[int]()
    with running(fake_model([FakeConversation(words=1, media=media.MEDIA)]), **media.LIMITS) as url:

        @settings(max_examples=150, suppress_health_check=list(HealthCheck))
        @given(
            file=st.sampled_from(pictures + sounds), start=st.floats(0, 1), taken=st.integers(0, 9),
            put=st.binary(max_size=9), end=st.floats(0.3, 1), as_sound=st.booleans(),
        )  # fmt: skip
        def try_one(file: bytes, start: float, taken: int, put: bytes, end: float, as_sound: bool) -> None:
            at = int(start * len(file))
            data = (file[:at] + put + file[at + taken :])[: int(end * len(file)) + 10]
            answer = media.post(url, media.user(media.audio(data) if as_sound else media.image(data)))
            found.add(answer.status_code)
            assert answer.status_code in (200, 400, 413), answer.text
            assert answer.status_code == 200 or answer.json()["error"]["message"].count("\n") == 0

        try_one()
    assert found >= {200, 400}

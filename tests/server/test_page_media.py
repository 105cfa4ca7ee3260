"""Pictures and sound on the page, in Chromium: put beside a question, shown, asked about again; strangers' files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from checkpoints.errors import BadInput
from export.media.vectors import painted, tone
from export.server.held import Budget
from tests.server.browsing import answers, ask, load, opened, until
from tests.server.fake import FakeConversation, fake_model, running
from tests.server.running import Server
from tests.server.test_media import BEEP, MEDIA, image, picture_file, sound_file, user

from playwright.sync_api import Browser, Page, expect  # isort: skip  browsing skips where it is missing
from export.server.page_messages import with_files  # isort: skip
from export.server.uploads import GONE, folder, is_upload, make_room, only_uploads  # isort: skip

pytestmark = pytest.mark.usefixtures("same_network")
PHOTO = painted(64, 48)
UPLOAD, FILE = "/gradio_api/upload", "/gradio_api/file="


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Of somebody's disk."""
    (tmp_path / "photo.png").write_bytes(picture_file(PHOTO))
    (tmp_path / "said.wav").write_bytes(sound_file(BEEP))
    (tmp_path / "page.png").write_bytes(b"<html>")
    return tmp_path


def put(page: Page, *paths: Path) -> None:
    """Beside the next question, once the last one was taken out of the box and answered."""
    expect(page.locator("#ask textarea")).to_have_value("")
    expect(page.locator("#ask textarea")).to_be_editable()
    page.locator("#ask input[type=file]").set_input_files(paths)
    expect(page.locator("#ask .thumbnail-item")).to_have_count(len(paths))


def empty(place: Path) -> None:
    for one in place.iterdir():
        shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()


def kinds(message: dict[str, Any]) -> list[str]:
    content = message["content"]
    return ["text"] if isinstance(content, str) else [part["type"] for part in content]


def test_a_chat_about_a_picture(browser: Browser, media_server: Server, files: Path) -> None:
    """Says what the API says, is encoded once, and is there after a reload."""
    photo, beep = painted(64, 40), tone(16000, 0.3, 550, 0.5)  # what no other test has had encoded by this server
    (files / "photo.png").write_bytes(picture_file(photo))
    (files / "said.wav").write_bytes(sound_file(beep))
    asked: Any = {"model": "noise", "messages": user(image(picture_file(photo)), "What is this?"), "temperature": 0}
    said = str(media_server.client.chat.completions.create(**asked, max_tokens=4).choices[0].message.content)
    with opened(browser, media_server.url) as page:
        page.locator(".toggle-button").click()
        page.get_by_label("number input for Max tokens").fill("4")
        page.get_by_label("number input for Max tokens").press("Tab")
        put(page, files / "photo.png")
        ask(page, "What is this?")
        expect(answers(page)).to_contain_text(said)
        expect(answers(page)).to_contain_text("prompt tokens from the cache")
        expect(page.locator(".message.user img")).to_be_visible()
        encoded = media_server.metric("encode_seconds_count", kind="image", model="noise")
        ask(page, "And now?")
        expect(answers(page)).to_contain_text(["prompt tokens from the cache"] * 2)
        expect(answers(page).last).not_to_contain_text("encoded in")
        assert media_server.metric("encode_seconds_count", kind="image", model="noise") == encoded
        put(page, files / "said.wav")
        ask(page, "And this?")
        expect(answers(page)).to_contain_text(["prompt tokens from the cache"] * 2 + ["sound encoded in"])
        expect(page.locator(".chats")).to_contain_text("What is this?")
        load(page, media_server.url)
        page.locator(".chats").get_by_text("What is this?").click()
        expect(page.locator(".message.user img")).to_be_visible()
        assert page.evaluate("document.querySelector('.message.user img').naturalWidth") == 64


def test_turns(browser: Browser, files: Path) -> None:
    """What the model gets: pixels and samples as they are, earlier turns too, also after a retry."""
    conversation = FakeConversation(words=2, media=MEDIA)
    with running(fake_model([conversation]), page=True) as url, opened(browser, url) as page:
        put(page, files / "photo.png", files / "said.wav")
        ask(page, "What is this?")
        expect(answers(page)).to_contain_text("prompt tokens from the cache")
        ask(page, "And now?")
        expect(answers(page)).to_have_count(2)
        until(lambda: len(conversation.ended) == 2)
        expect(page.locator("#ask textarea")).to_be_editable()
        page.get_by_label("Retry").click()
        until(lambda: len(conversation.ended) == 3)
        first, second, third = conversation.asked
        assert [kinds(message) for message in first] == [["image", "audio", "text"]]
        assert np.array_equal(first[0]["content"][0]["image"], PHOTO)
        np.testing.assert_allclose(first[0]["content"][1]["audio"].samples, BEEP, atol=1e-4)
        assert first[0]["content"][2]["text"] == "What is this?"
        for later in (second, third):
            assert [kinds(message) for message in later] == [["image", "audio", "text"], ["text"], ["text"]]
            assert np.array_equal(later[0]["content"][0]["image"], PHOTO)
        expect(page.locator(".message.user audio, .message.user .waveform-container")).not_to_have_count(0)
        assert page.get_by_label("Share").is_hidden()


def test_asked_again(browser: Browser, files: Path) -> None:
    """With what was put beside it: by a retry, and from the box, where an undo puts it back."""
    conversation = FakeConversation(words=2, media=MEDIA)
    with running(fake_model([conversation]), page=True) as url, opened(browser, url) as page:
        put(page, files / "photo.png", files / "said.wav")
        ask(page, "What is this?")
        for count, again in enumerate(("Retry", "Undo"), 1):
            until(lambda count=count: len(conversation.ended) == count)  # type: ignore[misc]
            expect(page.locator("#ask textarea")).to_be_editable()
            page.get_by_role("button", name=again).click()
        expect(page.locator("#ask .thumbnail-item")).to_have_count(2)
        expect(page.locator("#ask textarea")).to_have_value("What is this?")
        page.locator("#ask textarea").press("Enter")
        until(lambda: len(conversation.ended) == 3)
        for asked in conversation.asked:
            assert [kinds(message) for message in asked] == [["image", "audio", "text"]]
            assert np.array_equal(asked[0]["content"][0]["image"], PHOTO)
            np.testing.assert_allclose(asked[0]["content"][1]["audio"].samples, BEEP, atol=1e-4)
        expect(answers(page)).to_contain_text("prompt tokens from the cache")


def test_a_microphone(browser: Browser) -> None:
    conversation = FakeConversation(words=2, media=MEDIA)
    with running(fake_model([conversation]), page=True) as url, opened(browser, url) as page:
        page.get_by_label("Record audio").click()
        page.get_by_label("Start recording").click()
        page.wait_for_timeout(1500)
        page.get_by_label("Stop recording").click()
        page.get_by_label("Attach audio").click()
        expect(page.locator("#ask .thumbnail-item")).to_have_count(1)
        ask(page, "What is said?")
        until(lambda: conversation.ended)
        sound = conversation.asked[0][0]["content"][0]["audio"]
        assert 0.5 < sound.seconds < 20 and np.abs(sound.samples).max() > 0.1


def test_refusals(browser: Browser, files: Path) -> None:
    """A sentence with the file's name; the next question is asked without it."""
    conversation = FakeConversation(words=2, media=MEDIA)
    with running(fake_model([conversation]), page=True) as url, opened(browser, url) as page:
        put(page, files / "page.png")
        ask(page, "What is this?")
        expect(answers(page)).to_contain_text("Not answered: page.png is not a picture that is known here")
        ask(page, "And now?")
        until(lambda: conversation.ended)
        assert [kinds(message) for message in conversation.asked[0]] == [["text"]]


def test_a_file_that_takes_text(browser: Browser) -> None:
    with running(fake_model([FakeConversation()]), page=True) as url:
        with opened(browser, url) as page:
            assert page.locator("input[type=file]").count() == 0
            assert page.get_by_label("Record audio").count() == page.get_by_label("Upload a file").count() == 0
        assert httpx.post(url + UPLOAD, files={"files": b"x"}).status_code == 404


@pytest.mark.parametrize("kinds", ["image", "audio"])
def test_a_file_that_takes_one(browser: Browser, kinds: str) -> None:
    media = MEDIA.__class__(**{name: value for name, value in MEDIA.__dict__.items() if name.startswith(kinds)})
    with running(fake_model([FakeConversation(media=media)]), page=True) as url, opened(browser, url) as page:
        assert page.locator("#ask input[type=file]").get_attribute("accept") == f"{kinds}/*"
        assert page.get_by_label("Record audio").count() == (kinds == "audio")


def test_files_that_are_gone(browser: Browser, files: Path) -> None:
    """With the server that had them: the chat is still there, says so, and goes on."""
    conversation = FakeConversation(words=2, media=MEDIA)
    context = browser.new_context()
    page = context.new_page()
    with running(fake_model([conversation]), page=True) as url:
        load(page, url)
        put(page, files / "photo.png")
        ask(page, "What is this?")
        expect(answers(page)).to_contain_text("prompt tokens from the cache")
        expect(page.locator(".chats")).to_contain_text("What is this?")
    empty(folder())
    conversation = FakeConversation(words=2, media=MEDIA)
    with running(fake_model([conversation]), page=True, port=int(url.rpartition(":")[2])) as url:
        load(page, url)
        page.locator(".chats").get_by_text("What is this?").click()
        expect(page.locator(".message.user").first).to_contain_text("(file gone)")
        put(page, files / "photo.png")
        ask(page, "Then this?")
        until(lambda: conversation.ended)
        assert conversation.asked[0][0]["content"] == GONE + "What is this?"
        assert kinds(conversation.asked[0][-1]) == ["image", "text"]
        expect(answers(page).last).to_contain_text("prompt tokens from the cache")
        context.close()


def test_what_strangers_cannot_send(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture_file(PHOTO))
    with running(fake_model([FakeConversation(media=MEDIA)]), page=True, max_media_body_bytes=100_000) as url:

        def upload(name: str, data: bytes, **more: Any) -> httpx.Response:
            return httpx.post(url + UPLOAD, files={"files": (name, data)}, **more)

        (path,) = upload("../../../evil.html", b"<script>alert(1)</script>").json()
        assert is_upload(path) and Path(path).name == "evil.html"
        served = httpx.get(url + FILE + path)
        assert served.headers["content-disposition"].startswith("attachment")
        assert served.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert served.headers["x-content-type-options"] == "nosniff"
        for other in (str(secret), f"{folder()}/../{secret}", "http://127.0.0.1/", f"{folder()}", "/etc/passwd", ""):
            assert httpx.get(url + FILE + other).status_code == 404
        assert upload("large.png", bytes(100_001)).status_code == 413
        assert upload("a.png", b"x", headers={"Origin": "http://evil.example"}).status_code == 403
    with running(fake_model([FakeConversation(media=MEDIA)]), page=True, api_keys=("key",)) as url:
        assert httpx.post(url + UPLOAD, files={"files": b"x"}).status_code == 401
        assert httpx.get(url + FILE + path).status_code == 401


def test_no_other_file_is_read(tmp_path: Path) -> None:
    """Though Gradio let it through."""
    (strange := tmp_path / "other.png").write_bytes(b"x")
    asked = [{"role": "user", "content": [{"type": "file", "path": str(strange)}, {"type": "text", "text": "Hi"}]}]
    with Budget(100).hold() as hold, pytest.raises(BadInput, match="other.png is not on the server any more"):
        with_files(asked, hold)


def test_paths_that_are_no_uploads(tmp_path: Path) -> None:
    """Never reach Gradio, wherever in the body they stand; those that are lose the address that came with them."""
    (own := folder() / "own.png").write_bytes(b"x")
    (other := tmp_path / "other.png").write_bytes(b"x")
    (link := folder() / "link.png").unlink(missing_ok=True)
    link.symlink_to(other)
    for strange in (str(other), str(link), "http://evil.example/a.png", "/etc/passwd", 5, None, str(folder()), "\0"):
        file = {"path": strange, "url": "http://evil.example/", "meta": {"_type": "gradio.FileData"}}
        for data in ([file], [[{"type": "file", "file": file}]], {"a": {"b": [{"files": [file]}]}}, [{"url": "x"}]):
            found = only_uploads(json.dumps({"data": data}).encode())
            assert b"evil" not in found and b"path" not in found and GONE.encode() in found
    kept = json.loads(only_uploads(json.dumps([{"path": str(own), "url": "http://evil.example/"}]).encode()))
    assert kept == [{"path": str(own), "url": None}]


def test_what_a_killed_server_leaves(tmp_path: Path) -> None:
    """Is removed by the next one, which leaves alone what another uses."""
    program = "from export.server.uploads import folder; print(folder(), flush=True); input()"
    command = [sys.executable, "-c", program]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = os.environ | {"TMPDIR": str(tmp_path)}

    def start() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(command, env=environment, **pipes)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    killed, left = start()
    (left / "photo.png").write_bytes(b"x")
    killed.kill()
    killed.communicate()
    one, kept = start()
    other, own = start()
    assert set(tmp_path.iterdir()) == {kept, own} and kept.stat().st_mode & 0o777 == 0o700
    for process in (one, other):
        process.communicate("\n")
    assert not list(tmp_path.iterdir())


def test_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest files go where others need their room."""
    monkeypatch.setattr("export.server.uploads.MOST_BYTES", 100)
    empty(folder())
    for number in range(5):
        (path := folder() / str(number) / "a.png").parent.mkdir(parents=True)
        path.write_bytes(bytes(20))
        os.utime(path, (number, number))
    make_room(45)
    assert sorted(path.parent.name for path in folder().rglob("a.png")) == ["3", "4"]

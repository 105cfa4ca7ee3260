"""The page in Chromium: what a person types, sees and stops, and what no answer and no stranger can do."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.browsing import answers, ask, load, opened, until
from tests.server.fake import FakeConversation, fake_model, running
from tests.server.running import Server, serving

from playwright.sync_api import Browser, Page, expect  # isort: skip  browsing skips where it is missing

pytestmark = pytest.mark.usefixtures("same_network")
FRANCE = "What is the capital of France?"
JOIN = "/gradio_api/queue/join"


def settings_of(page: Page) -> None:
    page.locator(".toggle-button").click()


@pytest.fixture(scope="module")
def tiny(served_pte: Path, packed: Path) -> Iterator[Server]:
    with serving(served_pte, "--packed", packed, "--ui") as found:
        yield found


def test_a_chat(browser: Browser, tiny: Server) -> None:
    """Says what the API says, feeds a second turn's news only, and is there after a reload."""
    asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": FRANCE}], "temperature": 0}
    said = str(tiny.client.chat.completions.create(**asked).choices[0].message.content)
    with opened(browser, tiny.url) as page:
        ask(page, FRANCE)
        expect(answers(page)).to_contain_text(said)
        expect(answers(page)).to_contain_text("tokens/s · first token after")
        expect(page.locator(".chats")).to_contain_text(FRANCE)
        kept = page.evaluate("JSON.stringify(localStorage)")
        ask(page, "And what is the capital of Spain?")
        expect(answers(page).last).to_contain_text("of 36 prompt tokens from the cache")
        messages = [*asked["messages"], {"role": "assistant", "content": said}]
        messages.append({"role": "user", "content": "And what is the capital of Spain?"})
        again = tiny.client.chat.completions.create(**asked | {"messages": messages})
        both = [said, str(again.choices[0].message.content)]
        expect(answers(page)).to_contain_text(both)
        assert again.usage is not None and again.usage.prompt_tokens == 36
        page.wait_for_function("kept => JSON.stringify(localStorage) !== kept", arg=kept)
        load(page, tiny.url)
        page.locator(".chats").get_by_text(FRANCE).click()
        expect(answers(page)).to_contain_text(both)


def test_a_context_that_is_full(browser: Browser, tiny: Server) -> None:
    with opened(browser, tiny.url) as page:
        ask(page, "why " * 600)
        expect(answers(page)).to_contain_text("Not answered: the prompt has")
        expect(answers(page)).to_contain_text("the context of tiny is 512")
        ask(page, FRANCE)  # without the question that was too long
        expect(answers(page)).to_contain_text(["Not answered", "Paris"])


def test_narrow_and_dark(browser: Browser, tiny: Server) -> None:
    with opened(browser, tiny.url, viewport={"width": 390, "height": 844}, color_scheme="dark") as page:
        ask(page, FRANCE)
        expect(answers(page)).to_contain_text("Paris")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        box = page.locator("#ask").bounding_box()
        assert box is not None and box["y"] + box["height"] <= 844
        dark = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] < 60"
        assert page.evaluate(dark)
        settings_of(page)
        page.get_by_role("button", name="Light or dark").click()
        page.wait_for_function(f"!({dark})")
        load(page, tiny.url)
        page.wait_for_function(f"!({dark})")


def test_stop(browser: Browser) -> None:
    """Ends the answer in the engine; what was said stays, and the next turn knows it."""
    conversation = FakeConversation(words=1000, pause=0.05)
    with running(fake_model([conversation]), page=True) as url, opened(browser, url) as page:
        ask(page, "Go on")
        expect(answers(page).first).to_contain_text("word word")
        assert not conversation.ended
        page.locator("#ask button.stop-button").click()
        until(lambda: conversation.ended == ["cancelled"], 5)
        expect(answers(page).last).to_contain_text("stopped · first token after")
        said = answers(page).first.inner_text().split("stopped")[0].strip()
        conversation.words = 2
        ask(page, "And now?")
        until(lambda: len(conversation.ended) == 2)
        roles = [(one["role"], one["content"].strip()) for one in conversation.asked[1]]
        assert roles == [("user", "Go on"), ("assistant", said), ("user", "And now?")]


def test_a_browser_that_leaves(browser: Browser) -> None:
    """Also before the first token."""
    conversation = FakeConversation()
    conversation.gate.clear()
    with running(fake_model([conversation]), page=True) as url:
        with opened(browser, url) as page:
            ask(page, "Hi")
            expect(answers(page)).to_contain_text("reading")
        until(lambda: conversation.ended == ["cancelled"])


def test_settings(browser: Browser) -> None:
    """Reach the engine, and are kept by the browser; of several models one is chosen."""
    one, other = FakeConversation(), FakeConversation()
    models = fake_model([one], name="one"), fake_model([other], name="other")
    with running(*models, page=True) as url, opened(browser, url) as page:
        settings_of(page)
        page.get_by_label("Model").click()
        page.get_by_role("option", name="other").click()
        page.get_by_label("System prompt").fill("Be brief.")
        values = {"Temperature": 0.5, "Top-k": 40, "Top-p": 0.9, "Min-p": 0.05, "Repetition penalty": 1.1}
        for name, value in values.items():
            page.get_by_label(f"number input for {name}").fill(str(value))
        page.get_by_label("number input for Max tokens").fill("3")
        page.get_by_label("Seed").fill("7")
        page.get_by_label("Seed").press("Tab")
        for turn in range(2):
            ask(page, "Hi")
            until(lambda turn=turn: len(other.ended) == turn + 1)  # type: ignore[misc]
            assert other.asked[turn] == [
                {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}
            ]  # fmt: skip
            chosen = other.chosen[turn]
            found = (chosen.temperature, chosen.top_k, chosen.top_p, chosen.min_p, chosen.repetition_penalty)
            assert found == tuple(values.values()) and (chosen.max_tokens, chosen.seed) == (3, 7)
            expect(answers(page).last).to_contain_text("prompt tokens from the cache")
            load(page, url)
            expect(page.get_by_label("System prompt")).to_have_value("Be brief.")
        assert not one.asked


def test_a_queue(browser: Browser) -> None:
    """The API's: the page waits in it, and is told where it is full."""
    conversation = FakeConversation()
    conversation.gate.clear()
    with (
        running(fake_model([conversation], most_waiting=1), page=True) as url,
        opened(browser, url) as first,
        opened(browser, url) as second,
        opened(browser, url) as third,
    ):
        ask(first, "Hi")
        until(lambda: len(conversation.asked) == 1)
        ask(second, "Hi")
        expect(answers(second)).to_contain_text("waiting for a turn, 1 in the queue")
        ask(third, "Hi")
        expect(answers(third)).to_contain_text("Not answered: 1 requests wait for fake already: try again later")
        assert httpx.post(
            f"{url}/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]}
        ).is_error
        conversation.gate.set()
        for page in (first, second):
            expect(answers(page).first).to_contain_text("word word word word")


UNKIND = (
    "<script>window.bad = 1</script>",
    '<img src="x" onerror="window.bad = 1">',
    '<img src="http://elsewhere.invalid/a.png">',
    "![a picture](http://elsewhere.invalid/b.png)",
    '<iframe src="http://elsewhere.invalid/"></iframe>',
    '<style>body { background: url("http://elsewhere.invalid/c.png") }</style>',
    '<a href="javascript:window.bad = 1">press</a>',
    '<svg onload="window.bad = 1"></svg>',
)


def test_answers_run_and_load_nothing(browser: Browser) -> None:
    conversation = FakeConversation(1)
    with running(fake_model([conversation]), page=True) as url, opened(browser, url) as page:
        for number, said in enumerate(UNKIND):
            conversation.word = f"{said}\n\n**end{number}**"
            ask(page, "Hi")
            expect(answers(page).last.locator("strong")).to_have_text(f"end{number}")
            for found in answers(page).last.locator("a", has_text="press").all():
                found.click()
            expect(page.locator("#ask textarea")).to_be_editable()
        assert page.evaluate("window.bad") is None and page.url.startswith(url)


def test_a_failing_engine(browser: Browser) -> None:
    conversation = FakeConversation()
    conversation.raises = ValueError("of the engine")
    with running(fake_model([conversation]), page=True) as url, opened(browser, url) as page:
        ask(page, "Hi")
        expect(answers(page)).to_contain_text("Not answered: the server failed, its log says more")


def test_a_key(browser: Browser) -> None:
    with running(fake_model([FakeConversation()]), page=True, api_keys=("secret",)) as url:
        for path in ("/", "/config", "/theme.css", "/gradio_api/info", "/gradio_api/heartbeat/abc"):
            assert httpx.get(url + path).status_code == 401
            assert httpx.get(url + path, headers={"Cookie": "pocketphi=secret"}).status_code == 401
        assert httpx.post(url + JOIN, json={}).status_code == 401
        page = browser.new_context().new_page()
        page.goto(url)
        page.get_by_label("API key of this server").fill("wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_have_text("This is no key of the server.")
        page.get_by_label("API key of this server").fill("secret")
        page.get_by_role("button", name="Log in").click()
        load(page, url)
        ask(page, "Hi")
        expect(answers(page).first).to_contain_text("word word")
        kept = page.context.cookies()
        assert len(kept) == 1 and kept[0]["httpOnly"] and kept[0]["sameSite"] == "Lax"  # type: ignore[typeddict-item]
        assert "secret" not in kept[0]["value"]  # type: ignore[typeddict-item]
        assert page.request.get(f"{url}/v1/models").status == 401  # the API is asked with the key itself
        page.context.close()


def test_what_strangers_cannot_ask() -> None:
    with running(fake_model([FakeConversation()]), page=True) as url:

        def post(path: str, origin: str | None = None, **body: Any) -> tuple[int, str]:
            found = httpx.post(url + path, headers={"Origin": origin} if origin else {}, **body)
            return found.status_code, found.json()["error"]["message"]

        assert post(JOIN, "http://evil.example", json={}) == (403, "the page of http://evil.example cannot ask here")
        built = {"data": [[{"role": "user", "content": [{"type": "component", "component": "image"}]}]]}
        assert post(JOIN, url, json=built) == (400, "the page takes text and files, and no component")
        assert post(JOIN, content=b"[" * 100_000)[0] == 400
        for path in ("/gradio_api/upload", "/gradio_api/component_server", "/v1/nothing", "/login"):
            assert post(path, files={"files": b"x"}) == (404, f"there is no {path} here")
        for path in ("/gradio_api/file=/etc/passwd", "/gradio_api/proxy=http://evil.example", "/gradio_api/runs"):
            assert httpx.get(url + path).status_code == 404
        assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 403
        assert "form-action 'self'" in httpx.get(url).headers["content-security-policy"]


def test_the_server_calls_nobody() -> None:
    """Making and answering the page opens no connection but the test's own, and looks no name up."""
    called = list[Any]()

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(arguments[1], tuple)):
            place = arguments[0] if event == "socket.getaddrinfo" else arguments[1][0]
            if place not in ("127.0.0.1", "::1", "localhost"):
                called.append(arguments)

    sys.addaudithook(heard)
    with running(fake_model([FakeConversation()]), page=True) as url:
        assert "Pocketphi" in httpx.get(url).text
        time.sleep(0.5)  # what Gradio asks for it asks in threads
    assert not called


def test_without_gradio(served_pte: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from checkpoints.errors import BadInput
    from export import serve

    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="--ui needs more packages .*: `uv sync --extra ui`"):
        serve.serve([served_pte], port=0, ui=True)

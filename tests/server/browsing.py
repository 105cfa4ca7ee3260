"""The page in Chromium, for its tests: opened by somebody who has kept nothing, asked, looked at."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

from tests.tools import need

need("ui", [name for name in ("gradio", "playwright") if find_spec(name) is None], "uv sync --group dev --extra")
need("browser", [] if shutil.which("chromium") else ["chromium"])

from playwright.sync_api import Browser, Locator, Page, TimeoutError, expect  # noqa: E402

expect.set_options(timeout=20_000)
# Gradio (6.31) asks the server three times at its start; the last sets what was kept of the settings.
STARTED = "performance.getEntriesByType('resource').filter(one => one.name.endsWith('/run/predict')).length >= 3"


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """The page, ready to type, in a browser that has kept nothing; asks only the server, or its policy forbids it."""
    context = browser.new_context(**options)
    page = context.new_page()
    asked = list[str]()
    context.on("request", lambda request: asked.append(request.url))
    context.on("requestfailed", lambda request: request.failure == "csp" and asked.remove(request.url))
    load(page, url)
    yield page
    context.close()
    elsewhere = [one for one in asked if not one.startswith((url, "data:", "blob:"))]
    assert asked and not elsewhere


def load(page: Page, url: str) -> None:
    """Open it, or open it again: other programs' interfaces come and go too, see `tests.network`, and Gradio does not
    ask a second time for a script that did not come. What a browser kept of the settings is set when it returns."""
    for _ in range(5):
        page.goto(url)
        with suppress(TimeoutError):
            page.locator("#ask textarea").wait_for(timeout=8000)
            break
    expect(page.locator("#ask textarea")).to_be_editable()
    page.wait_for_function(STARTED)


def ask(page: Page, text: str) -> None:
    page.locator("#ask textarea").fill(text)
    page.locator("#ask textarea").press("Enter")


def answers(page: Page) -> Locator:
    """Each with the note under it."""
    return page.locator(".message.bot")


def until(reached: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)

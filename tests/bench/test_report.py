"""The page of a result: whole in itself, drawn by a real browser, in the colours that the system asks for."""

from __future__ import annotations

import copy
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from export.bench.results.baseline import compare
from export.bench.results.report import CSS, make_html
from export.bench.results.result import summarise
from tests.bench.test_result import make
from tests.tools import need

LIGHT, DARK = 1, 0  # Blink's numbers for preferredColorScheme
NOBODY = "not an origin"
CHARTS = {"rates", "latency", "memory", "temperature"}


def document() -> dict[str, Any]:
    made = make(17.0)
    repeats = made["runs"][0]["repeats"]
    for number, repeat in enumerate(repeats):
        repeat["decode_tokens_per_s"] += number
        repeat["thermal"]["after"] = repeat["thermal"]["after"] | {"battery_celsius": 31.0 + number}
    repeats[2]["throttled"] = True
    made["runs"][0]["summary"] = summarise(repeats)
    made["runs"].append(copy.deepcopy(made["runs"][0]))
    made["runs"][1]["configuration"]["prompt_tokens"] = 32
    return made


class Tags(html.parser.HTMLParser):
    """Every element and attribute of a page; fails on one that is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_nothing_outside_the_page_is_named() -> None:
    page = make_html(document())
    tags = Tags(page).found
    assert {attributes["aria-label"] for tag, attributes in tags if tag == "svg"} == CHARTS
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        for name in ("src", "href", "xlink:href", "data", "srcset"):
            assert (attributes.get(name) or "#").startswith("#")
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page and "http" not in re.sub(r'content="[^"]*"|http-equiv', "", page)
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    used = {(attributes.get("xlink:href") or "")[1:] for _, attributes in tags} | set(
        re.findall(r"url\(#(.*?)\)", page)
    )
    assert used - {""} <= set(ids) and len(page) < 300_000


def test_colours_are_those_of_the_page() -> None:
    page = make_html(document())
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) <= {"#ffffff", "#000000"}
    for name in set(re.findall(r"var\(--([a-z0-9-]+)\)", page)):
        assert CSS.count(f"--{name}:") == 2, name  # light and dark


def test_names_are_not_markup() -> None:
    made = document()
    made["device"]["model"] = "<script>alert(1)</script>"
    made["model"]["file"] = '"><img src=x>.pte'
    made["runs"][0]["repeats"][0]["notes"] = ["<b>went to the background</b>"]
    made |= {"status": "incomplete", "problem": "<i>unplugged</i>"}
    tags = Tags(make_html(made)).found
    assert not {"script", "img", "i"} & {tag for tag, _ in tags} and "&lt;script&gt;" in make_html(made)
    assert "&lt;b&gt;went to the background" in make_html(made)


def test_what_a_device_does_not_tell_is_left_out_and_said() -> None:
    made = document()
    del made["runs"][1]
    for repeat in made["runs"][0]["repeats"]:
        repeat["token_ms"] = []
        repeat["memory"]["samples"] = []
        for state in repeat["thermal"].values():
            state["battery_celsius"] = None
    page = make_html(made)
    labels = {attributes["aria-label"] for tag, attributes in Tags(page).found if tag == "svg"}
    assert labels == {"rates"} and "no chart of token latency, memory, temperature" in page
    made["runs"][0]["repeats"] = []
    assert "<svg" not in make_html(made)


def test_regressions_are_marked() -> None:
    before, now = make(20.0), make(10.0)
    page = make_html(now, before, compare(before, now))
    assert '<span class="worse">50.0% worse</span>' in page and "repeat (dashed: baseline)" in page
    assert "Against the baseline" not in make_html(now)


@pytest.fixture(scope="session")
def chromium() -> str:
    path = shutil.which("chromium")
    need("browser", [] if path else ["chromium"])
    assert path is not None
    return path


def opened(chromium: str, page: Path, scheme: int, folder: Path) -> tuple[Image.Image, list[str]]:
    """A picture of the page and the addresses asked for while it was opened."""
    picture, log = folder / f"{scheme}.png", folder / f"{scheme}.json"
    subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={folder / f'profile{scheme}'}", f"--blink-settings=preferredColorScheme={scheme}",
            "--window-size=1160,1600", f"--screenshot={picture}", f"--log-net-log={log}", page.as_uri(),
        ],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    started = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    # What the browser asks for on its own account has no origin.
    asked = {entry["url"] for entry in started if "url" in entry and entry.get("initiator", NOBODY) != NOBODY}
    return Image.open(picture).convert("RGB"), sorted(url for url in asked if not url.startswith(("file:", "data:")))


def share(picture: Image.Image, colour: str) -> int:
    """How many pixels have exactly this colour."""
    wanted = tuple(bytes.fromhex(colour.removeprefix("#")))
    return sum(count for count, found in picture.getcolors(1 << 24) or [] if found == wanted)


def colours(scheme: int) -> dict[str, str]:
    light, dark = CSS.split("@media", 1)
    return dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", (light if scheme == LIGHT else dark)))


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_a_browser_draws_it_and_asks_for_nothing(scheme: int, chromium: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(make_html(document()))
    picture, asked = opened(chromium, page, scheme, tmp_path)
    assert asked == []
    ours, others = colours(scheme), colours(1 - scheme)
    assert share(picture, ours["page"]) > 50_000 and share(picture, others["page"]) == 0
    for name in ("series-1", "series-2", "hot"):
        assert share(picture, ours[name]) > 20, name
        assert share(picture, others[name]) == 0, name


def test_a_request_would_be_noticed(chromium: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    text = make_html(document()).replace("</body>", '<img src="http://127.0.0.1:9/x.png"></body>')
    page.write_text(text)
    _, asked = opened(chromium, page, LIGHT, tmp_path)
    assert asked == []  # the page's own policy keeps it in
    page.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text))
    _, asked = opened(chromium, page, DARK, tmp_path)
    assert asked == ["http://127.0.0.1:9/x.png"]

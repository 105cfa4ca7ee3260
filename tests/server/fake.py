"""A conversation without a model, whose tokens come when a test lets them, and a server in a thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from checkpoints.source import resolve
from export.engine.conversation import Choosing, Piece, Reply
from export.engine.tokenizer import load_tokenizer
from export.media.settings import TEXT_ONLY, MediaFacts
from export.server.app import make_app
from export.server.listening import bind, url
from export.server.models import Model
from export.server.settings import Settings
from export.server.slots import Slots

TOKENIZER = load_tokenizer(resolve("phi4-tiny").folder / "tokenizer.json")


class FakeConversation:
    """Answers `words` one by one as soon as `gate` is set; what it was asked stands in `asked`."""

    def __init__(
        self, words: int = 4, word: str = "word ", pause: float = 0.0, media: MediaFacts = TEXT_ONLY
    ) -> None:
        self.context, self.tokenizer, self.media = 4096, TOKENIZER, media
        self.held: list[int] = []
        self.words, self.word, self.pause = words, word, pause
        self.gate = threading.Event()
        self.gate.set()
        self.raises: Exception | None = None
        self.asked: list[Any] = []
        self.chosen: list[Choosing] = []
        self.ended: list[str] = []
        self._cancelled = threading.Event()

    def reply(self, messages: Any, choosing: Choosing, tools: Any, on_piece: Callable[[Piece], object]) -> Reply:
        self._cancelled.clear()
        self.asked.append(messages)
        self.chosen.append(choosing)
        if self.raises is not None:
            raise self.raises
        told = 0
        while told < min(self.words, choosing.max_tokens or self.words) and not self._cancelled.is_set():
            if not self.gate.wait(0.01):
                continue
            time.sleep(self.pause)
            on_piece(Piece(self.word))
            told += 1
        self.ended.append("cancelled" if self._cancelled.is_set() else "stop")
        return Reply(self.word * told, (), self.ended[-1], None, 10, 10, told, 1.0, 1.0, 1.0, ())  # type: ignore[arg-type]

    def cancel(self) -> None:
        self._cancelled.set()

    def close(self) -> None:
        self.cancel()


def fake_model(conversations: list[FakeConversation], most_waiting: int = 64, name: str = "fake") -> Model:
    slots: Any = Slots(conversations, most_waiting)  # type: ignore[type-var]
    return Model(name, Path("fake.pte"), slots, ThreadPoolExecutor(len(conversations)), "fp_fake")


@contextmanager
def running(*models: Model, page: bool = False, port: int = 0, **settings: Any) -> Iterator[str]:
    """The url of a server in a thread of this process, with a page or without."""
    chosen = Settings(port=port, **settings)
    taken = bind(chosen)
    served = {model.name: model for model in models}
    app = make_app(served, chosen)
    if page:
        from export.server.page import add_page

        add_page(app, served, chosen)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=2))
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[taken])

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        yield url(taken)
    finally:
        loops[0].call_soon_threadsafe(app.state.desk.closing.set)
        server.should_exit = True
        thread.join(10)
        for one in (one for model in models for one in model.slots.conversations):
            one.words = 0  # type: ignore[attr-defined]  # where an answer cannot be ended, a test fails and does not hang
        thread.join()

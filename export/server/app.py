"""The application: OpenAI's paths over models that are loaded. A page or anything else can be mounted beside them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from export.media.settings import TEXT_ONLY
from export.server import chat, completions
from export.server.answering import Desk, answer, unless_gone
from export.server.errors import JSON, Refused, add_handlers
from export.server.guard import Guard
from export.server.held import Budget
from export.server.metrics import Counted, Metrics
from export.server.models import Model, Models, find_model
from export.server.requests import ChatRequest, CompletionRequest
from export.server.settings import Settings
from export.server.streams import stream

# What a request may come to, for the document of the API.
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text}
    for status, text in {
        400: "what was asked cannot be had",
        401: "an API key is missing or wrong",
        403: "the server has another name",
        404: "no such model",
        408: "the body came too slowly",
        413: "the body is too large",
        429: "too many wait",
        503: "the server is stopping",
    }.items()
}


def make_app(models: Models, settings: Settings) -> FastAPI:
    """A server's application. `app.state.desk.closing`, once set, ends all that is running."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        for model in models.values():
            await asyncio.to_thread(model.close)
        desk.reading.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="Pocketphi",
        version=version("pocketphi"),
        lifespan=lifespan,
        default_response_class=JSON,
        docs_url=None,
        redoc_url=None,
    )
    budget = Budget(settings.max_held_bytes)
    desk = app.state.desk = Desk(Metrics(models), asyncio.Event(), settings, budget)
    add_handlers(app)
    media = any(model.media != TEXT_ONLY for model in models.values())
    app.add_middleware(Guard, settings=settings, budget=budget, media=media)
    app.add_middleware(Counted, metrics=desk.metrics)
    _add_answers(app, models, settings, desk)
    _add_facts(app, models, desk)
    return app


def _add_answers(app: FastAPI, models: Models, settings: Settings, desk: Desk) -> None:
    @app.post("/v1/chat/completions", responses=ERRORS)
    async def chat_completions(asked: ChatRequest, request: Request) -> Response:
        model, reader = find_model(models, asked.model), desk.reader(request.scope["hold"])
        make = partial(chat.make_job, model, asked, _client(request), reader)
        job = await unless_gone(desk, request, desk.make(asked, make))
        if asked.streams:
            return await stream(desk, settings, request, partial(chat.write, desk, job, asked))
        return JSON(chat.body(job.model, await unless_gone(desk, request, answer(desk, job))))

    @app.post("/v1/completions", responses=ERRORS)
    async def text_completions(asked: CompletionRequest, request: Request) -> Response:
        make = partial(completions.make_job, find_model(models, asked.model), asked, _client(request))
        job = await asyncio.to_thread(make)
        if asked.streams:
            return await stream(desk, settings, request, partial(completions.write, desk, job, asked))
        return JSON(completions.body(job.model, asked, await unless_gone(desk, request, answer(desk, job))))

    @app.post("/v1/embeddings", responses={404: ERRORS[404]})
    async def embeddings() -> Response:
        raise Refused(
            404, "no model here makes embeddings: a .pte gives the logits of the next token", code="no_embeddings"
        )


def _client(request: Request) -> Hashable:
    return request.scope.get("client_key"), request.client.host if request.client else None


def _add_facts(app: FastAPI, models: Models, desk: Desk) -> None:
    def told(model: Model) -> dict[str, Any]:
        facts = {"id": model.name, "object": "model", "created": model.created, "owned_by": "pocketphi"}
        return facts | {"max_model_len": model.context, "input_modalities": model.modalities}

    @app.get("/v1/models")
    async def list_models() -> Response:
        return JSON({"object": "list", "data": [told(model) for model in models.values()]})

    @app.get("/v1/models/{name:path}", responses={404: ERRORS[404]})
    async def one_model(name: str) -> Response:
        return JSON(told(find_model(models, name)))

    @app.get("/health")
    async def health() -> Response:
        waiting = {name: model.slots.waiting for name, model in models.items()}
        running = {name: model.slots.running for name, model in models.items()}
        return JSON({"status": "ok", "models": list(models), "running": running, "waiting": waiting})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(desk.metrics.text(), media_type=CONTENT_TYPE_LATEST)

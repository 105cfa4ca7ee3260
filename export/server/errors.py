"""What went wrong, in OpenAI's words: a status that is no success has `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from checkpoints.errors import BadInput

STATUS_CODES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed"}


class Refused(Exception):
    """An answer that is not given; `message` is a sentence for a person, `code` a word for a program."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def body(self) -> dict[str, Any]:
        """The JSON object, also the last event of a stream that fails."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class JSON(Response):
    """Starlette's own fails on unpaired surrogates and on infinities."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


def response(refused: Refused) -> Response:
    return JSON(refused.body(), refused.status, refused.headers)


def bug() -> Refused:
    """What a client is told of an exception that is none of the client's doing; the log has the rest."""
    return Refused(500, "the server failed, its log says more", code="internal_error")


def add_handlers(app: FastAPI) -> None:
    """Have an application answer so, whatever is raised."""

    @app.exception_handler(Refused)
    async def refused(request: Request, problem: Refused) -> Response:
        return response(problem)

    @app.exception_handler(BadInput)
    async def bad_input(request: Request, problem: BadInput) -> Response:
        return response(from_bad_input(problem))

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, problem: RequestValidationError) -> Response:
        return response(_from_validation(problem))

    @app.exception_handler(HTTPException)
    async def http(request: Request, problem: HTTPException) -> Response:
        place = f"{request.method} {request.url.path}"
        sentence = {404: f"there is no {request.url.path} here", 405: f"{place} is not possible here"}
        message = sentence.get(problem.status_code, str(problem.detail))
        code = STATUS_CODES.get(problem.status_code)
        return response(Refused(problem.status_code, message, code=code, headers=problem.headers))

    @app.exception_handler(Exception)
    async def other(request: Request, problem: Exception) -> Response:
        return response(bug())


def from_bad_input(problem: BadInput) -> Refused:
    """What the engine says is wrong with what was asked."""
    return Refused(400, " ".join(str(problem).split()))


def _from_validation(problem: RequestValidationError) -> Refused:
    first = problem.errors()[0]
    if first["type"] == "json_invalid" or (first["type"] == "missing" and first["loc"] == ("body",)):
        return Refused(400, f"the body is not a JSON object: {first['msg']}", code="invalid_json")
    # Of a union every member complains: the one that came furthest is what was meant.
    places = [(list(_within(problem.body, error)), error) for error in problem.errors()]
    place, first = max(places, key=lambda found: len(found[0]))
    param = ".".join(map(str, place))
    if not param:
        return Refused(400, "the body must be a JSON object, sent as application/json", code="invalid_value")
    return Refused(400, f"{param}: {first['msg']}", param=param, code="invalid_value")


def _within(body: Any, error: Mapping[str, Any]) -> Iterator[Any]:
    """The parts of a place that are in the body: of a union pydantic names the member too, as in stop.list[str].0."""
    missing = error["type"] == "missing"
    for part in error["loc"][1:]:
        if isinstance(body, dict) and (part in body or missing):
            yield part
            body = body.get(part)
        elif isinstance(body, list) and isinstance(part, int):
            yield part
            body = body[part] if part < len(body) else None

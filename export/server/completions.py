"""/v1/completions: a text continued as it is, without chat template."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

from export.engine.conversation import Choosing, Conversation, Piece, Reply, TokenLogprob
from export.server.answering import Desk, Job, Work, answer
from export.server.models import Model
from export.server.requests import CompletionRequest
from export.server.wording import finish, head, logprob, usage

Send = Callable[[dict[str, Any]], None]
DEFAULT_TOKENS = 16  # OpenAI's


def make_job(model: Model, request: CompletionRequest, client: Hashable) -> Job:
    """What is to be done for a request; Refused or BadInput where it cannot be. Reads the prompts: for a thread."""
    request.check()
    limit = DEFAULT_TOKENS if request.max_tokens is None else request.max_tokens
    choosing = request.choosing(max_tokens=limit, logprobs=request.logprobs)
    ids = [model.text_ids(prompt) for prompt in request.prompts]

    def choice(prompt: list[int], number: int) -> Work:
        how: Choosing = choosing if choosing.seed is None else replace(choosing, seed=choosing.seed + number)

        def work(conversation: Conversation, on_piece: Callable[[Piece], object]) -> Reply:
            return conversation.complete(prompt, how, on_piece, echo=bool(request.echo))

        return work

    work = [choice(prompt, number) for prompt in ids for number in range(request.choices)]
    return Job(model, client, ids[0], work)


def body(model: Model, request: CompletionRequest, replies: Sequence[Reply]) -> dict[str, Any]:
    """The whole answer."""
    choices = [
        {
            "index": number,
            "text": reply.text,
            "logprobs": None if request.logprobs is None else _logprobs(reply.logprobs, 0),
            "finish_reason": finish(reply),
        }
        for number, reply in enumerate(replies)
    ]
    told = head(model, "text_completion", "cmpl")
    return told | {"choices": choices, "usage": usage(replies, request.choices)}


async def write(desk: Desk, job: Job, request: CompletionRequest, send: Send) -> None:
    """The answer as events."""
    start = head(job.model, "text_completion", "cmpl")
    if request.streams_usage:
        start["usage"] = None
    offsets: dict[int, int] = {}  # characters of logprobs' tokens told so far, of each choice

    def told(choice: int, what: Piece | Reply) -> None:
        found: dict[str, Any] = {"index": choice, "text": "", "logprobs": None, "finish_reason": None}
        if isinstance(what, Reply):
            found["finish_reason"] = finish(what)
        elif not what.text and not what.logprobs:
            return
        else:
            found["text"] = what.text
            if what.logprobs:
                found["logprobs"] = _logprobs(what.logprobs, offsets.get(choice, 0))
                offsets[choice] = offsets.get(choice, 0) + sum(len(token.text) for token in what.logprobs)
        send(start | {"choices": [found]})

    replies = await answer(desk, job, told)
    if request.streams_usage:
        send(start | {"choices": [], "usage": usage(replies, request.choices)})


def _logprobs(found: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    offsets = []
    for token in found:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in found],
        "token_logprobs": [logprob(token.logprob) for token in found],
        "top_logprobs": [
            {other.text: logprob(other.logprob) for other in token.top} if token.top else None for token in found
        ],
        "text_offset": offsets,
    }

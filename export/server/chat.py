"""/v1/chat/completions: an answer to messages, in one piece or as it comes."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

from export.engine.conversation import Conversation, Piece, Reply, TokenLogprob, ToolCall
from export.server.answering import Desk, Job, Work, answer
from export.server.forced import call_schema, read_call
from export.server.media import Reader
from export.server.models import Model
from export.server.requests import ChatRequest
from export.server.wording import finish, head, logprob, usage

Send = Callable[[dict[str, Any]], None]


def make_job(model: Model, request: ChatRequest, client: Hashable, reader: Reader) -> Job:
    """What is to be done for a request; Refused or BadInput where it cannot be. Reads the prompt: for a thread."""
    request.check()
    messages = [message.plain(at) for at, message in enumerate(request.messages)]
    messages = reader.messages(messages, model.media)
    tools = [tool.model_dump(exclude_none=True) for tool in request.offered] or None
    limit = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    choosing = request.choosing(
        max_tokens=limit,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        schema=call_schema(request.forced) if request.forced else request.wanted_schema,
    )
    prompt = model.prompt(messages, tools)

    def choice(number: int) -> Work:
        how = choosing if choosing.seed is None else replace(choosing, seed=choosing.seed + number)

        def work(conversation: Conversation, on_piece: Callable[[Piece], object]) -> Reply:
            if request.forced:
                return read_call(conversation.complete(prompt.content, how, on_piece))
            return conversation.reply(messages, how, tools, on_piece)

        return work

    return Job(model, client, prompt.ids, [choice(number) for number in range(request.choices)])


def body(model: Model, replies: Sequence[Reply]) -> dict[str, Any]:
    """The whole answer."""
    choices = []
    for number, reply in enumerate(replies):
        message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
        if reply.tool_calls:
            message["content"] = reply.text or None
            message["tool_calls"] = [_call(call) for call in reply.tool_calls]
        choices.append(
            {
                "index": number,
                "message": message,
                "logprobs": _logprobs(reply.logprobs) if reply.logprobs else None,
                "finish_reason": finish(reply),
            }
        )
    told = head(model, "chat.completion", "chatcmpl")
    return told | {"choices": choices, "usage": usage(replies, len(replies))}


async def write(desk: Desk, job: Job, request: ChatRequest, send: Send) -> None:
    """The answer as events."""
    start = head(job.model, "chat.completion.chunk", "chatcmpl")
    if request.streams_usage:
        start["usage"] = None
    calls: dict[int, int] = {}  # told so far, of each choice

    def event(
        choice: int, delta: dict[str, Any], logprobs: Sequence[TokenLogprob] = (), end: str | None = None
    ) -> None:
        told = {"index": choice, "delta": delta, "logprobs": _logprobs(logprobs) if logprobs else None}
        send(start | {"choices": [told | {"finish_reason": end}]})

    def begin(choice: int) -> None:
        if choice not in calls:
            calls[choice] = 0
            event(choice, {"role": "assistant", "content": ""})

    def call(choice: int, found: Sequence[ToolCall]) -> dict[str, Any]:
        at = calls[choice]
        calls[choice] += len(found)
        return {"tool_calls": [{"index": at + number} | _call(one) for number, one in enumerate(found)]}

    def told(choice: int, what: Piece | Reply) -> None:
        begin(choice)
        if isinstance(what, Reply):
            if request.forced:  # its text is a call, or what was cut of one
                if what.tool_calls:
                    event(choice, call(choice, what.tool_calls))
                elif what.text:
                    event(choice, {"content": what.text})
            event(choice, {}, end=finish(what))
            return
        delta: dict[str, Any] = {}
        if not request.forced:
            delta = ({"content": what.text} if what.text else {}) | (
                call(choice, what.tool_calls) if what.tool_calls else {}
            )
        if delta or what.logprobs:
            event(choice, delta, what.logprobs)

    replies = await answer(desk, job, told)
    if request.streams_usage:
        send(start | {"choices": [], "usage": usage(replies, len(replies))})


def _call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _logprobs(found: Sequence[TokenLogprob]) -> dict[str, Any]:
    def one(token: TokenLogprob) -> dict[str, Any]:
        return {"token": token.text, "logprob": logprob(token.logprob), "bytes": list(token.bytes)}

    return {
        "content": [one(token) | {"top_logprobs": [one(other) for other in token.top]} for token in found],
        "refusal": None,
    }

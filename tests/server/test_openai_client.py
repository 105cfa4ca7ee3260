"""The server by OpenAI's own Python client, unchanged; what is said is what the runtime's logits say."""

from __future__ import annotations

import json
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
import torch

from checkpoints.source import resolve
from export.engine.chat_template import chat_prompt
from export.engine.session import Session
from export.engine.tokenizer import load_tokenizer
from tests.server.running import HTTP, Server, serving

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0}
TOKENIZER = load_tokenizer(resolve("phi4-tiny").folder / "tokenizer.json")
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
            "$defs": {"city": {"type": "string", "maxLength": 12}},
        },
    },
}
TIME: Any = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}


def expected_logprobs(pte: Path, ids: list[int], count: int) -> list[tuple[int, torch.Tensor]]:
    """Greedy tokens by the wheel's runtime, and the log probabilities each was chosen from."""
    session, found = Session(pte), []
    logits = session.step(ids, 0)[-1]
    for at in range(count):
        logprobs = logits[: TOKENIZER.vocab_size].double().log_softmax(-1)
        found.append((int(logprobs.argmax()), logprobs))
        logits = session.step([found[-1][0]], len(ids) + at)[-1]
    return found


def test_chat(server: Server) -> None:
    found = server.client.chat.completions.create(messages=MESSAGES, **GREEDY)
    assert found.choices[0].message.content == ANSWER and found.choices[0].finish_reason == "stop"
    ids = TOKENIZER.encode(chat_prompt(resolve("phi4-tiny").folder, MESSAGES))
    assert found.usage is not None and found.usage.prompt_tokens == len(ids)
    assert found.usage.completion_tokens == len(TOKENIZER.encode(ANSWER))
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_the_prompt_is_kept(server: Server) -> None:
    """A second turn feeds what is new, and metrics count the rest."""
    first = server.client.chat.completions.create(messages=MESSAGES, **GREEDY)
    more: Any = [*MESSAGES, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": "And of Italy?"}]
    before = server.metric("cached_prompt_tokens_total", model="tiny")
    second = server.client.chat.completions.create(messages=more, **GREEDY)
    assert first.usage and second.usage and second.usage.prompt_tokens_details
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached == first.usage.total_tokens  # all but the stop token, which was never fed, and the new turn
    assert server.metric("cached_prompt_tokens_total", model="tiny") == before + cached
    other = server.client.chat.completions.create(messages=[{"role": "user", "content": "Hi"}], **GREEDY)
    third = server.client.chat.completions.create(messages=more, **GREEDY)
    assert other.usage and third.usage and third.usage.prompt_tokens_details  # the other went beside it
    assert third.usage.prompt_tokens_details.cached_tokens == third.usage.prompt_tokens - 1


def test_stream(server: Server) -> None:
    stream = server.client.chat.completions.create(
        messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant" and len(chunks) > 8
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    whole = server.client.chat.completions.create(messages=MESSAGES, **GREEDY).usage
    assert not chunks[-1].choices and chunks[-1].usage and whole
    assert chunks[-1].usage.completion_tokens == whole.completion_tokens
    assert {chunk.id for chunk in chunks} == {chunks[0].id} and all(chunk.usage is None for chunk in chunks[:-1])


def test_text_parts_and_system(server: Server) -> None:
    parts: Any = [
        {"role": "user", "content": [{"type": "text", "text": QUESTION[:8]}, {"type": "text", "text": QUESTION[8:]}]}
    ]
    assert server.client.chat.completions.create(messages=parts, **GREEDY).choices[0].message.content == ANSWER
    told: Any = [{"role": "developer", "content": "Be brief."}, *MESSAGES]
    as_system: Any = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    counts = [
        server.client.chat.completions.create(messages=messages, max_tokens=1, **GREEDY).usage
        for messages in (told, as_system)
    ]
    assert counts[0] and counts[1] and counts[0].prompt_tokens == counts[1].prompt_tokens


def test_logprobs_are_the_runtimes(server: Server, served_pte: Path) -> None:
    ids = TOKENIZER.encode(chat_prompt(resolve("phi4-tiny").folder, MESSAGES))
    found = server.client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=3, **GREEDY)
    assert found.choices[0].logprobs and found.choices[0].logprobs.content
    tokens = found.choices[0].logprobs.content
    assert (
        "".join(token.token for token in tokens)
        == ANSWER
        == bytes(chain.from_iterable(t.bytes or [] for t in tokens)).decode()
    )
    for token, (best, logprobs) in zip(tokens, expected_logprobs(served_pte, ids, len(tokens)), strict=True):
        assert token.logprob == pytest.approx(float(logprobs[best]), abs=2e-2)
        values = logprobs.topk(3)
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(values.values.tolist(), abs=0.1)
        assert token.token == TOKENIZER.decode([best])
    streamed = server.client.chat.completions.create(
        messages=MESSAGES, logprobs=True, top_logprobs=3, stream=True, **GREEDY
    )
    pieces = [chunk.choices[0].logprobs.content or [] for chunk in streamed if chunk.choices[0].logprobs]
    assert [one.model_dump() for piece in pieces for one in piece] == [one.model_dump() for one in tokens]


def test_choices_and_seeds(server: Server) -> None:
    hot: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "temperature": 2.0, "max_tokens": 12, "n": 3}
    texts = [
        [choice.message.content for choice in server.client.chat.completions.create(seed=seed, **hot).choices]
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1] != texts[2] and len(set(texts[0])) == 3
    streamed: dict[int, str] = {}
    for chunk in server.client.chat.completions.create(seed=7, stream=True, **hot):
        index = chunk.choices[0].index
        streamed[index] = streamed.get(index, "") + (chunk.choices[0].delta.content or "")
    assert [streamed[index] for index in range(3)] == texts[0]
    usage = server.client.chat.completions.create(seed=7, **hot).usage
    assert usage and usage.completion_tokens <= 36 and usage.prompt_tokens < 20
    greedy = server.client.chat.completions.create(n=2, messages=MESSAGES, extra_body={"top_k": 1}, model="tiny")
    assert [choice.message.content for choice in greedy.choices] == [ANSWER, ANSWER]


def test_ends(server: Server) -> None:
    def end(**options: Any) -> tuple[str | None, str]:
        found = server.client.chat.completions.create(messages=MESSAGES, **GREEDY | options).choices[0]
        return found.message.content, found.finish_reason

    assert end(stop=" France") == ("The capital of", "stop")
    assert end(stop=["nothing", "is Par"]) == ("The capital of France ", "stop")
    assert end(max_tokens=2) == ("The capital", "length")
    assert end(max_completion_tokens=3, max_tokens=1) == ("The capital of", "length")
    (the,) = TOKENIZER.encode("The")
    assert not end(logit_bias={str(the): -100})[0].startswith("The")  # type: ignore[union-attr]
    (end_id,) = TOKENIZER.encode("<|end|>")
    endless = {str(end_id): -100, str(TOKENIZER.encode("<|endoftext|>")[0]): -100}
    assert end(logit_bias=endless)[1] == "length"  # the context is full


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"type": "function", "function": {"name": "get_weather"}}, {"get_weather"}),
        ("required", {"get_weather", "get_time"}),
    ],
    ids=["named", "required"],
)
def test_a_call_that_must_come(server: Server, choice: Any, names: set[str], stream: bool) -> None:
    asked: dict[str, Any] = {"messages": MESSAGES, "tools": [TIME, WEATHER], "tool_choice": choice, **GREEDY}
    if stream:
        calls, reasons = [], []
        for chunk in server.client.chat.completions.create(stream=True, **asked):
            assert not chunk.choices[0].delta.content
            calls += chunk.choices[0].delta.tool_calls or []
            reasons.append(chunk.choices[0].finish_reason)
        (call,), reason = calls, reasons[-1]
        assert call.index == 0
    else:
        found = server.client.chat.completions.create(**asked).choices[0]
        assert found.message.content is None and found.message.tool_calls
        (call,), reason = found.message.tool_calls, found.finish_reason
    assert reason == "tool_calls" and call.id.startswith("call_") and call.function.name in names
    tool = WEATHER if call.function.name == "get_weather" else TIME
    jsonschema.validate(json.loads(call.function.arguments), tool["function"]["parameters"])


def test_tools_that_may_be_called(server: Server) -> None:
    """The model was taught no tools: they are in its prompt, and its text is text."""
    plain = server.client.chat.completions.create(messages=MESSAGES, **GREEDY)
    offered = server.client.chat.completions.create(messages=MESSAGES, tools=[WEATHER], max_tokens=8, **GREEDY)
    refused = server.client.chat.completions.create(messages=MESSAGES, tools=[WEATHER], tool_choice="none", **GREEDY)
    assert offered.usage and plain.usage and refused.usage
    assert offered.usage.prompt_tokens > plain.usage.prompt_tokens + 40
    assert refused.usage.prompt_tokens == plain.usage.prompt_tokens
    earlier: Any = {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    turns: Any = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [earlier]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]
    assert server.client.chat.completions.create(messages=turns, tools=[TIME], max_tokens=4, **GREEDY).choices


def test_structured_answers(server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 10},
            "million": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["city", "million"],
        "additionalProperties": False,
    }
    asked: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}}
    found = server.client.chat.completions.create(messages=MESSAGES, response_format=asked, **GREEDY)
    assert found.choices[0].finish_reason == "stop" and found.choices[0].message.content
    jsonschema.validate(json.loads(found.choices[0].message.content), schema)
    free = server.client.chat.completions.create(messages=MESSAGES, response_format={"type": "json_object"}, **GREEDY)
    assert (free.choices[0].message.content or "").startswith("{")


def test_completions(server: Server, served_pte: Path) -> None:
    text = chat_prompt(resolve("phi4-tiny").folder, MESSAGES)
    ids = TOKENIZER.encode(text)
    asked: dict[str, Any] = {"max_tokens": 20, **GREEDY}
    for prompt in (text, ids):
        assert server.client.completions.create(prompt=prompt, **asked).choices[0].text == ANSWER  # type: ignore[arg-type]
    two = server.client.completions.create(prompt=[text, "Once"], n=2, **asked)
    assert [choice.index for choice in two.choices] == [0, 1, 2, 3] and two.choices[1].text == ANSWER
    assert two.choices[2].text == two.choices[3].text != ANSWER
    assert two.usage and two.usage.prompt_tokens == len(ids) + len(TOKENIZER.encode("Once"))
    echoed = server.client.completions.create(prompt=text, echo=True, **asked).choices[0].text
    assert echoed == text + ANSWER
    graded = server.client.completions.create(
        prompt=text + ANSWER, echo=True, logprobs=0, **asked | {"max_tokens": 0}
    )
    grades = graded.choices[0].logprobs
    assert grades and grades.tokens and grades.token_logprobs and graded.choices[0].text == text + ANSWER
    assert "".join(grades.tokens) == text + ANSWER and grades.token_logprobs[0] is None
    scored = server.client.completions.create(prompt=text, logprobs=2, **asked).choices[0].logprobs
    assert scored and scored.tokens and scored.text_offset and scored.top_logprobs and scored.token_logprobs
    assert "".join(scored.tokens) == ANSWER and [ANSWER[at] for at in scored.text_offset] == [
        t[0] for t in scored.tokens
    ]
    assert grades.token_logprobs[-len(scored.tokens) :] == pytest.approx(scored.token_logprobs, abs=2e-2)
    expected = expected_logprobs(served_pte, ids, len(scored.tokens))
    assert scored.token_logprobs == pytest.approx([float(row[best]) for best, row in expected], abs=2e-2)
    streamed = list(server.client.completions.create(prompt=text, logprobs=2, stream=True, **asked))
    assert "".join(chunk.choices[0].text for chunk in streamed) == ANSWER
    pieces = [chunk.choices[0].logprobs for chunk in streamed if chunk.choices[0].logprobs]
    offsets = [offset for piece in pieces for offset in piece.text_offset or []]
    assert offsets == scored.text_offset and all(a < b for a, b in pairwise(offsets))
    assert server.client.completions.create(prompt="a b c", model="tiny").usage.completion_tokens <= 16  # type: ignore[union-attr]


def test_models(server: Server) -> None:
    (model,) = server.client.models.list()
    assert model.id == "tiny" and server.client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="there is no model 'other' here, only tiny"):
        server.client.models.retrieve("other")


@pytest.mark.parametrize(
    ("options", "kind", "sentence", "param"),
    [
        ({"model": "gpt"}, openai.NotFoundError, "there is no model 'gpt' here", "model"),
        ({"temperature": -1}, openai.BadRequestError, "temperature -1.0 is not within 0", None),
        (
            {"temperature": "hot"},
            openai.BadRequestError,
            "temperature: Input should be a valid number",
            "temperature",
        ),
        ({"messages": []}, openai.BadRequestError, "messages: List should have at least 1 item", "messages"),
        ({"messages": [{"role": "king"}]}, openai.BadRequestError, "messages.0.role: ", "messages.0.role"),
        (
            {"messages": [{"role": "user"}]},
            openai.BadRequestError,
            r"messages\[0\] has no content",
            "messages.0.content",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            openai.BadRequestError,
            "is 'image_url', this model reads text only",
            "messages.0.content.0",
        ),
        (
            {"messages": [{"role": "user", "content": "a " * 999}]},
            openai.BadRequestError,
            "the context of tiny is 512",
            None,
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, openai.BadRequestError, "unpaired surrogate", None),
        ({"stop": [1]}, openai.BadRequestError, "stop.0: Input should be a valid string", "stop.0"),
        ({"stop": ["a", 1]}, openai.BadRequestError, "stop.1: Input should be a valid string", "stop.1"),
        ({"n": 99}, openai.BadRequestError, "n: Input should be less than or equal to 16", "n"),
        ({"logit_bias": {"x": 1}}, openai.BadRequestError, "logit_bias has the key 'x'", "logit_bias"),
        ({"logit_bias": {"999999": 1}}, openai.BadRequestError, "logit_bias", None),
        ({"top_logprobs": 2}, openai.BadRequestError, "top_logprobs needs logprobs", "top_logprobs"),
        ({"tool_choice": "required"}, openai.BadRequestError, "there are no tools", "tool_choice"),
        (
            {"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            openai.BadRequestError,
            "'x', which is none of the tools",
            "tool_choice",
        ),
        (
            {"tools": [TIME], "response_format": {"type": "json_object"}},
            openai.BadRequestError,
            "both follow response_format and call a tool",
            "response_format",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}},
            openai.BadRequestError,
            "schema",
            None,
        ),
        ({"functions": [{"name": "x"}]}, openai.BadRequestError, "use tools and tool_choice", "functions"),
        ({"modalities": ["audio"]}, openai.BadRequestError, "only text can be had", "modalities"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals(
    server: Server,
    options: dict[str, Any],
    kind: type[openai.APIStatusError],
    sentence: str,
    param: str | None,
    stream: bool,
) -> None:
    """Also of a stream: the status is told before it begins."""
    asked = {"messages": MESSAGES, **GREEDY, **options}
    body = {key: asked.pop(key) for key in list(asked) if key not in ("messages", "model")}
    if "surrogate" in sentence:
        body["messages"] = None  # the client cannot send it: as JSON can
        found = raw(server, '{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}')
        assert found["error"]["message"].startswith("the text has an unpaired surrogate")
        return
    with pytest.raises(kind, match=sentence) as refused:
        server.client.chat.completions.create(**asked, stream=stream, extra_body=body)
    error: Any = refused.value.body
    assert error.keys() == {"message", "type", "param", "code"} and error["param"] == param
    assert error["type"] == "invalid_request_error"


def raw(server: Server, body: str) -> Any:
    headers = {"Content-Type": "application/json"}
    return HTTP.post(f"{server.url}/v1/chat/completions", content=body, headers=headers).json()


def test_the_context_is_told(server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        server.client.completions.create(prompt=[65] * 512, model="tiny")
    assert refused.value.code == "context_length_exceeded"
    assert "the prompt has 512 tokens, the context of tiny is 512" in refused.value.message
    assert server.client.completions.create(prompt=[65] * 511, model="tiny").choices[0].finish_reason == "length"


def test_embeddings(server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="no model here makes embeddings"):
        server.client.embeddings.create(model="tiny", input="text")


def test_a_client_that_does_not_wait(server: Server) -> None:
    """Its timeout closes the connection: what it asked for is ended, and the next request is answered."""
    before = server.metric("cancelled_total", model="tiny")
    long: Any = {str(TOKENIZER.encode(text)[0]): -100 for text in ("<|end|>", "<|endoftext|>")}
    with pytest.raises(openai.APITimeoutError):
        server.client.with_options(timeout=0.3).chat.completions.create(
            messages=MESSAGES, n=16, logit_bias=long, **GREEDY
        )
    assert server.client.chat.completions.create(messages=MESSAGES, **GREEDY).choices[0].message.content == ANSWER
    while server.health()["running"]["tiny"]:
        pass
    assert server.metric("cancelled_total", model="tiny") == before + 1


def test_keys(served_pte: Path, packed: Path) -> None:
    with serving(
        served_pte, "--api-key", "one", "--api-key", "two", "--served-model-name", "small", "--packed", packed
    ) as own:
        for key in ("one", "two"):
            assert [model.id for model in own.client.with_options(api_key=key).models.list()] == ["small"]
        for key in ("three", "on", "ö", ""):
            with pytest.raises((openai.AuthenticationError, UnicodeEncodeError, openai.OpenAIError)):
                own.client.with_options(api_key=key).models.list()
        assert own.health()["status"] == "ok"

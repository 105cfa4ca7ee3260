"""What may be asked: OpenAI's request bodies, as far as a `.pte` can follow them.

Fields that change no answer of ours (`user`, `store`, `service_tier` …) are taken and ignored, as is everything
unknown; what would change it and cannot be had is refused with a sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from export.engine.conversation import Choosing
from export.media.prompt import Kind
from export.server.errors import Refused

MOST_CHOICES = 16  # answers to one request
MOST_STOPS = 16
MOST_PROMPTS = 64
# Parts of a message's content, and the one role that may have them: as OpenAI's.
PARTS = {"text": None, "refusal": "assistant", "image_url": "user", "input_audio": "user"}
SOUND_FORMATS = ("wav", "mp3", "flac", "ogg")  # OpenAI's, and what else is read
DEFAULT_TEMPERATURE = 1.0  # OpenAI's
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Body(BaseModel):
    """JSON as it is: "1" is no number, and NaN none either."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class StreamOptions(Body):
    include_usage: bool | None = None


class Asked(Body):
    """What both ways of asking share. The last three of the sampling are no fields of OpenAI's."""

    model: str | None = None  # may be left out where one model is served
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def streams(self) -> bool:
        return bool(self.stream)

    @property
    def streams_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def choosing(self, **more: Any) -> Choosing:
        """The engine's; BadInput for what no model can follow."""
        names = (
            "max_tokens",
            "top_p",
            "presence_penalty",
            "frequency_penalty",
            "top_k",
            "min_p",
            "repetition_penalty",
        )
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        temperature = DEFAULT_TEMPERATURE if self.temperature is None else self.temperature
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        seed = None if self.seed is None else self.seed % (1 << 63)  # OpenAI's may be negative
        bias = {_token_id(key): value for key, value in (self.logit_bias or {}).items()}
        found = Choosing(
            **{**given, "temperature": temperature, "stop": tuple(stop), "seed": seed, "logit_bias": bias, **more}
        )
        found.check()
        return found


def _token_id(key: str) -> int:
    if not key.isascii() or not key.isdecimal() or len(key) > 9:
        raise Refused(400, f"logit_bias has the key {key!r:.80}, keys are ids of tokens", param="logit_bias")
    return int(key)


# ---- /v1/chat/completions


class ImageUrl(Body):
    url: str
    detail: str | None = None  # changes nothing: a file cuts every picture by its size


class InputAudio(Body):
    data: str  # base64
    format: str  # what it really is its content says


class Part(Body):
    """Of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | None = None
    input_audio: InputAudio | None = None


@dataclass(frozen=True)
class Given:
    """A picture or a sound as it was sent."""

    kind: Kind
    source: str  # a URL, or base64
    name: str  # of the part, for sentences
    part: str  # the same as `param` of an error
    param: str  # where the source stands


class CalledFunction(Body):
    name: str
    arguments: str


class Called(Body):
    """A tool call of an earlier answer."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    refusal: str | None = None  # of an earlier answer, in place of its content
    name: str | None = None
    tool_calls: list[Called] | None = None
    tool_call_id: str | None = None

    def plain(self, at: int) -> dict[str, Any]:
        """For the chat template, with a `Given` where a picture or sound is; `at` is its place."""
        # Templates know no developer: it is what OpenAI now calls the system.
        told: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role}
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.refusal)):
            raise Refused(400, f"messages[{at}] has no content", param=f"messages.{at}.content")
        told["content"] = self._content(at)
        if self.name is not None:
            told["name"] = self.name
        if self.tool_calls:
            if self.role != "assistant":
                raise Refused(
                    400, f"messages[{at}].tool_calls is for role assistant", param=f"messages.{at}.tool_calls"
                )
            told["tool_calls"] = [call.model_dump(exclude_none=True) for call in self.tool_calls]
        if self.tool_call_id is not None:
            told["tool_call_id"] = self.tool_call_id
        return told

    def _content(self, at: int) -> str | list[dict[str, Any]]:
        """A text, or `export.media.prompt`'s parts where there is more than text."""
        if self.content is None or isinstance(self.content, str):
            return self.content or self.refusal or ""
        parts = [self._part(part, at, number) for number, part in enumerate(self.content)]
        if all(part["type"] == "text" for part in parts):
            return "".join(part["text"] for part in parts)
        return parts

    def _part(self, part: Part, at: int, number: int) -> dict[str, Any]:
        name, param = f"messages[{at}].content[{number}]", f"messages.{at}.content.{number}"
        if part.type not in PARTS:
            known = ", ".join(PARTS)
            raise Refused(
                400, f"{name} is {part.type!r:.40}, {known} are read", param=param, code="unsupported_content"
            )
        given, role = getattr(part, part.type), PARTS[part.type]
        if given is None:
            raise Refused(400, f"{name} has no {part.type}", param=param)
        if role not in (None, self.role):
            raise Refused(400, f"{name} is {part.type!r}, which is for role {role}, not {self.role}", param=param)
        if isinstance(given, ImageUrl):
            return {"type": "image", "image": Given("image", given.url, name, param, f"{param}.image_url.url")}
        if isinstance(given, InputAudio):
            if given.format not in SOUND_FORMATS:
                what = f"{name} has the format {given.format!r:.40}, {', '.join(SOUND_FORMATS)} are read"
                raise Refused(400, what, param=f"{param}.input_audio.format")
            return {"type": "audio", "audio": Given("audio", given.data, name, param, f"{param}.input_audio.data")}
        return {"type": "text", "text": given}


class Function(Body):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None  # JSON schema


class Tool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: str


class NamedChoice(Body):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(Asked):
    """Of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=0)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    response_format: ResponseFormat | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    modalities: list[str] | None = None

    def check(self) -> None:
        """Refuse what cannot be had."""
        if self.functions or self.function_call not in (None, "none", "auto"):
            raise Refused(
                400, "functions and function_call are not known here: use tools and tool_choice", param="functions"
            )
        if self.modalities and set(self.modalities) != {"text"}:
            raise Refused(400, "modalities: only text can be had", param="modalities")
        if self.top_logprobs is not None and not self.logprobs:
            raise Refused(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise Refused(400, "tool_choice asks for a call, and there are no tools", param="tool_choice")
        if self.offered and self.wanted_schema is not None:
            raise Refused(
                400,
                "an answer cannot both follow response_format and call a tool: leave one out",
                param="response_format",
            )

    @property
    def has_media(self) -> bool:
        """Whether pictures or sound must be read first."""
        contents = [message.content for message in self.messages]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        return any(part.image_url or part.input_audio for part in parts)

    @property
    def offered(self) -> list[Tool]:
        """The tools that may be called."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def forced(self) -> list[Tool]:
        """Of them one must be called; empty where that is the model's choice."""
        if self.tool_choice == "required":
            return self.offered
        if not isinstance(self.tool_choice, NamedChoice):
            return []
        name = self.tool_choice.function.name
        if not (found := [tool for tool in self.offered if tool.function.name == name]):
            raise Refused(400, f"tool_choice names {name!r:.80}, which is none of the tools", param="tool_choice")
        return found[:1]

    @property
    def wanted_schema(self) -> Any:
        """What `response_format` asks for, as `Choosing.schema` has it."""
        if self.response_format is None or self.response_format.type == "text":
            return None
        if self.response_format.type == "json_object":
            return "json"
        given = self.response_format.json_schema
        if given is None or given.schema_ is None:
            raise Refused(
                400, "response_format.json_schema has no schema", param="response_format.json_schema.schema"
            )
        return given.schema_


# ---- /v1/completions


class CompletionRequest(Asked):
    """Of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    def check(self) -> None:
        """Refuse what cannot be had."""
        if self.suffix:
            raise Refused(400, "suffix: a text cannot be filled in before another", param="suffix")
        if self.best_of is not None and self.best_of != self.choices:
            raise Refused(400, f"best_of {self.best_of}: the best of several is not looked for", param="best_of")
        if not 1 <= len(self.prompts) <= MOST_PROMPTS:
            raise Refused(400, f"{len(self.prompts)} prompts, 1 to {MOST_PROMPTS} are possible", param="prompt")

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]

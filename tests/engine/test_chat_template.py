"""Chat templates as transformers renders them: turns, tools, calls and lists of parts; and templates that fail."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from checkpoints.errors import BadInput
from export.engine.chat_template import chat_prompt
from export.engine.tool_calls import ToolCall, ToolCalls

PHI4 = Path(__file__).parents[2] / "checkpoints" / "phi4-tiny"
FUNCTION = {
    "name": "weather",
    "description": "What the weather is in a city: é",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
USER = {"role": "user", "content": "Is it raining in Zürich?"}
CALLED = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
ANSWERED = [*CALLED, {"role": "tool", "tool_call_id": "call_1", "content": "rain"}]
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " \n Why?"}]
KNOWS_TOOLS = (
    "{% for tool in tools %}{{ tool.function.name }};{% endfor %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for call in m.tool_calls %}{{ call.function.name }}({{ call.function.arguments.city }}){% endfor %}"
    "{% endfor %}[assistant]"
)


def theirs(messages: list[dict[str, Any]], **more: Any) -> str:
    tokenizer = AutoTokenizer.from_pretrained(PHI4)
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **more))


@pytest.fixture
def knows_tools(tmp_path: Path) -> Path:
    (tmp_path / "chat_template.jinja").write_text(KNOWS_TOOLS)
    return tmp_path


def test_phi4_mini_has_tools_in_the_systems_turn() -> None:
    system = {"role": "system", "content": "Be brief."}
    text = json.dumps([FUNCTION], ensure_ascii=False)
    assert chat_prompt(PHI4, [system, USER], TOOLS) == theirs([system | {"tools": text}, USER])
    assert chat_prompt(PHI4, [USER], TOOLS) == theirs([{"role": "system", "content": "", "tools": text}, USER])
    assert chat_prompt(PHI4, [USER], [FUNCTION]) == chat_prompt(PHI4, [USER], TOOLS)
    assert chat_prompt(PHI4, [USER], []) == chat_prompt(PHI4, [USER]) == theirs([USER])


def test_phi4_mini_reads_calls_as_it_writes_them() -> None:
    prompt = chat_prompt(PHI4, ANSWERED)
    written = prompt[prompt.index("<|assistant|>") + len("<|assistant|>") : prompt.index("<|end|><|tool|>")]
    assert ToolCalls().push(written) == ("", [ToolCall("weather", '{"city": "Zürich"}')])
    assert prompt == theirs([USER, {"role": "assistant", "content": written}, {"role": "tool", "content": "rain"}])


def test_a_template_with_tools_of_its_own(knows_tools: Path) -> None:
    """Arguments are objects there, as transformers documents it for templates."""
    wanted = "weather;[user]Is it raining in Zürich?[assistant]weather(Zürich)[tool]rain[assistant]"
    assert chat_prompt(knows_tools, ANSWERED, TOOLS) == wanted
    parsed = {**CALL, "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
    turns = [USER, {"role": "assistant", "content": "", "tool_calls": [parsed]}, ANSWERED[2]]
    assert theirs(turns, tools=TOOLS, chat_template=KNOWS_TOOLS) == wanted
    assert ANSWERED[1]["tool_calls"] == [CALL], "what was given is not changed"


def test_parts_of_a_content() -> None:
    parts = [{"type": "text", "text": "Is it"}, {"type": "text", "text": "raining?"}]
    assert chat_prompt(PHI4, [{"role": "user", "content": parts}]) == theirs([USER | {"content": "Is it\nraining?"}])


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ("hello", r"messages\[1\] must have a string 'role'"),
        ({"content": "x"}, r"messages\[1\] must have a string 'role'"),
        ({"role": "assistant", "content": None}, r"messages\[1\] must have a string 'content'"),
        ({"role": "user", "content": [{"type": "image_url"}]}, r"messages\[1\]: parts of a content must be texts"),
        ({"role": "assistant", "tool_calls": [{}]}, r"messages\[1\]: tool_calls must have functions"),
        ({"role": "assistant", "tool_calls": 3}, r"messages\[1\]: tool_calls must have functions"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "{"}}]},
            r"messages\[1\]: tool_calls must have functions with name and JSON arguments",
        ),
    ],
    ids=str,
)
def test_turns_that_are_none(turn: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        chat_prompt(PHI4, [USER, turn])


def test_tools_without_a_place(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(BadInput, match="the chat template has no place for tools"):
        chat_prompt(tmp_path, [USER], TOOLS)
    with pytest.raises(BadInput, match="tools must be a list of functions with a name"):
        chat_prompt(PHI4, [USER], [{"type": "function"}])


def test_chat_prompt_is_that_of_transformers() -> None:
    theirs = AutoTokenizer.from_pretrained(PHI4).apply_chat_template(
        TURNS, tokenize=False, add_generation_prompt=True
    )
    assert chat_prompt(PHI4, TURNS) == chat_prompt(PHI4 / "tokenizer_config.json", TURNS) == theirs
    assert theirs == "<|system|>Be brief.<|end|><|user|> \n Why?<|end|><|assistant|>"


def test_chat_templates(tmp_path: Path) -> None:
    prompt = "<|system|>Be brief.<|end|><|user|> \n Why?<|end|><|assistant|>"
    assert chat_prompt(tmp_path, TURNS) == prompt  # nothing there: Phi-4-mini's
    settings: dict[str, Any] = {"bos_token": {"content": "<s>"}, "pad_token": None, "add_bos_token": True}
    listed = [
        {"name": "tool_use", "template": "x"},
        {"name": "default", "template": "{{ bos_token }}{{ messages[0].role }}"},
    ]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": listed}))
    assert chat_prompt(tmp_path, TURNS) == "<s>system"
    (tmp_path / "chat_template.jinja").write_text("{{ messages[1].content }}|é")
    assert chat_prompt(tmp_path, TURNS) == " \n Why?|é"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ raise_exception('only user turns') }}", "only user turns"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ messages[9].content.x }}", "UndefinedError"),
        (17, "chat template"),
        ([{"name": "x"}], "entries without name and template"),
    ],
)
def test_templates_that_fail(template: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(BadInput, match=words) as caught:
        chat_prompt(tmp_path, TURNS)
    assert str(tmp_path) in str(caught.value)


def test_messages_need_a_role_and_a_content(tmp_path: Path) -> None:
    for message in ({"role": "user"}, {"content": "x"}, {"role": "user", "content": None}):
        with pytest.raises(BadInput, match=r"messages\[1\]"):
            chat_prompt(tmp_path, [*copy.deepcopy(TURNS[:1]), message])

"""A tool call that must come: the schema that makes the answer one, and the answer read as one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from export.engine.conversation import Reply, ToolCall
from export.server.requests import Tool

NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def call_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """JSON schema of a call of one of these tools: an object with `name` and `arguments`."""
    calls = []
    for at, tool in enumerate(tools):
        arguments = tool.function.parameters or NO_PARAMETERS
        if arguments.get("type", "object") == "object":
            arguments = {"type": "object"} | arguments
        place = f"#/anyOf/{at}/properties/arguments"
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.function.name}, "arguments": _moved(arguments, place)},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": calls}


def _moved(schema: Any, place: str) -> Any:
    """The schema with references to its root led to where it now lies."""
    if isinstance(schema, list):
        return [_moved(value, place) for value in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: place + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, place)
        for key, value in schema.items()
    }


def read_call(reply: Reply) -> Reply:
    """The reply with its text as a call; as it is where it was cut before the call was whole."""
    try:
        found = json.loads(reply.text)
        call = ToolCall(found["name"], json.dumps(found["arguments"], ensure_ascii=False))
    except (ValueError, KeyError, TypeError):
        return reply
    return replace(reply, text="", tool_calls=(call,), end="tool_calls")

"""The ways of writing a conversation that chat templates accept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from forvalue_dagster.data.rows import Message


def in_parts(message: Message) -> Message:
    """Return a message with its content as parts: templates of vision models expect them."""
    content = message["content"]
    if isinstance(content, str):
        return message | {"content": [{"type": "text", "text": content}]}
    return message


def ways_to_write(messages: list[Message]) -> Iterator[list[Message]]:
    """Yield a conversation as it is, then in the other ways that templates accept."""
    yield messages
    if any(True for _ in call_arguments(messages)):
        yield _with_arguments_as_text(messages)
    if any(isinstance(message["content"], str) for message in messages):
        yield list(map(in_parts, messages))


def call_arguments(messages: Sequence[Message]) -> Iterator[dict[str, Any]]:
    """Yield the arguments of the assistant's calls that are objects and not empty."""
    for message in messages:
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            named = call.get("function", call) if isinstance(call, dict) else None
            arguments = named.get("arguments") if isinstance(named, dict) else None
            if isinstance(arguments, dict) and arguments:
                yield arguments


def _with_arguments_as_text(messages: list[Message]) -> list[Message]:
    """Return messages whose tool calls have their arguments as JSON text."""

    def as_text(call: Any) -> Any:
        if not isinstance(call, dict):
            return call
        changed = {k: as_text(v) if k == "function" else v for k, v in call.items()}
        if isinstance(changed.get("arguments"), dict | list):
            changed["arguments"] = json.dumps(changed["arguments"], ensure_ascii=False)
        return changed

    def written(message: Message) -> Message:
        calls = message.get("tool_calls")
        return message | {"tool_calls": list(map(as_text, calls))} if calls else message

    return [written(m) if isinstance(m.get("tool_calls"), list) else m for m in messages]

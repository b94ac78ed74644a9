"""Canonical rows: what every form of finetuning data is turned into.

A canonical row is a conversation: `messages`, a list of {role, content, …}, and `tools` where a
row brings tool definitions. Both are held as JSON text, since tool calls nest freely and a table
with fixed columns would add or drop keys. A content is text, or a list of text and image parts;
an image part names the image by a hash of its bytes, which the row holds beside the messages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forvalue_dagster.data.image_parts import image_columns, image_part, is_image, with_images
from forvalue_dagster.data.images import ImageFolder, ImageReferenceError

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
_PROMPT_RESPONSE_NAMES = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("question", "answer"),
    ("problem", "solution"),
    ("query", "response"),
    ("instruction", "response"),
    ("input", "output"),
)


class RowError(ValueError):
    """A row cannot be read as a conversation. The message never quotes the row's text."""


@dataclass(frozen=True)
class Columns:
    """Where a source keeps its conversation; what is None is detected by the usual names.

    Attributes:
        messages: column with a list of messages (chat `messages` or ShareGPT `conversations`).
        prompt: column with the prompt; goes with `response`.
        response: column with the response.
        system: column with a system prompt, for the forms that have none of their own.
        images: column with an image or a list of them; by default `images` or `image`.
        group: column with the row's validation group.
    """

    messages: str | None = None
    prompt: str | None = None
    response: str | None = None
    system: str | None = None
    group: str | None = None
    images: str | None = None

    def __post_init__(self) -> None:
        """Refuse half a pair and two forms at once."""
        if (self.prompt is None) != (self.response is None):
            raise ValueError(
                f"prompt and response columns go together; got prompt={self.prompt!r}, "
                f"response={self.response!r}."
            )
        if self.messages is not None and self.prompt is not None:
            raise ValueError("Give either a messages column or prompt and response, not both.")


@dataclass(frozen=True)
class CanonicalRow:
    """A conversation with its identity.

    Attributes:
        messages: JSON text of the list of messages.
        tools: JSON text of the tool definitions, or None.
        group: the validation group, or None.
        sample_id: hash of messages, images and tools: the same in any file and at any place.
        images: bytes of each image in the order of its part, None for a missing one; None
            without images.
    """

    messages: str
    tools: str | None
    group: str | None
    sample_id: str
    images: list[bytes | None] | None = None


def canonical_row(
    source: Mapping[str, Any], columns: Columns, folder: ImageFolder | None = None
) -> CanonicalRow:
    """Turn one source row into a conversation.

    Args:
        source: the row.
        columns: where its conversation is kept.
        folder: of images that are named by path.

    Raises:
        RowError: saying what came, what was expected and what to do.
    """
    try:
        messages, images = with_images(
            _messages(source, columns), image_columns(source, columns.images), folder
        )
    except ImageReferenceError as error:
        raise RowError(str(error)) from error
    tools = source.get("tools") or None
    if isinstance(tools, str):
        tools = _parse_json(tools, "tools")
    group = source.get(columns.group) if columns.group else None
    messages_text, tools_text = _json_text(messages), _json_text(tools) if tools else None
    try:
        digest = content_id(messages_text, tools_text)
    except UnicodeEncodeError as error:
        raise RowError(
            "the text holds half of a surrogate pair, which is not Unicode; re-encode the file"
        ) from error
    name = None if group is None else str(group)
    return CanonicalRow(messages_text, tools_text, name, digest, images)


def content_id(messages: str, tools: str | None) -> str:
    """Return the id of a conversation: a hash of the JSON text of its messages and tools."""
    identity = messages if tools is None else f"{messages}\n{tools}"
    return hashlib.sha256(identity.encode("utf-8")).hexdigest()[:32]


def message_text(message: Message) -> str:
    """Return a message's text, without its images."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if not is_image(part))


def message_images(message: Message) -> list[str | None]:
    """Return the names of a message's images, None for one that is missing."""
    content = message["content"]
    return [] if isinstance(content, str) else [p["image"] for p in content if is_image(p)]


def _json_text(value: object) -> str:
    # Sorted keys: the order in which a file happens to write them is not content.
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _parse_json(text: str, column: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RowError(f"column {column!r} holds text that is not JSON ({error})") from error


def _messages(source: Mapping[str, Any], columns: Columns) -> list[Message]:
    if columns.messages is not None:
        return _chat(_required(source, columns.messages), columns.messages)
    if columns.prompt is not None and columns.response is not None:
        prompt, response = (_required(source, n) for n in (columns.prompt, columns.response))
        return _prompt_response(prompt, response, _system(source, columns))
    detected = _detect({name.casefold(): name for name in source})
    if detected is None:
        raise RowError(
            f"no conversation found among the columns {sorted(source)}; expected messages, "
            "conversations, instruction and output, or a pair such as prompt and response. Name "
            "the columns in the configuration"
        )
    names, convert = detected
    values = [source.get(name) for name in names]
    return convert(values, _system(source, columns))


_Converter = Callable[[Sequence[Any], str | None], list[Message]]


def _detect(present: Mapping[str, str]) -> tuple[list[str], _Converter] | None:
    """Return (the columns that hold the conversation, how to read them)."""
    for name in ("messages", "conversations", "conversation"):
        if name in present:
            return [present[name]], lambda values, _: _chat(values[0], "messages")
    if "instruction" in present and "output" in present:
        optional = present.get("input", "input")
        return [present["instruction"], optional, present["output"]], _alpaca
    for prompt, response in _PROMPT_RESPONSE_NAMES:
        if prompt in present and response in present:
            names = [present[prompt], present[response]]
            return names, lambda values, system: _prompt_response(values[0], values[1], system)
    return None


def _required(source: Mapping[str, Any], name: str) -> Any:
    if name not in source:
        raise RowError(f"column {name!r} is missing; the row has {sorted(source)}")
    return source[name]


def _system(source: Mapping[str, Any], columns: Columns) -> str | None:
    if columns.system is not None:
        return _text(_required(source, columns.system), columns.system) or None
    return None


def _text(value: Any, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(f"{what} is a {type(value).__name__}; expected text")
    return value


def _alpaca(values: Sequence[Any], system: str | None) -> list[Message]:
    instruction, context, output = values
    prompt = _text(instruction, "instruction")
    if extra := _text(context, "input"):
        prompt = f"{prompt}\n\n{extra}"
    return _prompt_response(prompt, output, system)


def _prompt_response(prompt: Any, response: Any, system: str | None) -> list[Message]:
    """Join a prompt and a response, each text or a list of messages."""
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, *_turns(prompt, "user"), *_turns(response, "assistant")]


def _turns(value: Any, role: str) -> list[Message]:
    if isinstance(value, list):
        return _chat(value, role)
    name = "prompt" if role == "user" else "response"
    return [{"role": role, "content": _text(value, name)}]


def _chat(value: Any, column: str) -> list[Message]:
    if isinstance(value, str):
        value = _parse_json(value, column)
    if not isinstance(value, list) or not value:
        got = "an empty list" if isinstance(value, list) else f"a {type(value).__name__}"
        raise RowError(f"column {column!r} holds {got}; expected a list of messages")
    return [_message(entry, f"{column}[{index}]") for index, entry in enumerate(value)]


def _message(entry: Any, where: str) -> Message:
    if not isinstance(entry, dict):
        raise RowError(f"{where} is a {type(entry).__name__}; expected role and content")
    # Columnar files give every message every key, with None where it was absent.
    message = {str(key): value for key, value in entry.items() if value is not None}
    if "from" in message and "role" not in message:
        speaker = message.pop("from")
        known = isinstance(speaker, str) and speaker in _SHAREGPT_ROLES
        message["role"] = _SHAREGPT_ROLES[speaker] if known else speaker
        message["content"] = message.pop("value", None)
    role = message.get("role")
    if role == "function":
        role = message["role"] = "tool"
    if role not in ROLES:
        raise RowError(f"{where} has the role {role!r}; expected one of {', '.join(ROLES)}")
    message["content"] = _content(message.get("content"), f"{where}.content")
    return message


def _content(content: Any, where: str) -> str | list[dict[str, Any]]:
    """Return the text of a message, or its parts if images are among them."""
    if not isinstance(content, list):
        return _text(content, where)
    parts = [_part(part, where) for part in content]
    return parts if any(map(is_image, parts)) else "".join(part["text"] for part in parts)


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind == "text":
        return {"type": "text", "text": _text(part.get("text"), where)}
    if found := image_part(part):
        return found
    raise RowError(f"{where} has a part of type {kind!r}; expected text and image parts only")

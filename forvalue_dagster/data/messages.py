"""Turn lists of messages into canonical ones: role, content, tool calls and training flags.

A canonical message has a role of `ROLES` and a content; the file's other keys stay. `tool_calls`
are as in `tool_calls.py`; `train: false` marks an assistant's turn that training leaves out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from forvalue_dagster.data.canonical_json import parsed, parsed_or_none, without_nulls
from forvalue_dagster.data.columns import IMAGES, MEDIA, Columns
from forvalue_dagster.data.image_parts import image_part, is_image
from forvalue_dagster.data.problems import RowError
from forvalue_dagster.data.tool_calls import bare_calls, read_calls
from forvalue_dagster.data.turn_flags import FLAGS, take_flags

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
CALLS = "function_call"  # the speaker of a turn whose text is a call, or a list of calls
_SPEAKERS = {role: role for role in ROLES} | {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bard", "bing", "claude", "bot", "chatbot"), "assistant"),
    **dict.fromkeys(("model", "ai"), "assistant"),
    **dict.fromkeys(("function", "function_response", "observation", "ipython"), "tool"),
    **dict.fromkeys(("tool_response", "tool_result"), "tool"),
    **dict.fromkeys((CALLS, "tool_call"), CALLS),
}
# Messages without a key for the speaker: {human: …, assistant: …}, or pairs named like columns.
_PAIRED = _SPEAKERS | {
    **dict.fromkeys(("input", "question", "query", "prompt", "instruction"), "user"),
    **dict.fromkeys(("output", "answer", "response", "completion"), "assistant"),
}
_SPEAKER_KEYS = ("role", "from", "speaker")
_TEXT_KEYS = ("content", "value", "text")
_CALL_KEYS = ("tool_calls", CALLS)
_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING_PARTS = ("reasoning", "thinking")
# Parts of a message that are neither text nor image.
_MEDIA = ("video", "audio", "video_url", "input_audio", "audio_url")
# Keys that an error may name.
_KNOWN_KEYS = {
    *(*_SPEAKER_KEYS, *_TEXT_KEYS, *_CALL_KEYS, *FLAGS, *_PAIRED),
    *("name", "type", "id", "tool_call_id", "reasoning_content", "message", "msg"),
    *("body", "parts", "utterance", "reply"),
}


def read_messages(value: Any, where: str, columns: Columns) -> list[Message]:
    """Read a list of messages, or JSON text of one.

    Args:
        value: the value of a column.
        where: the column's name, for the error.
        columns: names of keys and speakers.

    Raises:
        RowError: if it is not a list of messages.
    """
    if isinstance(value, str):
        value = parsed(value, where)
    value = _transposed(value)
    if not isinstance(value, list | tuple) or not value:
        got = "an empty list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"
        raise RowError(f"column {where!r} holds {got}; expected a list of messages")
    messages: list[Message] = []
    for index, entry in enumerate(value):
        for message in _read_entry(entry, f"{where}[{index}]", columns):
            _append(messages, message)
    return [_without_marks(message) for message in messages]


def read_history(value: Any, where: str, columns: Columns) -> list[Message]:
    """Read earlier turns: a list of [user, assistant], or of messages; a blank value has none.

    Raises:
        RowError: if it is neither.
    """
    if isinstance(value, str):
        value = parsed(value, where) if value.strip() else None
    if not value:
        return []
    if not isinstance(value, list | tuple):
        raise RowError(f"{where} is a {type(value).__name__}; expected a list of [user, assistant]")
    turns: list[Any] = []
    for index, entry in enumerate(value):
        if not isinstance(entry, list | tuple):
            turns.append(entry)
        elif len(entry) == 2 and all(isinstance(text, str) for text in entry):
            turns.append({"user": entry[0], "assistant": entry[1]})
        else:
            raise RowError(f"{where}[{index}] is no pair of texts; expected [user, assistant]")
    return read_messages(turns, where, columns)


def from_json_text(value: Any) -> Any:
    """Parse messages that are stored as JSON text; return other values as they are.

    Text counts as messages only if it holds nothing but objects with a speaker and a text or
    calls, and one of the speakers is known.
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    known = parsed_or_none(value)
    entries = known if isinstance(known, list) else [known]
    speakers = [_speaker_of_message(entry) for entry in entries]
    return known if None not in speakers and not _SPEAKERS.keys().isdisjoint(speakers) else value


def _speaker_of_message(entry: Any) -> str | None:
    if not isinstance(entry, Mapping):
        return None
    if all(entry.get(key) is None for key in (*_TEXT_KEYS, *_CALL_KEYS)):
        return None
    speaker = next((entry[key] for key in _SPEAKER_KEYS if entry.get(key) is not None), None)
    return speaker.strip().casefold() if isinstance(speaker, str) else None


def _transposed(value: Any) -> Any:
    """Turn {role: […], content: […]}, as `datasets` stores a Sequence of objects, into a list."""
    if isinstance(value, Mapping) and value:
        columns = list(value.values())
        if all(isinstance(column, list) for column in columns):
            lengths = {len(column) for column in columns}
            if len(lengths) == 1:
                rows = zip(*columns, strict=True)
                return [dict(zip(value, row, strict=True)) for row in rows]
    return value


def _read_entry(entry: Any, where: str, columns: Columns) -> list[Message]:
    if not isinstance(entry, Mapping):
        raise RowError(f"{where} is a {type(entry).__name__}; expected role and content")
    # Columnar files give every message every key, with None where it was absent.
    message = {str(key): value for key, value in entry.items() if value is not None}
    keys = (columns.role_key,) if columns.role_key else _SPEAKER_KEYS
    key = next((key for key in keys if key in message), None)
    if key is None and (pair := _pair(message)):
        return [_message(turn, speaker, where, columns) for speaker, turn in pair]
    return [_message(message, None if key is None else message.pop(key), where, columns)]


def _pair(message: Message) -> list[tuple[str, Message]]:
    """Return (speaker, message) of each text in a message without a key for the speaker."""
    flags = {key: value for key, value in message.items() if key.casefold() in FLAGS}
    speakers = {key: _PAIRED.get(key.casefold()) for key in message if key not in flags}
    if not speakers or None in speakers.values():
        return []
    order = ("system", "developer", "tool", "user", CALLS, "assistant")
    return [
        (role, {"content": message[key], **(flags if role == "assistant" else {})})
        for role in order
        for key, spoken in speakers.items()
        if spoken == role
    ]


def _message(message: Message, speaker: Any, where: str, columns: Columns) -> Message:
    spoken = speaker.strip().casefold() if isinstance(speaker, str) else None
    role = columns.speakers.get(speaker) if isinstance(speaker, str) else None
    role = role or _SPEAKERS.get(spoken or "")
    if role is None:
        raise RowError(
            f"{where} has {_unknown(speaker, 'role')}; expected one of {', '.join(ROLES)}. Its "
            f"keys are {_shown(message)}",
            "role",
        )
    keys = _shown(message)
    content = _take_text(message, where, columns)
    left_out = take_flags(message, where, speaks=role in ("assistant", CALLS))
    calls = _take_calls(message, where)
    _refuse_media(message, where)
    if role == CALLS:
        calls += bare_calls(content, f"{where}.{CALLS}")
        content = ""
    message = without_nulls(message) | {"role": "assistant" if role == CALLS else role}
    parts, extra = _content(content, f"{where}.content") if content is not None else (None, {})
    calls += extra.pop("tool_calls", [])
    if parts is None:
        if not calls:
            raise RowError(
                f"{where} has no text; its keys are {keys}, expected one of "
                f"{', '.join(_TEXT_KEYS)} (or tool calls)",
                "absent text",
            )
        parts = ""
    message |= extra | {"content": parts}
    if calls and message["role"] != "assistant":
        raise RowError(
            f"{where} has tool calls and the role {role!r}; expected calls in an assistant's turn",
            "tool calls",
        )
    if calls:
        message["tool_calls"] = calls
    if left_out and message["role"] == "assistant":
        message["train"] = False
    if role == CALLS:
        message[CALLS] = True  # for `_append`
    return message


def _shown(keys: Iterable[str]) -> list[str]:
    """Return keys to show in an error, without unknown ones, which may be text of the row."""
    return sorted(key if key.casefold() in _KNOWN_KEYS else "…" for key in keys)


def _unknown(value: Any, what: str) -> str:
    """Describe an unknown value without quoting it: it may be text of the row."""
    if value is None:
        return f"no {what}"
    if isinstance(value, str):
        return f"an unknown {what} of {len(value)} characters"
    return f"a {what} that is a {type(value).__name__}"


def _take_text(message: Message, where: str, columns: Columns) -> Any:
    """Remove the text from a message and return it; None if there is none."""
    names = (columns.content_key,) if columns.content_key else _TEXT_KEYS
    found = [message.pop(name) for name in names if name in message]
    if any(other != found[0] for other in found[1:]):
        raise RowError(f"{where} has different texts under {' and '.join(names)}; expected one")
    return found[0] if found else None


def _take_calls(message: Message, where: str) -> list[Any]:
    calls: list[Any] = []
    if (given := message.pop("tool_calls", None)) is not None:
        calls += read_calls(given, f"{where}.tool_calls")
    if without_nulls(given := message.pop(CALLS, None)):
        calls += bare_calls(given, f"{where}.{CALLS}")
    return calls


def _refuse_media(message: Message, where: str) -> None:
    for name, value in message.items():
        if name.casefold() in (*IMAGES, *MEDIA) and value not in ("", [], {}):
            raise RowError(
                f"{where}.{name} holds media beside the text; expected them as parts of the "
                "content, or images in a column of the row",
                "media",
            )


def _append(messages: list[Message], message: Message) -> None:
    """Add a message; calls that follow the assistant's own turn are part of that turn."""
    last = messages[-1] if messages else {}
    follows = last.get("role") == "assistant" and (CALLS in last or "tool_calls" not in last)
    if CALLS in message and follows and last.get("train") == message.get("train"):
        last["tool_calls"] = last.get("tool_calls", []) + message["tool_calls"]
        last[CALLS] = True
    else:
        messages.append(message)


def _without_marks(message: Message) -> Message:
    """Return a message without the notes made while reading it."""
    return {key: value for key, value in message.items() if key != CALLS}


def _content(content: Any, where: str) -> tuple[str | list[Any] | None, Message]:
    """Return (the text, or the parts with images; keys from other parts); None for no text."""
    if isinstance(content, str):
        return content, {}
    if not isinstance(content, list | tuple):
        raise RowError(f"{where} is a {type(content).__name__}; expected text")
    parts: list[dict[str, Any]] = []
    said: Message = {}
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind in _TEXT_PARTS or _is_bare_text(part):
            parts.append({"text": _part_text(part, where), "type": "text"})
        elif found := image_part(part):
            parts.append(found)
        elif kind in _REASONING_PARTS:
            said["reasoning_content"] = said.get("reasoning_content", "") + _part_text(part, where)
        elif kind in ("tool_call", "tool_calls"):
            value = next((part[n] for n in (kind, *_TEXT_KEYS) if part.get(n) is not None), None)
            said["tool_calls"] = said.get("tool_calls", []) + bare_calls(value, f"{where}.{kind}")
        else:
            known = kind is None or kind in _MEDIA or not isinstance(part, Mapping)
            came = f"type {kind!r}" if known else _unknown(kind, "type")
            raise RowError(
                f"{where} has a part of {came}; expected text and image parts only",
                "media" if kind in _MEDIA else "type",
            )
    if not parts:
        return None, said
    has_image = any(map(is_image, parts))
    return (parts if has_image else "".join(part["text"] for part in parts)), said


def _is_bare_text(part: Any) -> bool:
    """Whether a part holds only a text, without even a type."""
    if not isinstance(part, Mapping):
        return False
    return {key for key, value in part.items() if value is not None} == {"text"}


def _part_text(part: Mapping[str, Any], where: str) -> str:
    names = ("text", "value", "content")
    filled = (part.get(name) for name in (*names, *_REASONING_PARTS))
    text = next((value for value in filled if value is not None), None)
    if isinstance(text, list) and text and all(isinstance(inner, Mapping) for inner in text):
        return "".join(_part_text(inner, where) for inner in text)  # Mistral's thinking
    if text is None:
        keys = _shown(str(key) for key, value in part.items() if value is not None)
        raise RowError(
            f"{where} has a part without text; its keys are {keys}, expected one of "
            f"{', '.join(names)}",
            "absent text",
        )
    if not isinstance(text, str):
        raise RowError(f"{where} is a {type(text).__name__}; expected text")
    return text

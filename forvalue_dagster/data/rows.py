"""Canonical rows: the one form that all finetuning data is turned into.

A canonical row is a conversation: `messages`, a list of {role, content, …}, and `tools` if a row
has tool definitions. Both are stored as JSON text, since tool calls nest freely and a table with
fixed columns would add or drop keys. A content is text, or a list of text and image parts; an
image part names the image by a hash of its bytes, which are in the column `images`. Some messages
have a flag of ours: `train: false` (not scored), `labelled_bad` (the row is skipped), `rendered`
(text that is used without a template).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forvalue_dagster.data.canonical_json import content_hash, in_file_order, messages_text
from forvalue_dagster.data.columns import Columns
from forvalue_dagster.data.file_form import FileForm
from forvalue_dagster.data.forms import Form, is_one_of_several
from forvalue_dagster.data.image_parts import image_columns, is_image, with_images
from forvalue_dagster.data.images import ImageFolder, ImageReferenceError
from forvalue_dagster.data.media import refuse_media_columns, refuse_media_tags
from forvalue_dagster.data.messages import Message as Message
from forvalue_dagster.data.messages import from_json_text, read_history, read_messages
from forvalue_dagster.data.preference import (
    answer_start,
    read_answer,
    with_chosen,
    without_prompt,
)
from forvalue_dagster.data.problems import RowError
from forvalue_dagster.data.tool_calls import read_functions, read_tools

_FIRST = ("system", "developer")  # roles of a message that goes before earlier turns


@dataclass(frozen=True)
class CanonicalRow:
    """A conversation with its identity.

    Attributes:
        messages: JSON text of the list of messages.
        tools: JSON text of the tool definitions, or None.
        group: the validation group, or None.
        sample_id: hash of messages, images and tools: the same in any file and at any place.
        images: bytes of each image in the order of the parts, None for a missing one; None for a
            row without images.
        rejected: JSON text of the rejected answer's messages, or None.
    """

    messages: str
    tools: str | None
    group: str | None
    sample_id: str
    images: list[bytes | None] | None = None
    rejected: str | None = None


def canonical_row(
    source: Mapping[str, Any],
    columns: Columns,
    folder: ImageFolder | None = None,
    form: FileForm | None = None,
) -> CanonicalRow:
    """Turn one source row into a conversation.

    Args:
        source: the row.
        columns: columns of the conversation.
        folder: folder of images that are named by path.
        form: form of the row's file; by default it is found from the row alone.

    Raises:
        RowError: if it cannot be read; the message says what came, what was expected and what
            to do.
    """
    of_row = (form or FileForm.of([source], columns)).form_of(source)
    refuse_media_columns(source, columns.ignore)
    conversation, rejected = _conversation(source, of_row, columns)
    try:
        shown = [] if columns.images in columns.ignore else image_columns(source, columns.images)
        messages, images = with_images(conversation, shown, folder)
    except ImageReferenceError as error:
        raise RowError(str(error), "image") from error
    refuse_media_tags(messages, source, columns.ignore)
    tools = _tools(source, of_row)
    group = source.get(columns.group) if columns.group else None
    return CanonicalRow(
        messages_text(messages),
        in_file_order(tools) if tools else None,
        None if group is None else str(group),
        content_hash(messages, tools),
        images,
        None if rejected is None else messages_text(rejected),
    )


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


def _conversation(
    source: Mapping[str, Any], form: Form, columns: Columns
) -> tuple[list[Message], list[Message] | None]:
    """Return (the conversation, the rejected answer or None)."""
    if form.text is not None:
        return _plain_text(source[form.text], form.text, columns.response_marker), None
    if form.messages is not None:
        turns = read_messages(source[form.messages], form.messages, columns)
    else:
        turns = _prompt(source, form.prompt, columns)
    start = None
    if form.chosen is not None:
        if columns.chosen is None:
            _refuse_name_of_column(source, form)
        turns, start = with_chosen(turns, source[form.chosen], form.chosen, columns)
    elif form.response is not None:
        start = len(turns)
        turns = [*turns, *_response(source[form.response], form.response, columns)]
    before = _before(source, form.beside, columns, turns)
    messages = [*before, *turns[turns[0]["role"] in _FIRST :]]
    rejected = None
    if (column := form.beside.get("rejected")) is not None:
        answer = read_answer(source[column], column, columns)
        rejected = without_prompt(answer, turns)
        if any(not isinstance(message["content"], str) for message in rejected):
            raise RowError(f"column {column!r} holds an image; expected text alone", "image")
        start = answer_start(turns) if start is None else start
        # Only the answers are compared: earlier turns are part of the prompt.
        last = len(messages) - len(turns) + start
        messages = [_unscored(m) if i < last else m for i, m in enumerate(messages)]
    if (column := form.beside.get("label")) is not None and _is_bad(source[column], column):
        messages[-1] = messages[-1] | {"labelled_bad": True}
    return messages, rejected


def _before(
    source: Mapping[str, Any], beside: Mapping[str, str], columns: Columns, turns: list[Message]
) -> list[Message]:
    """Return what goes before a row's turns: the system prompt, then earlier turns."""
    own = turns[:1] if turns[0]["role"] in _FIRST else []
    column = beside.get("system")
    text = "" if column is None else _text(source[column], column)
    if text and own and own[0]["content"] != text:
        raise RowError(
            f"column {column!r} and the conversation's own system prompt differ; expected one. "
            "Name the column among those to ignore, or take the message out",
            "text",
        )
    system = own or ([{"role": "system", "content": text}] if text else [])
    column = beside.get("history")
    return [*system, *([] if column is None else read_history(source[column], column, columns))]


def _prompt(source: Mapping[str, Any], names: tuple[str, ...], columns: Columns) -> list[Message]:
    """Join the columns of a prompt; blank ones are left out."""
    values = {name: source[name] for name in names}
    if not values:
        return []
    first = source[names[0]]
    if isinstance(first, Mapping) and first.get("messages"):  # OpenAI's preference data
        first = first["messages"]
    if len(values) == 1 and (known := from_json_text(first)) is not first:
        first = [known] if isinstance(known, Mapping) else known
    if len(values) == 1 and isinstance(first, list | tuple):
        return read_messages(first, names[0], columns)
    texts = dict.fromkeys(_text(value, name) for name, value in values.items())
    said = [text for text in texts if text] or [""]
    return [{"role": "user", "content": columns.separator.join(said)}]


def _text(value: Any, column: str) -> str:
    if isinstance(value, list | tuple) and value and all(isinstance(v, str) for v in value):
        return "\n\n".join(value)
    if not isinstance(value, str):
        raise RowError(
            f"{column} is a {type(value).__name__}; expected text. Name it among the columns to "
            "ignore if it is no part of the conversation"
        )
    return value


def _response(value: Any, column: str, columns: Columns) -> list[Message]:
    """Read a response: text, messages, or answers in SQuAD's form."""
    value = from_json_text(value)
    if isinstance(value, Mapping) and "text" in value and {"role", "from"}.isdisjoint(value):
        value = value["text"]
    if isinstance(value, list | tuple) and all(isinstance(text, str) for text in value):
        if not value:
            raise RowError(f"column {column!r} holds no answer; expected one", "absent text")
        value = value[0]
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list):
        return read_messages(value, column, columns)
    return [{"role": "assistant", "content": _text(value, column)}]


def _plain_text(value: Any, column: str, marker: str | None) -> list[Message]:
    """Split a text at its marker; without a marker it is scored only with `tokens="all"`."""
    text = _text(value, column)
    if marker is None:
        return [{"role": "assistant", "content": text, "rendered": True}]
    prompt, found, response = text.rpartition(marker)
    if not found:
        raise RowError(
            f"column {column!r} does not hold the response marker; expected it in front of the "
            "response",
            "text",
        )
    return [
        {"role": "user", "content": prompt + found, "rendered": True},
        {"role": "assistant", "content": response, "rendered": True},
    ]


def _refuse_name_of_column(source: Mapping[str, Any], form: Form) -> None:
    """Refuse a row whose `chosen` says which of several answers is meant: "a", "response_a"."""
    said = source[form.chosen or ""]
    others = (name for name in source if name not in form.used and is_one_of_several(name))
    for name in others:
        if isinstance(said, str) and said and name.casefold().endswith(said.casefold()):
            raise RowError(
                f"column {form.chosen!r} names another column ({name!r}) and holds no answer; "
                "expected the answer itself. Write it there, or name the columns",
                "preference",
            )


def _unscored(message: Message) -> Message:
    return message | {"train": False} if message["role"] == "assistant" else message


def _is_bad(label: Any, column: str) -> bool:
    known = {"true": True, "false": False, "1": True, "0": False}
    value = known.get(str(label).strip().casefold().removesuffix(".0"))
    if value is None:
        raise RowError(
            f"column {column!r} is a {type(label).__name__} that is neither true nor false", "label"
        )
    return not value


def _tools(source: Mapping[str, Any], form: Form) -> list[Any] | None:
    if (column := form.beside.get("tools")) is not None:
        return read_tools(source[column], column)
    if (column := form.beside.get("functions")) is not None:
        return read_functions(source[column], column)
    asked = source[form.prompt[0]] if form.prompt else None
    return read_tools(asked.get("tools"), "tools") if isinstance(asked, Mapping) else None

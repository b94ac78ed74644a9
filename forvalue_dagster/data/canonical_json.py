"""JSON of canonical rows: reading it from columns, removing nulls, writing and hashing it.

A table of columns gives every object the keys of all rows' objects, with null where a row has
none; JSON Lines can hold a null that is meant. A row's content must not depend on the kind of
file, so keys with null are removed from objects at any depth, for every kind of file. Nulls in
lists stay, and so do nulls inside of JSON *text* (arguments, tools): no kind of file adds those.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from forvalue_dagster.data.problems import RowError


def parsed(text: str, column: str) -> Any:
    """Parse JSON text.

    Args:
        text: text of a column.
        column: its name, for the error.

    Raises:
        RowError: if it is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        # json's message names the place, not the text.
        said = f"column {column!r} holds text that is not JSON ({error})"
        raise RowError(said, "JSON") from None


def parsed_or_none(text: Any) -> Any:
    """Parse what may be JSON text; None if it is not."""
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def without_nulls(value: Any) -> Any:
    """Remove keys with null from objects, at any depth."""
    if isinstance(value, Mapping):
        return {str(key): without_nulls(v) for key, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value


# Dates come from columnar files; JSON Lines hold them as text.
_OPTIONS: dict[str, Any] = {"ensure_ascii": False, "separators": (",", ":"), "default": str}
_IN_FILE_ORDER = json.JSONEncoder(**_OPTIONS)
_SORTED = json.JSONEncoder(**_OPTIONS, sort_keys=True)


def in_file_order(value: Any) -> str:
    """Write JSON for rendering, with keys in the file's order, which the model sees."""
    return _IN_FILE_ORDER.encode(value)


def messages_text(messages: list[dict[str, Any]]) -> str:
    """Write messages: their own keys sorted (templates read them by name), the rest as it is."""
    return in_file_order([dict(sorted(message.items())) for message in messages])


def content_hash(messages: list[dict[str, Any]], tools: Any) -> str:
    """Hash a conversation; the order of keys is not content.

    Raises:
        RowError: if its text is not Unicode.
    """
    identity = _SORTED.encode(messages)
    if tools:
        identity = f"{identity}\n{_SORTED.encode(tools)}"
    try:
        return hashlib.sha256(identity.encode("utf-8")).hexdigest()[:32]
    except UnicodeEncodeError:
        raise RowError(
            "the text holds half of a surrogate pair, which is not Unicode; re-encode the file",
            "text",
        ) from None


def content_id(messages: str, tools: str | None) -> str:
    """Return the id of a stored row from its JSON texts, whatever the order of their keys.

    Args:
        messages: JSON text of a canonical row's messages.
        tools: JSON text of its tools, or None.
    """
    return content_hash(json.loads(messages), json.loads(tools) if tools else None)

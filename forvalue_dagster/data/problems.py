"""Errors about a row, which never quote its text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

# Kinds of problems, to be counted; the message says what came, what was expected and what to do.
Kind = Literal[
    "form", "missing column", "absent text", "type", "role", "JSON", "weight", "tool calls",
    "preference", "label", "media", "image", "text", "line",
]  # fmt: skip


# One to three words, as in a column's name; not a sentence.
_NAME = re.compile(r"[\w.:/()+-]+( [\w.:/()+-]+){0,2}")
_LONGEST = 40


def plain_name(name: str) -> str:
    """Return a column's name as errors and the event log show it.

    Keys of JSON may be anything: one that is not a plain name may be text of the row, and only its
    length is shown.
    """
    if len(name) <= _LONGEST and _NAME.fullmatch(name):
        return name
    return f"… ({len(name)} characters)"


def plain_names(names: Iterable[str]) -> list[str]:
    """Return the names of a row's columns as an error shows them."""
    return sorted(map(plain_name, names))


class RowError(ValueError):
    """A row cannot be read as a conversation. The message never quotes the row's text.

    Args:
        message: the message: what came, what was expected, what to do.
        kind: kind of the problem.
    """

    def __init__(self, message: str, kind: Kind = "type") -> None:
        super().__init__(message)
        self.kind = kind

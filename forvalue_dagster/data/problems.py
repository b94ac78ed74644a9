"""What is wrong with a row, said without quoting it."""

from __future__ import annotations

from typing import Literal

# Kinds of problems, to be counted; the message says what came, what was expected and what to do.
Kind = Literal[
    "form", "missing column", "absent text", "type", "role", "JSON", "weight", "tool calls",
    "preference", "label", "media", "image", "text", "line",
]  # fmt: skip


class RowError(ValueError):
    """A row cannot be read as a conversation. The message never quotes the row's text.

    Args:
        message: what came, what was expected, what to do.
        kind: of the problem.
    """

    def __init__(self, message: str, kind: Kind = "type") -> None:
        super().__init__(message)
        self.kind = kind

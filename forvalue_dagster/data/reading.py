"""A record of how the rows of a file were read, for metadata and messages."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from forvalue_dagster.data.columns import IMAGES, Columns
from forvalue_dagster.data.file_form import FileForm
from forvalue_dagster.data.forms import is_like_conversation
from forvalue_dagster.data.problems import Kind, RowError
from forvalue_dagster.data.rows import CanonicalRow

# Keys of a message that no template is known to render. In a text, quotes are escaped.
_IN_MESSAGES = frozenset(
    (
        *("context", "input", "output", "instruction", "question", "answer", "history", "system"),
        *("tools", "functions", "documents", "chosen", "rejected", "label", "score", "response"),
        *("segments", "parts", "refusal", "prompt"),
    )
)
_KEY = re.compile(rf'[{{,]"(?:{"|".join(sorted(_IN_MESSAGES))})":')


@dataclass(frozen=True)
class RowReading:
    """How the rows of a file were read.

    Attributes:
        form: form of the rows, in words; None if none could be read.
        used: column → what it was read as.
        unused: columns that are no part of the conversation, in the file's order.
        suspicious: unused columns that are named like a part of it, and repeat nothing in it.
        problems: kind of problem → rows.
    """

    form: str | None
    used: Mapping[str, str]
    unused: tuple[str, ...]
    suspicious: tuple[str, ...]
    problems: Mapping[Kind, int]


def row_reading(
    form: FileForm,
    sources: Iterable[Mapping[str, Any] | None],
    rows: Sequence[CanonicalRow | RowError],
) -> RowReading:
    """Say how rows were read.

    Args:
        form: form of their file.
        sources: the rows as the file has them; None for one that could not be parsed.
        rows: the canonical row of each, or its problem.
    """
    like_conversation = cache(is_like_conversation)
    used: dict[str, str] = {}
    names: dict[str, None] = {}
    said_otherwise: set[str] = set()
    for source, row in zip(sources, rows, strict=True):
        names |= dict.fromkeys(source or ())
        own = {} if source is None else form.used_by(source)
        if not source or not own:
            continue
        own |= _beside(source, form.columns)
        used |= own
        said = "" if isinstance(row, RowError) else row.messages
        inside = _keys_like_conversation(said)
        names |= dict.fromkeys(inside)
        said_otherwise.update(inside)
        others = (name for name in source if name not in own and like_conversation(name))
        told = [text for name in own if isinstance(text := source.get(name), str)]
        said_otherwise.update(n for n in others if not _repeats(said, told, source[n]))
    unused = tuple(name for name in names if name not in used)
    return RowReading(
        "; ".join(str(known) for known in form.forms) or None,
        used,
        unused,
        tuple(n for n in unused if n in said_otherwise and n not in form.columns.ignore),
        Counter(row.kind for row in rows if isinstance(row, RowError)),
    )


def _beside(source: Mapping[str, Any], columns: Columns) -> dict[str, str]:
    """Return the columns that are used in every form."""
    images = IMAGES if columns.images is None else (columns.images,)
    shown = [name for name in images if source.get(name) is not None]
    group = {} if columns.group is None else {columns.group: "group"}
    return group | dict.fromkeys(shown[:1], "images")


def _keys_like_conversation(messages: str) -> list[str]:
    """Return the keys of messages that are named like a part of the conversation, as columns."""
    if not _KEY.search(messages):
        return []
    found = [key for message in json.loads(messages) for key in message if key in _IN_MESSAGES]
    return [f"messages[].{key}" for key in dict.fromkeys(found)]


def _repeats(messages: str, told: Sequence[str], value: Any) -> bool:
    """Whether a column only repeats: many files have the prompt or the whole text twice."""
    if value is None or value in ("", [], {}):
        return True
    if not isinstance(value, str):
        return False
    quoted = json.dumps(value, ensure_ascii=False)
    # A short text occurs in many texts by chance.
    inside = len(value) >= 20 and quoted[1:-1] in messages
    whole = f":{quoted}" in messages
    return inside or whole or (bool(told) and all(text in value for text in told))


def readings_together(readings: Iterable[RowReading]) -> RowReading:
    """Return how several files that are one shard were read, as one reading.

    A column that is used in one file and unused in another is named as both.
    """
    forms: dict[str, None] = {}
    used: dict[str, str] = {}
    unused: dict[str, None] = {}
    suspicious: dict[str, None] = {}
    problems: Counter[Kind] = Counter()
    for reading in readings:
        forms |= {} if reading.form is None else {reading.form: None}
        used |= reading.used
        unused |= dict.fromkeys(reading.unused)
        suspicious |= dict.fromkeys(reading.suspicious)
        problems.update(reading.problems)
    return RowReading(
        "; ".join(forms) or None, used, tuple(unused), tuple(suspicious), dict(problems)
    )

"""Detect media that are not read (video, sound): a row with them, or with their tags, is a problem.

Tags of media also occur in HTML. A tag stands for a medium if the row has a column for media, or
if it is at the beginning or the end of a line and is not closed; inside a sentence it is a word.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from forvalue_dagster.data.columns import IMAGES, MEDIA
from forvalue_dagster.data.image_parts import is_image
from forvalue_dagster.data.problems import RowError

_TAG = re.compile(r"<(image|video|audio|sound|speech)>")
# <img>https://…</img>: a reference between tags; in HTML, <img> never encloses text.
_REFERENCE = re.compile(r"<(img|image|video|audio)>\s*[^\s<>]+\s*</\1>")


def refuse_media_columns(source: Mapping[str, Any], ignore: Collection[str]) -> None:
    """Check that a row has no videos or sound.

    Args:
        source: the row.
        ignore: columns that hold no media.

    Raises:
        RowError: if it has; the message names the column.
    """
    for name, value in source.items():
        if name.casefold() in MEDIA and name not in ignore and value not in (None, "", [], {}):
            raise RowError(
                f"column {name!r} holds video or sound, which is not read. Name it among the "
                "columns to ignore if it holds none",
                "media",
            )
        # ms-swift's: the tags in the text are places for names and boxes.
        if name == "objects" and name not in ignore and isinstance(value, Mapping) and value:
            raise RowError(
                "column 'objects' holds objects to be grounded, which are not read. Write them "
                "into the text as the model reads them",
                "media",
            )


def refuse_media_tags(
    messages: list[dict[str, Any]], source: Mapping[str, Any], ignore: Collection[str]
) -> None:
    """Check that no prompt has a tag that stands for a medium, after images were placed.

    Args:
        messages: canonical messages.
        source: the row that they come from.
        ignore: columns that hold no media.

    Raises:
        RowError: if one has; the message names the tag.
    """
    has_column = any(name.casefold() in (*IMAGES, *MEDIA) for name in source if name not in ignore)
    for message in messages:
        if message["role"] not in ("system", "user"):
            continue
        content = message["content"]
        texts = [content] if isinstance(content, str) else _texts(content)
        for text in texts:
            if tag := _stands_for_media(text, has_column):
                raise RowError(
                    f"a prompt has the tag {tag} and the row no medium of that kind that is read; "
                    "expected images in a column, and neither video nor sound",
                    "media",
                )


def _texts(parts: list[dict[str, Any]]) -> list[str]:
    return [part["text"] for part in parts if not is_image(part)]


def _stands_for_media(text: str, has_column: bool) -> str | None:
    if found := _REFERENCE.search(text):
        return f"<{found[1]}>"
    for found in _TAG.finditer(text):
        if f"</{found[1]}>" in text:
            continue
        before = text[: found.start()].rpartition("\n")[2]
        after = text[found.end() :].partition("\n")[0]
        if has_column or not before.strip() or not after.strip():
            return found[0]
    return None

"""Image parts of a conversation, from any form of data.

The forms: parts of type image or image_url that name their image (OpenAI's and Hugging Face's
chat forms); parts without a name, and `<image>` in a prompt's text (LLaVA's form), which take the
images of a column; and a column of images with a plain prompt, which then come first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from forvalue_dagster.data.columns import IMAGES
from forvalue_dagster.data.images import (
    ImageFolder,
    ImageReferenceError,
    from_base64,
    image_bytes,
    image_digest,
)
from forvalue_dagster.data.problems import plain_names

# A line break next to the placeholder belongs to it: templates separate images themselves.
_PLACEHOLDER = re.compile(r"<image>\n?|\n<image>$")
# The names that chat forms give an image's reference, in the order they are looked for.
_REFERENCES = ("image", "image_url", "url", "path", "bytes", "value")
_IN_A_RESPONSE = "an assistant's turn holds an image; expected text alone"
_OPEN = "reference"  # of a part whose image is not yet known


def is_image(part: Mapping[str, Any]) -> bool:
    """Whether a part of a content is an image."""
    return bool(part["type"] == "image")


def image_part(part: Any) -> dict[str, Any] | None:
    """Read a part of a message's content; None if it is not an image."""
    if not isinstance(part, Mapping) or part.get("type") not in ("image", "image_url"):
        return None
    if isinstance(part.get("base64"), str):
        return {"type": "image", _OPEN: from_base64(part["base64"])}
    named = (part.get(name) for name in _REFERENCES)
    return {"type": "image", _OPEN: next((value for value in named if value is not None), None)}


def image_columns(source: Mapping[str, Any], column: str | None) -> list[Any]:
    """Return the references in a row's image column.

    Args:
        source: the row.
        column: name of the image column; None looks for the usual names.

    Raises:
        ImageReferenceError: if a named column is missing.
    """
    if column is not None and column not in source:
        raise ImageReferenceError(
            f"column {column!r} is missing; the row has {plain_names(source)}"
        )
    for name in IMAGES if column is None else (column,):
        if (value := source.get(name)) is not None:
            return list(value) if isinstance(value, list | tuple) else [value]
    return []


def with_images(
    messages: Sequence[dict[str, Any]], column: Sequence[Any], folder: ImageFolder | None
) -> tuple[list[dict[str, Any]], list[bytes | None] | None]:
    """Put a row's images in their places.

    Args:
        messages: messages of the conversation, image parts as `image_part` leaves them.
        column: references in the row's image column.
        folder: folder of images that are named by path.

    Returns:
        The messages, each image part {type, image: hash of its bytes}, a missing one {type,
        image: None, path}; and the bytes in that order, None if there are no images.

    Raises:
        ImageReferenceError: if there are not as many images as places, an assistant's turn holds
            an image, or a reference is not allowed.
    """
    messages = list(messages)
    if column and not _open_parts(messages):
        messages = [_split(message) for message in messages]
        if not _open_parts(messages):
            if any(m["role"] == "assistant" and "<image>" in str(m["content"]) for m in messages):
                raise ImageReferenceError(_IN_A_RESPONSE)
            messages = _with_images_first(messages, len(column))
    places = _open_parts(messages)
    if len(places) != len(column):
        raise ImageReferenceError(
            f"{len(column)} images in the row's column and {len(places)} places for them in the "
            "messages; expected equally many"
        )
    given = iter(column)
    images: list[bytes | None] = []
    for message in messages:
        if isinstance(message["content"], str):
            continue
        if message["role"] == "assistant" and any(map(is_image, message["content"])):
            raise ImageReferenceError(_IN_A_RESPONSE)
        parts = []
        for part in message["content"]:
            if is_image(part):
                reference = part[_OPEN] if part[_OPEN] is not None else next(given)
                data = image_bytes(reference, folder)
                images.append(data)
                part = {"type": "image", "image": None if data is None else image_digest(data)}
                if data is None:
                    part["path"] = str(reference)
            parts.append(part)
        message["content"] = parts
    return messages, images or None


def _open_parts(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    contents = [m["content"] for m in messages if not isinstance(m["content"], str)]
    return [part for parts in contents for part in parts if is_image(part) and part[_OPEN] is None]


def _split(message: dict[str, Any]) -> dict[str, Any]:
    """Turn `<image>` in a prompt's text into parts."""
    content = message["content"]
    if message["role"] == "assistant" or not isinstance(content, str):
        return message
    texts = _PLACEHOLDER.split(content)
    if len(texts) == 1:
        return message
    parts: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        if number:
            parts.append({"type": "image", _OPEN: None})
        if text:
            parts.append({"type": "text", "text": text})
    return message | {"content": parts}


def _with_images_first(messages: list[dict[str, Any]], images: int) -> list[dict[str, Any]]:
    """Put images in front of the first prompt's text."""
    for index, message in enumerate(messages):
        if message["role"] == "user":
            content = message["content"]
            text = [{"type": "text", "text": content}] if isinstance(content, str) else content
            parts = [{"type": "image", _OPEN: None} for _ in range(images)] + text
            return [*messages[:index], message | {"content": parts}, *messages[index + 1 :]]
    raise ImageReferenceError("the row has images and no turn of a user to put them in")

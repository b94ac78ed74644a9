"""Write values of a table as standard JSON."""

from __future__ import annotations

import base64
import datetime
import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from forvalue_dagster.data.images import image_digest

# The name of an image in a column; its bytes are in another column.
IMAGE_NAME = "sha256:"
_SIGNATURES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
}


def as_json(value: Any, images: Collection[bytes | None] = (), *, by_name: bool = False) -> str:
    """Return a value as JSON text.

    Dates are ISO 8601, durations seconds, decimals text with all of their digits, bytes data
    URIs; NaN and infinities are null.

    Args:
        value: a value from a table.
        images: images of the row that it belongs to.
        by_name: whether images are named (`image_name`); otherwise names become images again.
    """
    names = {image_name(image): image for image in images if image is not None}
    return json.dumps(_plain(value, names, by_name), ensure_ascii=False, allow_nan=False)


def image_name(image: bytes) -> str:
    """Return the name of an image in a column."""
    return f"{IMAGE_NAME}{image_digest(image)}"


def named_images(value: Any) -> Any:
    """Return an image column's value with a name for each image's bytes."""
    if isinstance(value, list | tuple):
        return [named_images(entry) for entry in value]
    if isinstance(value, Mapping):
        held = [value.get(name) for name in ("bytes", "url", "path")]
        value = next((entry for entry in held if entry is not None), None)
    return image_name(value) if isinstance(value, bytes) else value


def _plain(value: Any, images: Mapping[str, bytes], by_name: bool) -> Any:
    if isinstance(value, str):
        return _data_uri(images[value]) if value in images and not by_name else value
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(entry, images, by_name) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, images, by_name) for entry in value]
    if isinstance(value, bytes):
        name = image_name(value)
        return name if by_name and name in images else _data_uri(value)
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return str(value)


def _data_uri(data: bytes) -> str:
    kinds = (kind for start, kind in _SIGNATURES.items() if data.startswith(start))
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    kind = "image/webp" if webp else next(kinds, "application/octet-stream")
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"

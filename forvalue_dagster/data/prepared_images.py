"""A cache of prepared images by content, for data with many rows about few images."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

# A picture's attribute with the hash of the bytes that it was decoded from.
CONTENT = "forvalue_content"


class PreparedImages:
    """An image processor that remembers its results for the last rows' images.

    Args:
        processor: an image processor of transformers.
        size: number of rows whose images are remembered.
    """

    def __init__(self, processor: Any, size: int) -> None:
        self._processor = processor
        self._size = size
        self._made: OrderedDict[tuple[str, ...], Any] = OrderedDict()

    def __call__(self, images: Any, **options: Any) -> Any:
        """Prepare the images of one row; every call must have the same options."""
        key = tuple(picture.info[CONTENT] for picture in _flat(images))
        if key not in self._made:
            self._made[key] = self._processor(images, **options)
            if len(self._made) > self._size:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        # Processors remove from the mapping what the model does not take.
        return copy.copy(self._made[key])

    def __contains__(self, key: Sequence[str]) -> bool:
        return tuple(key) in self._made

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._processor, name)


def stand_in(content: str) -> Image.Image:
    """Return a placeholder picture that has only the hash of a remembered one."""
    picture = Image.new("RGB", (1, 1))
    picture.info[CONTENT] = content
    return picture


def _flat(images: Any) -> Iterator[Image.Image]:
    for entry in images:
        if isinstance(entry, list | tuple):
            yield from _flat(entry)
        else:
            yield entry

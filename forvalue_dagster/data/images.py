"""Load and decode the images that a row names.

A row names an image by bytes, by a data URI, or by a path or URI inside the data's own folder.
Nothing else is loaded: data files are untrusted.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

# The decoders in use: others start programs (EPS), or are rarely used for data.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class ImageReferenceError(ValueError):
    """A row names an image in a way that is not allowed; the message says why."""


# No file system or object store takes longer paths.
_LONGEST_NAME, _LONGEST_PATH = 255, 1024


class PictureError(ValueError):
    """The bytes are not a usable picture.

    Attributes:
        reason: a key of `data.skip_reasons.SKIP_REASONS`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class ImageFolder:
    """The folder of images that are named by path.

    Attributes:
        uri: URI of the folder, without a slash at its end.
        read: function from a path below it to bytes, or None if there is no such file.
    """

    uri: str
    read: Callable[[str], bytes | None]

    def load(self, reference: str) -> bytes | None:
        """Return an image's bytes, or None if it is missing.

        Raises:
            ImageReferenceError: if the reference leads out of the folder.
        """
        path = reference.removeprefix(f"{self.uri}/").removeprefix(f"file://{self.uri}/")
        parts = PurePosixPath(path).parts
        if "://" in path or "\\" in path or "\0" in path or ".." in parts or path[:1] in ("", "/"):
            raise ImageReferenceError(
                f"an image is named by a path or URI outside of {self.uri}; expected one inside "
                "it, relative to it. Copy the image there, or set the image root"
            )
        name = max((len(part.encode("utf-8", "surrogatepass")) for part in parts), default=0)
        if name > _LONGEST_NAME or len(path) > _LONGEST_PATH:
            raise ImageReferenceError(
                f"an image's path has {len(path)} characters; expected at most {_LONGEST_PATH}, "
                f"and {_LONGEST_NAME} bytes in each of its names"
            )
        return self.read(str(PurePosixPath(path)))


def local_images(folder: Path) -> ImageFolder:
    """Return a local folder; links that lead out of it are not followed."""
    root = folder.resolve()

    def read(path: str) -> bytes | None:
        # A link to itself resolves to the link, which is not a file.
        file = Path(os.path.realpath(root / path))
        if not file.is_relative_to(root):
            raise ImageReferenceError(f"an image's path leads out of {folder} through a link")
        if file.is_symlink():
            raise ImageReferenceError("an image's path is a link that leads to itself")
        try:
            return file.read_bytes() if file.is_file() else None
        except OSError as error:
            # Without the error's own text, which holds the path that the row gives.
            raise ImageReferenceError(
                f"an image in {folder} cannot be read: {error.strerror}. Mend the file or its "
                "rights"
            ) from None

    return ImageFolder(root.as_posix(), read)


def image_bytes(reference: Any, folder: ImageFolder | None) -> bytes | None:
    """Return the bytes of an image as a row names it, or None if it is missing.

    Args:
        reference: bytes; a data URI; a path or URI; or {bytes, path} or {url}, as Hugging Face
            datasets and OpenAI's chat form write them.
        folder: folder of images that are named by path.

    Raises:
        ImageReferenceError: if it is none of these, or leads out of the folder.
    """
    if isinstance(reference, Mapping):
        held = [reference.get(name) for name in ("bytes", "url", "path")]
        reference = next((value for value in held if value is not None), None)
    if isinstance(reference, bytes):
        return reference
    if not isinstance(reference, str) or not reference:
        raise ImageReferenceError(
            f"an image is a {type(reference).__name__}; expected bytes, a path or a URI"
        )
    if reference.startswith("data:"):
        return from_base64(reference.partition(",")[2])
    if folder is None:
        raise ImageReferenceError(
            "an image is named by path, but rows in memory have no folder; give images as bytes, "
            "or read the rows from a file"
        )
    return folder.load(reference)


def from_base64(text: str) -> bytes:
    """Decode base64.

    Raises:
        ImageReferenceError: if it is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageReferenceError(f"an image's base64 is damaged ({error})") from error


def image_digest(data: bytes) -> str:
    """Return the hash that names an image."""
    return sha256(data).hexdigest()[:32]


def decode_picture(data: bytes) -> Image:
    """Decode an image for a model: upright, RGB, 8 bits, the first frame.

    As transformers loads images: rotated as the EXIF data says, without transparency. Of sixteen
    bits of grey the upper eight are kept.

    Raises:
        PictureError: "image_unreadable" if it is damaged, of another format or without pixels;
            "image_too_large" beyond Pillow's limit (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and opened.width * opened.height > limit:
                raise PictureError("image_too_large")
            upright = ImageOps.exif_transpose(opened)
            if upright.mode == "F" or 0 in upright.size:
                raise PictureError("image_unreadable")
            if upright.mode.startswith("I"):
                grey = np.clip(np.asarray(upright).astype(np.int64) >> 8, 0, 255)
                upright = Image.fromarray(grey.astype(np.uint8))
            return upright.convert("RGB")
    except Image.DecompressionBombError as error:
        raise PictureError("image_too_large") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError) as error:
        if isinstance(error, PictureError):
            raise
        raise PictureError("image_unreadable") from error

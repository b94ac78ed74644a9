"""Write files atomically: a file is whole or absent."""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from upath import UPath

_SECONDS_TO_ABANDON = 24 * 60 * 60


def is_abandoned(path: UPath) -> bool:
    """Whether `path` is a half-written file of a process that was killed a day ago or earlier."""
    if not re.fullmatch(r"\..+\.[0-9a-f]{32}", path.name):
        return False
    return time.time() - float(path.stat().st_mtime) > _SECONDS_TO_ABANDON


@contextmanager
def atomic_write(path: UPath) -> Iterator[IO[bytes]]:
    """Open a binary stream whose content appears at `path` when the block ends, or not at all.

    The stream can be read and written at any position. Locally it is a hidden file in the same
    folder that is then renamed, replacing any file of that name. For an object store it is a
    temporary file that is then uploaded: the store shows an object only when its upload is
    complete.

    Args:
        path: the file; its folder is made if needed.

    Raises:
        OSError: if it cannot be written (PermissionError or FileNotFoundError if that is the
            reason).
    """
    if path.protocol not in ("", "file", "local"):
        with TemporaryFile() as local:
            yield local
            local.seek(0)
            _upload(local, path)
        return
    target = Path(path.path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with scratch.open("x+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def _upload(stream: IO[bytes], path: UPath) -> None:
    try:
        with path.fs.transaction, path.fs.open(path.path, "wb") as remote:
            shutil.copyfileobj(stream, remote, 1 << 20)
    except OSError as error:
        raise type(error)(
            f"{path} cannot be written: {error}. Expected a bucket that exists, credentials "
            "that may write to it, and a server that answers; passing errors were tried again."
        ) from error

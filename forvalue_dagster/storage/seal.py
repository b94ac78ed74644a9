"""Seals: a hash inside each of our files, which is checked whenever the file is read.

A flipped bit in a Parquet or safetensors file is mostly read as a different number. So each file
that we write contains the SHA-256 of all its other bytes. The hash is inside the file and not in a
second one: one file is replaced at once, copied whole, and costs one request in any storage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import sha256
from typing import IO, TYPE_CHECKING

from upath import UPath

if TYPE_CHECKING:
    from hashlib import _Hash

# In a Parquet file the seal is before the footer, where no offset of the footer points to.
_MARK = b"fv-seal1"
_SEAL = len(_MARK) + sha256().digest_size
_PARQUET = b"PAR1"
_TAIL = 4 + len(_PARQUET)  # length of the footer, and the format's name
_BLOCK = 1 << 20
# In a safetensors file it begins the only entry of the header's metadata; the order of several
# entries would vary.
TENSOR_ENTRY = "forvalue_dagster"
UNSEALED = "0" * 64
_IN_HEADER = re.compile(rb'"forvalue_dagster":"([0-9a-f]{64})')


class DamagedFileError(OSError):
    """A file differs from what was written."""


def seal_parquet(stream: IO[bytes]) -> str:
    """Put the seal into a finished Parquet file, and return the SHA-256 of the whole file.

    Args:
        stream: the file, open for reading and writing.
    """
    size = stream.seek(0, 2)
    stream.seek(size - _TAIL)
    footer = int.from_bytes(stream.read(4), "little") + _TAIL
    stream.seek(size - footer)
    end = stream.read(footer)
    content = _hash(stream, size - footer)
    seal = content.copy()
    seal.update(end)
    end = _MARK + seal.digest() + end
    stream.seek(size - footer)
    stream.write(end)
    content.update(end)
    return content.hexdigest()


def check_parquet(path: UPath) -> str:
    """Check the seal of one of our Parquet files, and return the file's SHA-256.

    Raises:
        DamagedFileError: if it differs from what was written.
        FileNotFoundError: if there is no such file.
    """
    with path.open("rb") as stream:
        return check_parquet_stream(stream, str(path))


def check_parquet_stream(stream: IO[bytes], name: str) -> str:
    """Check the seal of one of our open Parquet files, and return the file's SHA-256.

    Args:
        stream: the file.
        name: name of the file, for an error.

    Raises:
        DamagedFileError: if it differs from what was written.
    """
    size = stream.seek(0, 2)
    if size < _SEAL + _TAIL:
        raise _damaged(name, "it is cut short")
    stream.seek(size - _TAIL)
    tail = stream.read(_TAIL)
    start = size - _TAIL - int.from_bytes(tail[:4], "little") - _SEAL
    if tail[4:] != _PARQUET or start < len(_PARQUET):
        raise _damaged(name, "it does not end as a Parquet file does")
    stream.seek(start)
    end = stream.read(size - start)
    if not end.startswith(_MARK):
        raise _damaged(name, "it carries no seal")
    content = _hash(stream, start)
    seal = content.copy()
    seal.update(end[_SEAL:])
    if seal.digest() != end[len(_MARK) : _SEAL]:
        raise _damaged(name, "its bytes are not those that were written")
    content.update(end)
    return content.hexdigest()


def seal_tensors(content: bytes) -> tuple[bytes, str]:
    """Put the seal into a safetensors file whose metadata leaves room for it.

    Args:
        content: the file, whose `TENSOR_ENTRY` begins with `UNSEALED`.

    Returns:
        The file, and the SHA-256 of the whole file.
    """
    header = 8 + int.from_bytes(content[:8], "little")
    found = _IN_HEADER.search(content, 8, header)
    assert found is not None  # the caller left room
    seal = sha256(content).hexdigest().encode()
    sealed = content[: found.start(1)] + seal + content[found.end(1) :]
    return sealed, sha256(sealed).hexdigest()


def check_tensors(stream: IO[bytes], name: str) -> str:
    """Check the seal of one of our safetensors files, and return the file's SHA-256.

    Args:
        stream: the file.
        name: name of the file, for an error.

    Raises:
        DamagedFileError: if it differs from what was written.
    """
    size = stream.seek(0, 2)
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    if 8 + length > size:
        raise _damaged(name, "it is cut short")
    stream.seek(0)
    header = stream.read(8 + length)
    found = _IN_HEADER.search(header, 8)
    if found is None:
        raise _damaged(name, "it carries no seal")
    whole = sha256(header)
    seal = sha256(header[: found.start(1)] + UNSEALED.encode() + header[found.end(1) :])
    for block in _blocks(stream, size - len(header)):
        whole.update(block)
        seal.update(block)
    if seal.hexdigest().encode() != found.group(1):
        raise _damaged(name, "its bytes are not those that were written")
    return whole.hexdigest()


def _hash(stream: IO[bytes], count: int) -> _Hash:
    content = sha256()
    stream.seek(0)
    for block in _blocks(stream, count):
        content.update(block)
    return content


def _blocks(stream: IO[bytes], count: int) -> Iterator[bytes]:
    while count > 0:
        block = stream.read(min(count, _BLOCK))
        if not block:
            return
        count -= len(block)
        yield block


def _damaged(name: str, why: str) -> DamagedFileError:
    return DamagedFileError(
        f"{name} is not what was written there: {why}. It was damaged, written by something else, "
        "or by a version before seals. Materialise it again."
    )

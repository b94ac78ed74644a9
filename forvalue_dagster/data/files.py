"""Common to all readers of data files: rows, errors, limits, and opening a file."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
COMPRESSED = ("", *_COMPRESSIONS)
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


class DataFileError(ValueError):
    """A data file cannot be read; the message names the file, what was expected and what to do."""


@dataclass(frozen=True)
class ReadLimits:
    """How much of a file is taken into memory: a few kilobytes of .gz can hold gigabytes.

    Attributes:
        line_bytes: largest size of a row in a text file; a longer row is a problem of its own.
        file_bytes: largest size of a whole file, decompressed and decoded.
    """

    line_bytes: int = 64 << 20
    file_bytes: int = 4 << 30

    @property
    def long_line(self) -> str:
        """The problem of a row beyond the limit."""
        return (
            f"longer than {self.line_bytes:,} bytes; expected a shorter one, or a higher limit "
            "(line_bytes)"
        )

    def check_file(self, path: Path, size: int) -> None:
        """Check that a file is within the limit.

        Raises:
            DataFileError: if it is larger.
        """
        if size > self.file_bytes:
            raise DataFileError(
                f"{path} holds more than {self.file_bytes:,} bytes of data; expected at most so "
                "many in one file. Write it in parts, or raise the limit (file_bytes)."
            )


DEFAULT_LIMITS = ReadLimits()


@dataclass(frozen=True)
class SourceRow:
    """One row as the file has it.

    Attributes:
        row: number in the file, from 0 (a JSON Lines file's line − 1).
        values: the row's columns; None if it could not be parsed.
        text: the row verbatim on one line, for JSON.
        problem: reason why it could not be parsed, or None.
        place: name of the row's place in an error; by default its line.
    """

    row: int
    values: dict[str, Any] | None
    text: str | None = None
    problem: str | None = None
    place: str = ""


@contextmanager
def opened(path: Path, limits: ReadLimits) -> Iterator[Any]:
    """Open a text file, plain, .gz or .zst, after its byte order mark.

    Raises:
        DataFileError: if the compressed stream is damaged or cut off, if more comes out of it
            than the limit, or if the text is UTF-16 or UTF-32.
    """
    with path.open("rb") as file:
        raw = _Counted(_decompressed(file, path), path, limits)
        stream = io.BufferedReader(raw, 1 << 20)
        start = stream.peek(4)[:1000]
        if start.startswith(_WIDE) and b"\0" in start:
            raise DataFileError(
                f"{path} is UTF-16 or UTF-32; expected UTF-8. Re-encode it, as by iconv -t UTF-8."
            )
        if start.startswith(codecs.BOM_UTF8):
            stream.read(len(codecs.BOM_UTF8))
        yield stream


def _decompressed(file: IO[bytes], path: Path) -> IO[bytes]:
    kind = _COMPRESSIONS.get(path.suffix.lower())
    if kind is None:
        return file
    import pyarrow as pa

    stream: IO[bytes] = pa.CompressedInputStream(file, kind)
    return stream


class _Counted(io.RawIOBase):
    """The decompressed bytes of a file, up to the limit."""

    def __init__(self, stream: IO[bytes], path: Path, limits: ReadLimits) -> None:
        self._stream, self._path, self._limits = stream, path, limits
        self._bytes = self._lines = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            chunk = self._stream.read(len(buffer))
        except OSError as error:
            if self._path.suffix.lower() not in _COMPRESSIONS:
                raise
            raise DataFileError(
                f"{self._path}: the compressed stream is damaged after line {self._lines} "
                f"({error}); expected a complete file. Write it again."
            ) from error
        self._bytes += len(chunk)
        self._lines += chunk.count(b"\n")
        self._limits.check_file(self._path, self._bytes)
        buffer[: len(chunk)] = chunk
        return len(chunk)

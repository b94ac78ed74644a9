"""Read JSON as a stream of rows: one object a line, one array, or objects one after the other.

The beginning of a file decides which of these it is: all are called .json or .jsonl. The rows of
an array are found by its brackets and parsed one by one, so that one bad row is one problem.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from forvalue_dagster.data.files import DataFileError, ReadLimits, SourceRow, opened

# Keys under which one object holds the rows of a file.
_WRAPPERS = re.compile(
    "data|dataset|entries|examples|instances|items|records|rows|samples|"
    "train|validation|test|dev|eval",
    re.IGNORECASE,
)
# Strings are skipped: brackets inside them are text.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)
_BREAKS = re.compile(r"[ \t]*[\r\n][ \t\r\n]*")


class _RepeatedKeyError(ValueError):
    """A key occurs twice in an object: JSON does not say which value is meant."""


def read_json_lines(path: Path, limits: ReadLimits) -> Iterator[SourceRow]:
    """Yield the rows of a .jsonl file; blank lines are skipped.

    Raises:
        DataFileError: if the compressed stream is damaged, or a limit is exceeded.
    """
    with opened(path, limits) as stream:
        if _breaks_its_lines(stream.peek()):
            yield from _document(stream.read(), path, limits)
        else:
            yield from _lines(stream, limits)


def read_json(path: Path, limits: ReadLimits) -> Iterator[SourceRow]:
    """Yield the rows of a .json file, also where one object holds them under one key.

    Raises:
        DataFileError: as in `read_json_lines`; or if an array ends too early, or an object holds
            several lists of rows.
    """
    with opened(path, limits) as stream:
        text = stream.read()
    line, _, rest = text.lstrip().partition(b"\n")
    if rest.strip() and _values(line) is not None:
        yield from _lines(io.BytesIO(text), limits)
    else:
        yield from _document(text, path, limits, wrapped=True)


def _lines(stream: IO[bytes], limits: ReadLimits) -> Iterator[SourceRow]:
    limit, number = limits.line_bytes, 0
    while line := stream.readline(limit + 1):
        if len(line) > limit and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(limit)
            yield SourceRow(number, None, None, limits.long_line)
        elif line.strip():
            yield _parsed(number, line)
        number += 1


def _breaks_its_lines(head: bytes) -> bool:
    """Whether the beginning of a file is anything but one JSON value a line."""
    head = head.lstrip()
    line, newline, rest = head.partition(b"\n")
    if re.match(rb"\[\s*{", head):
        return not rest.strip() or _values(line) is None
    return head.startswith(b"{") and bool(newline) and _values(line) is None


def _document(
    text: bytes, path: Path, limits: ReadLimits, *, wrapped: bool = False
) -> Iterator[SourceRow]:
    """Yield the rows of an array, or of objects that span several lines."""
    text = text.strip()
    found = _cut(text)
    if wrapped and text.startswith(b"[") and found is None:
        raise DataFileError(
            f"{path} begins with a JSON array that does not end, or is not all there is; expected "
            "one complete array, or one object a line. Write it again."
        )
    if found is None or text[:1] not in (b"[", b"{"):
        yield from _lines(io.BytesIO(text), limits)
        return
    if wrapped and len(found) == 1 and text.startswith(b"{"):
        values = _values(found[0])
        name = _wrapper(values, path) if isinstance(values, dict) else None
        if name is not None:
            found = [
                json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")
                for row in values[name]
            ]
    for number, piece in enumerate(found):
        if len(piece) > limits.line_bytes:
            yield SourceRow(number, None, None, limits.long_line, f"object {number + 1}")
        else:
            yield _parsed(number, piece, f"object {number + 1}")


def _wrapper(values: dict[str, Any], path: Path) -> str | None:
    """Return the key under which an object holds rows, or None if it is a row itself."""

    def rows(value: object) -> bool:
        return (
            isinstance(value, list)
            and bool(value)
            and all(isinstance(row, dict) and not row.keys() & {"role", "from"} for row in value)
        )

    names = [name for name, value in values.items() if rows(value)]
    if len(values) > 1:
        names = [name for name in names if _WRAPPERS.fullmatch(name)]
    if len(names) > 1:
        raise DataFileError(
            f"{path} holds several lists of rows, {', '.join(map(repr, names))}; expected one. "
            "Write each to a file of its own."
        )
    return names[0] if names else None


def _cut(text: bytes) -> list[bytes] | None:
    """Cut an array, or objects one after the other, into their pieces; None if one never ends."""
    outer = 1 if text.startswith(b"[") else 0
    pieces: list[bytes] = []
    depth, start = 0, outer
    for token in _TOKEN.finditer(text):
        mark = token.group()
        if mark in (b"[", b"{"):
            depth += 1
        elif mark in (b"]", b"}"):
            depth -= 1
            if depth == 0 and outer:
                last = text[start : token.start()].strip()
                # Text after the array is not part of it.
                ended = token.end() == len(text)
                return (
                    [*pieces, last] if last and ended else pieces if ended and not pieces else None
                )
            if depth == 0:
                pieces.append(text[start : token.end()].strip())
                start = token.end()
        elif mark == b"," and outer and depth == 1:
            pieces.append(text[start : token.start()].strip())
            start = token.end()
    return pieces if not outer and depth == 0 and not text[start:].strip() else None


def _parsed(row: int, piece: bytes, place: str = "") -> SourceRow:
    # A file joined from several may have a byte order mark at each one's beginning.
    try:
        text = piece.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        problem = f"byte {error.start} is not UTF-8; re-encode the file"
        return SourceRow(row, None, None, problem, place)
    text = _BREAKS.sub(" ", text)
    try:
        values = json.loads(text, object_pairs_hook=_once)
    except _RepeatedKeyError:
        problem = "an object has one key twice; expected each once, or which is meant is not known"
        return SourceRow(row, None, text, problem, place)
    except (ValueError, RecursionError) as error:
        # json's message names the place, not the text.
        problem = f"not JSON ({error}); expected one object a line"
        return SourceRow(row, None, text, problem, place)
    if not isinstance(values, dict):
        kind = type(values).__name__
        problem = f"a JSON {kind}; expected an object with named columns"
        return SourceRow(row, None, text, problem, place)
    return SourceRow(row, values, text, None, place)


def _values(text: bytes) -> Any:
    """Return a JSON value; None if the text is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    values = dict(pairs)
    if len(values) != len(pairs):
        raise _RepeatedKeyError
    return values

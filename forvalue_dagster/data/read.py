"""Data files to one table of canonical rows, and back to the source's own form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from forvalue_dagster.data.columns import IMAGES, Columns
from forvalue_dagster.data.file_form import FileForm
from forvalue_dagster.data.files import (
    SUFFIXES,
    DataFileError,
    SourceRow,
    data_file_stem,
    data_files,
    read_json_lines,
    read_table,
)
from forvalue_dagster.data.images import ImageFolder, image_digest, local_images
from forvalue_dagster.data.problems import RowError
from forvalue_dagster.data.reading import RowReading, row_reading
from forvalue_dagster.data.rows import CanonicalRow, canonical_row

OnBadRow = Literal["raise", "skip"]
Rows = str | Path | pl.DataFrame | Sequence[Mapping[str, Any]]

# The source's own columns follow these; one that has such a name is kept as "source.<name>".
CANONICAL_SCHEMA: dict[str, pl.DataType] = {
    "shard": pl.String(),
    "row": pl.Int64(),
    "sample_id": pl.String(),
    "messages": pl.String(),
    "tools": pl.String(),
    "images": pl.List(pl.Binary()),
    "rejected": pl.String(),
    "group": pl.String(),
    "problem": pl.String(),
    "source": pl.String(),
}
# A table that was stored by an earlier version has none.
_OPTIONAL = {"rejected"}
DESCRIPTIONS = {
    "shard": "where the row came from; (shard, row) is unique",
    "row": "number of the row in its file, from 0",
    "sample_id": "hash of the conversation and its images, the same in any file; exact duplicates "
    "share it",
    "messages": "the conversation as JSON: a list of role and content",
    "tools": "tool definitions as JSON, where the row has them",
    "images": "bytes of the row's images, in order; a missing one is null",
    "rejected": "the rejected answer as JSON, of preference data; it is not scored",
    "group": "validation group, where the row has one",
    "problem": "why the row could not be read; it is kept, unscored",
    "source": "the row's line verbatim, for JSON Lines",
}


def read_rows(
    rows: Rows,
    *,
    columns: Columns | None = None,
    shard: str | None = None,
    on_bad_row: OnBadRow = "raise",
    images: ImageFolder | None = None,
) -> pl.DataFrame:
    """Read finetuning rows into the canonical schema.

    Args:
        rows: a data file or a folder of them; or a frame; or a list of dicts.
        columns: where the conversation is kept; detected by default.
        shard: the shard's name; by default the name of each file without suffix, or "rows".
        on_bad_row: "raise" at the first unreadable row; "skip" to keep it with its `problem` and
            no messages, so that it leaves the pipeline as skipped-with-a-reason.
        images: where images lie that are named by path; by default the data file's own folder.

    Returns:
        The columns of `CANONICAL_SCHEMA`, then the source's own.

    Raises:
        DataFileError: if a file is damaged or a row cannot be read, naming file, row, what came
            and what was expected.
    """
    return read_rows_with_reading(
        rows, columns=columns, shard=shard, on_bad_row=on_bad_row, images=images
    )[0]


def read_rows_with_reading(
    rows: Rows,
    *,
    columns: Columns | None = None,
    shard: str | None = None,
    on_bad_row: OnBadRow = "raise",
    images: ImageFolder | None = None,
) -> tuple[pl.DataFrame, dict[str, RowReading]]:
    """Read finetuning rows, and say how they were read.

    Takes the arguments of `read_rows` and raises what it raises.

    Returns:
        The rows; and the file's path, "the frame" or "the list" → how it was read, empty for a
        frame that is canonical as it is.
    """
    columns = columns or Columns()
    if isinstance(rows, pl.DataFrame):
        if set(CANONICAL_SCHEMA) - _OPTIONAL <= set(rows.columns):
            return rows, {}
        reader = _Reader(columns, shard or "rows", "the frame", on_bad_row, images)
        frame, reading = reader.from_table(rows)
        return frame, {reader.origin: reading}
    if not isinstance(rows, str | Path):
        source = [SourceRow(index, dict(values)) for index, values in enumerate(rows)]
        reader = _Reader(columns, shard or "rows", "the list", on_bad_row, images)
        frame, reading = reader.from_records(source)
        return frame, {reader.origin: reading}
    files = data_files(Path(rows))
    if not files:
        raise DataFileError(f"{rows} holds no data file; expected one of {', '.join(SUFFIXES)}.")
    frames, readings = [], {}
    for path in files:
        folder = images or local_images(path.parent)
        reader = _Reader(columns, shard or data_file_stem(path), str(path), on_bad_row, folder)
        if path.name.endswith(".parquet") or path.is_dir():
            frame, reading = reader.from_table(read_table(path))
        else:
            frame, reading = reader.from_records(read_json_lines(path))
        frames.append(frame)
        readings[reader.origin] = reading
    # A column that is text in one file and absent or a number in another is no reason to fail.
    frame = pl.concat(frames, how="diagonal_relaxed")
    if shard is not None and len(frames) > 1:
        frame = frame.with_columns(row=pl.int_range(pl.len(), dtype=pl.Int64))
    return frame, readings


def source_lines(frame: pl.DataFrame) -> Iterable[str]:
    """Yield each canonical row as a line of JSON in its source's own form."""
    own = [name for name in frame.columns if name not in CANONICAL_SCHEMA]
    for row in frame.iter_rows(named=True):
        if row["source"] is not None:
            yield row["source"]
        else:
            values = {name.removeprefix("source."): row[name] for name in own}
            yield json.dumps(values, ensure_ascii=False, default=_named)


@dataclass(frozen=True)
class _Reader:
    """How the rows of one file, frame or list are read.

    Attributes:
        columns: where the conversation is kept.
        shard: name of the shard.
        origin: what an error calls the file.
        on_bad_row: as of `read_rows`.
        images: where images lie that are named by path.
    """

    columns: Columns
    shard: str
    origin: str
    on_bad_row: OnBadRow
    images: ImageFolder | None

    def from_table(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, RowReading]:
        records = [
            SourceRow(index, values) for index, values in enumerate(frame.iter_rows(named=True))
        ]
        rows, reading = self._read(records)
        # Their bytes are in `images`; kept twice they would double the table.
        own = frame.drop(name for name in self._image_columns if _holds_bytes(frame, name))
        clashes = {name: f"source.{name}" for name in own.columns if name in CANONICAL_SCHEMA}
        return self._canonical(rows, range(len(rows))).hstack(own.rename(clashes)), reading

    def from_records(self, records: Iterable[SourceRow]) -> tuple[pl.DataFrame, RowReading]:
        records = list(records)
        rows, reading = self._read(records)
        frame = self._canonical(rows, [record.row for record in records])
        lines = pl.Series(
            "source",
            [r.text if r.text is not None else _line(r.values) for r in records],
            dtype=pl.String,
        )
        own = _scalar_columns([r.values or {} for r in records])
        return frame.with_columns(lines).hstack(own), reading

    def _read(
        self, records: Sequence[SourceRow]
    ) -> tuple[list[CanonicalRow | RowError], RowReading]:
        """Read the rows of one file, whose form is decided on all of them."""
        sources = [record.values for record in records]
        form = FileForm.of(sources, self.columns)
        rows = [self._convert(record, form) for record in records]
        return rows, row_reading(form, sources, rows)

    @property
    def _image_columns(self) -> tuple[str, ...]:
        return IMAGES if self.columns.images is None else (self.columns.images,)

    def _convert(self, record: SourceRow, form: FileForm) -> CanonicalRow | RowError:
        """Return the canonical row, or the problem with it."""
        problem = RowError(record.problem or "", "line")
        if record.values is not None:
            try:
                return canonical_row(record.values, self.columns, self.images, form)
            except RowError as error:
                problem = error
        if self.on_bad_row == "raise":
            raise DataFileError(
                f"{self.origin}, row {record.row} (line {record.row + 1}): {problem}. Mend it, or "
                "set on_bad_row to 'skip' to keep the row unscored."
            )
        return problem

    def _canonical(
        self, rows: Sequence[CanonicalRow | RowError], numbers: Sequence[int]
    ) -> pl.DataFrame:
        good = [row if isinstance(row, CanonicalRow) else None for row in rows]
        values: dict[str, list[Any]] = {
            "shard": [self.shard] * len(rows),
            "row": list(numbers),
            "sample_id": [row.sample_id if row else None for row in good],
            "messages": [row.messages if row else None for row in good],
            "tools": [row.tools if row else None for row in good],
            "images": [row.images if row else None for row in good],
            "rejected": [row.rejected if row else None for row in good],
            "group": [row.group if row else None for row in good],
            "problem": [str(row) if isinstance(row, RowError) else None for row in rows],
            "source": [None] * len(rows),
        }
        return pl.DataFrame(values, schema=CANONICAL_SCHEMA)


def _holds_bytes(frame: pl.DataFrame, column: str) -> bool:
    return column in frame.columns and "Binary" in str(frame.schema[column])


def _line(values: dict[str, Any] | None) -> str | None:
    return None if values is None else json.dumps(values, ensure_ascii=False, default=_named)


def _named(value: object) -> str:
    """Stand for what JSON does not hold: bytes by a hash, anything else as it prints itself."""
    return f"sha256:{image_digest(value)}" if isinstance(value, bytes) else str(value)


def _scalar_columns(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Make a column of every key whose values are of one plain type.

    JSON is not a table: what nests or changes its type from row to row stays in the verbatim
    line alone, and so does what a column cannot hold (wide integers, half a surrogate pair).
    """
    series = []
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        wide = any(isinstance(v, int) and v.bit_length() > 63 for v in values)
        if kinds == {int, float} and not wide:
            kinds = {float}
            values = [None if value is None else float(value) for value in values]
        if wide or len(kinds) != 1 or not kinds <= _PLAIN_TYPES.keys():
            continue
        own = f"source.{name}" if name in CANONICAL_SCHEMA else name
        try:
            series.append(pl.Series(own, values, dtype=_PLAIN_TYPES[kinds.pop()]))
        except UnicodeEncodeError:
            continue
    return pl.DataFrame(series)


_PLAIN_TYPES: dict[type, type[pl.DataType]] = {
    str: pl.String,
    int: pl.Int64,
    float: pl.Float64,
    bool: pl.Boolean,
}

"""Read data files into one table of canonical rows, and write rows in their source's own form."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import polars as pl

from forvalue_dagster.data.columns import IMAGES, Columns
from forvalue_dagster.data.file_form import FileForm
from forvalue_dagster.data.files import DEFAULT_LIMITS, DataFileError, ReadLimits, SourceRow
from forvalue_dagster.data.formats import DATASET_DICT, SAVED_DATASET, read_file, stem
from forvalue_dagster.data.frames import Frame, as_table
from forvalue_dagster.data.images import ImageFolder, local_images
from forvalue_dagster.data.listing import (
    files_below,
    is_one_table,
    nothing_to_read,
    parts_of,
    shards_in,
)
from forvalue_dagster.data.own_columns import beside, scalar_columns, together, verbatim
from forvalue_dagster.data.own_columns import source_lines as lines_beside
from forvalue_dagster.data.plain_json import named_images
from forvalue_dagster.data.problems import RowError
from forvalue_dagster.data.reading import RowReading, row_reading
from forvalue_dagster.data.rows import CanonicalRow, canonical_row

OnBadRow = Literal["raise", "skip"]
Rows: TypeAlias = str | Path | Frame | Iterable[Mapping[str, Any]]

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
# A table that was stored by an earlier version has no such column.
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
    "source": "the row verbatim on one line, where it comes from JSON",
}


def read_rows(
    rows: Rows,
    *,
    columns: Columns | None = None,
    shard: str | None = None,
    on_bad_row: OnBadRow = "raise",
    images: ImageFolder | None = None,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> pl.DataFrame:
    """Read finetuning rows into the canonical schema.

    Args:
        rows: a data file or a folder of them; a frame of polars, pandas or Arrow; a
            `datasets.Dataset`; or a list of dicts.
        columns: columns of the conversation; detected by default.
        shard: the shard's name; by default the name of each file without suffix, or "rows".
        on_bad_row: "raise" at the first unreadable row; "skip" to keep it with its `problem` and
            no messages, so that it is skipped later, with this reason.
        images: folder of images that are named by path; by default the data file's own folder.
        limits: limits of what is read of a file.

    Returns:
        The columns of `CANONICAL_SCHEMA`, then the source's own.

    Raises:
        DataFileError: if a file is damaged or a row cannot be read; the message names file, row,
            what came and what was expected.
    """
    return read_rows_with_reading(
        rows, columns=columns, shard=shard, on_bad_row=on_bad_row, images=images, limits=limits
    )[0]


def read_rows_with_reading(
    rows: Rows,
    *,
    columns: Columns | None = None,
    shard: str | None = None,
    on_bad_row: OnBadRow = "raise",
    images: ImageFolder | None = None,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> tuple[pl.DataFrame, dict[str, RowReading]]:
    """Read finetuning rows, and say how they were read.

    Takes the arguments of `read_rows`, and raises the same errors.

    Returns:
        The rows; and the file's path, "the frame" or "the list" → how it was read, empty for a
        frame that is canonical as it is.
    """
    columns = columns or Columns()
    if not isinstance(rows, str | Path):
        table = as_table(rows)
        held = set(table.columns) if isinstance(table, pl.DataFrame) else set()
        if isinstance(table, pl.DataFrame) and set(CANONICAL_SCHEMA) - _OPTIONAL <= held:
            return table, {}
        origin = "the frame" if isinstance(table, pl.DataFrame) else "the list"
        reader = _Reader(columns, shard or "rows", origin, on_bad_row, images)
        frame, reading = reader.read(table)
        return frame, {origin: reading}
    frames, readings, shards = [], {}, []
    for name, path, own in _files_of(Path(rows)):
        folder = images or local_images(path.parent)
        reader = _Reader(columns, shard or name, str(path), on_bad_row, folder)
        frame, readings[str(path)] = reader.read(_with(own, read_file(path, limits)))
        frames.append(frame)
        shards.append(reader.shard)
    if len(frames) == 1:
        return frames[0], readings
    frame = together(frames, CANONICAL_SCHEMA)
    if in_parts := {name for name, files in Counter(shards).items() if files > 1}:
        # The rows of all files get one count.
        through = pl.int_range(pl.len(), dtype=pl.Int64).over("shard")
        frame = frame.with_columns(
            row=pl.when(pl.col("shard").is_in(in_parts)).then(through).otherwise("row")
        )
    return frame, readings


def source_lines(frame: pl.DataFrame) -> Iterable[str]:
    """Yield each canonical row as a line of JSON in its source's own form."""
    return lines_beside(frame, CANONICAL_SCHEMA)


_Own = Mapping[str, str | None]
_NO_JSON = "it nests too deeply, or has a number too long, to be written as JSON; take that out"


def _files_of(path: Path) -> Iterator[tuple[str, Path, _Own]]:
    """Yield (shard, file, columns that its path names) of a path.

    Raises:
        DataFileError: if it is missing, several datasets in one, or holds nothing to read.
    """
    if not path.exists():
        raise DataFileError(f"{path} does not exist; expected a data file or a folder of them.")
    if path.is_file() or (path / SAVED_DATASET).is_file():
        yield stem(path), path, {}
        return
    if (path / DATASET_DICT).is_file():
        raise DataFileError(
            f"{path} is a DatasetDict; expected one dataset. Name one of its splits, a folder "
            "inside it."
        )
    paths = list(files_below(path, deep=False))
    if is_one_table(path.name, paths):
        yield from ((stem(path), file, own) for file, own in parts_of(path))
        return
    listing = shards_in(paths, str(path))
    if not listing.shards:
        raise nothing_to_read(str(path), listing.passed_over)
    for name, reason in sorted(listing.passed_over.items()):
        warnings.warn(f"{path / name} is passed over: {reason}.", stacklevel=5)
    for shard, name in sorted(listing.shards.items()):
        inside = path / name
        if inside.is_file() or (inside / SAVED_DATASET).is_file():
            yield shard, inside, {}
        else:
            yield from ((shard, file, own) for file, own in parts_of(inside))


def _with(
    own: _Own, rows: pl.DataFrame | Iterator[SourceRow]
) -> pl.DataFrame | Iterator[SourceRow]:
    """Add the columns that a file's path names and that it does not have itself."""
    if not own:
        return rows
    if isinstance(rows, pl.DataFrame):
        added = {name: value for name, value in own.items() if name not in rows.columns}
        return rows.with_columns(pl.lit(v, pl.String).alias(n) for n, v in added.items())
    return (
        row if row.values is None else replace(row, values={**own, **row.values}, text=None)
        for row in rows
    )


@dataclass(frozen=True)
class _Reader:
    """How the rows of one file, frame or list are read.

    Attributes:
        columns: columns of the conversation.
        shard: name of the shard.
        origin: name of the file in an error.
        on_bad_row: the same option as in `read_rows`.
        images: folder of images that are named by path.
    """

    columns: Columns
    shard: str
    origin: str
    on_bad_row: OnBadRow
    images: ImageFolder | None

    def read(self, rows: pl.DataFrame | Iterable[SourceRow]) -> tuple[pl.DataFrame, RowReading]:
        """Return canonical rows with the source's own columns, and how they were read."""
        if isinstance(rows, pl.DataFrame):
            return self._from_table(rows)
        return self._from_records(list(rows))

    def _from_table(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, RowReading]:
        records = [
            SourceRow(index, values) for index, values in enumerate(frame.iter_rows(named=True))
        ]
        rows, reading = self._read(records)
        # Their bytes are in `images`; a second copy would double the table.
        shown = [
            pl.Series(name, [named_images(value) for value in frame[name].to_list()], strict=False)
            for name in self._image_columns
            if _holds_bytes(frame, name)
        ]
        own = frame.with_columns(shown)
        own = own.rename({name: beside(name, CANONICAL_SCHEMA) for name in own.columns})
        return self._canonical(rows, range(len(rows))).hstack(own), reading

    def _from_records(self, records: Sequence[SourceRow]) -> tuple[pl.DataFrame, RowReading]:
        rows, reading = self._read(records)
        lines = []
        for index, (record, row) in enumerate(zip(records, rows, strict=True)):
            line = record.text
            if line is None and record.values is not None:
                line = verbatim(record.values, (isinstance(row, CanonicalRow) and row.images) or ())
                if line is None and isinstance(row, CanonicalRow):
                    rows[index] = self._refuse(record, RowError(_NO_JSON, "JSON"))
            lines.append(line)
        frame = self._canonical(rows, [record.row for record in records])
        own = scalar_columns([record.values or {} for record in records], CANONICAL_SCHEMA)
        return frame.with_columns(pl.Series("source", lines, dtype=pl.String)).hstack(own), reading

    def _read(
        self, records: Sequence[SourceRow]
    ) -> tuple[list[CanonicalRow | RowError], RowReading]:
        """Read the rows of one file, whose form is decided from all of them."""
        sources = [record.values for record in records]
        form = FileForm.of(sources, self.columns)
        rows = [self._convert(record, form) for record in records]
        return rows, row_reading(form, sources, rows)

    @property
    def _image_columns(self) -> tuple[str, ...]:
        return IMAGES if self.columns.images is None else (self.columns.images,)

    def _convert(self, record: SourceRow, form: FileForm) -> CanonicalRow | RowError:
        """Return the canonical row, or its problem."""
        problem = RowError(record.problem or "", "line")
        if record.values is not None:
            try:
                row = canonical_row(record.values, self.columns, self.images, form)
                (row.group or "").encode()
                return row
            except RowError as error:
                problem = error
            except UnicodeEncodeError:
                problem = RowError("its group holds half of a surrogate pair, which is not Unicode")
            except RecursionError:
                problem = RowError("it nests too deeply; expected a conversation")
        return self._refuse(record, problem)

    def _refuse(self, record: SourceRow, problem: RowError) -> RowError:
        if self.on_bad_row == "raise":
            raise DataFileError(
                f"{self.origin}, row {record.row} ({record.place or f'line {record.row + 1}'}): "
                f"{problem}. Mend it, or set on_bad_row to 'skip' to keep the row unscored."
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
            "problem": [_problem(row) for row in rows],
            "source": [None] * len(rows),
        }
        return pl.DataFrame(values, schema=CANONICAL_SCHEMA)


def _holds_bytes(frame: pl.DataFrame, column: str) -> bool:
    return column in frame.columns and "Binary" in str(frame.schema[column])


def _problem(row: CanonicalRow | RowError) -> str | None:
    # A problem names keys, and keys may be anything.
    return (
        str(row).encode("utf-8", "backslashreplace").decode() if isinstance(row, RowError) else None
    )

"""Data files to one table of canonical rows, and back to the source's own form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from forvalue_dagster.data.files import (
    SUFFIXES,
    DataFileError,
    SourceRow,
    data_file_stem,
    data_files,
    read_json_lines,
    read_table,
)
from forvalue_dagster.data.rows import CanonicalRow, Columns, RowError, canonical_row

OnBadRow = Literal["raise", "skip"]
Rows = str | Path | pl.DataFrame | Sequence[Mapping[str, Any]]

# The source's own columns follow these; one that has such a name is kept as "source.<name>".
CANONICAL_SCHEMA: dict[str, pl.DataType] = {
    "shard": pl.String(),
    "row": pl.Int64(),
    "sample_id": pl.String(),
    "messages": pl.String(),
    "tools": pl.String(),
    "group": pl.String(),
    "problem": pl.String(),
    "source": pl.String(),
}
DESCRIPTIONS = {
    "shard": "where the row came from; (shard, row) is unique",
    "row": "number of the row in its file, from 0",
    "sample_id": "hash of the conversation, the same in any file; exact duplicates share it",
    "messages": "the conversation as JSON: a list of role and content",
    "tools": "tool definitions as JSON, where the row has them",
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
) -> pl.DataFrame:
    """Read finetuning rows into the canonical schema.

    Args:
        rows: a data file or a folder of them; or a frame; or a list of dicts.
        columns: where the conversation is kept; detected by default.
        shard: the shard's name; by default the name of each file without suffix, or "rows".
        on_bad_row: "raise" at the first unreadable row; "skip" to keep it with its `problem` and
            no messages, so that it leaves the pipeline as skipped-with-a-reason.

    Returns:
        The columns of `CANONICAL_SCHEMA`, then the source's own.

    Raises:
        DataFileError: if a file is damaged or a row cannot be read, naming file, row, what came
            and what was expected.
    """
    columns = columns or Columns()
    if isinstance(rows, pl.DataFrame):
        if set(CANONICAL_SCHEMA) <= set(rows.columns):
            return rows
        return _from_table(rows, columns, shard or "rows", "the frame", on_bad_row)
    if not isinstance(rows, str | Path):
        source = [SourceRow(index, dict(values)) for index, values in enumerate(rows)]
        return _from_records(source, columns, shard or "rows", "the list", on_bad_row)
    files = data_files(Path(rows))
    if not files:
        raise DataFileError(f"{rows} holds no data file; expected one of {', '.join(SUFFIXES)}.")
    frames = []
    for path in files:
        name = shard or data_file_stem(path)
        if path.name.endswith(".parquet") or path.is_dir():
            frames.append(_from_table(read_table(path), columns, name, str(path), on_bad_row))
        else:
            lines = read_json_lines(path)
            frames.append(_from_records(lines, columns, name, str(path), on_bad_row))
    # A column that is text in one file and absent or a number in another is no reason to fail.
    frame = pl.concat(frames, how="diagonal_relaxed")
    if shard is not None and len(frames) > 1:
        frame = frame.with_columns(row=pl.int_range(pl.len(), dtype=pl.Int64))
    return frame


def source_lines(frame: pl.DataFrame) -> Iterable[str]:
    """Yield each canonical row as a line of JSON in its source's own form."""
    own = [name for name in frame.columns if name not in CANONICAL_SCHEMA]
    for row in frame.iter_rows(named=True):
        if row["source"] is not None:
            yield row["source"]
        else:
            values = {name.removeprefix("source."): row[name] for name in own}
            yield json.dumps(values, ensure_ascii=False, default=str)


def _from_table(
    frame: pl.DataFrame, columns: Columns, shard: str, origin: str, on_bad_row: OnBadRow
) -> pl.DataFrame:
    rows = [
        _convert(SourceRow(index, values), columns, origin, on_bad_row)
        for index, values in enumerate(frame.iter_rows(named=True))
    ]
    clashes = {name: f"source.{name}" for name in frame.columns if name in CANONICAL_SCHEMA}
    return _canonical_columns(rows, range(len(rows)), shard).hstack(frame.rename(clashes))


def _from_records(
    records: Iterable[SourceRow], columns: Columns, shard: str, origin: str, on_bad_row: OnBadRow
) -> pl.DataFrame:
    records = list(records)
    rows = [_convert(record, columns, origin, on_bad_row) for record in records]
    frame = _canonical_columns(rows, [record.row for record in records], shard)
    lines = pl.Series(
        "source",
        [r.text if r.text is not None else _line(r.values) for r in records],
        dtype=pl.String,
    )
    return frame.with_columns(lines).hstack(_scalar_columns([r.values or {} for r in records]))


def _line(values: dict[str, Any] | None) -> str | None:
    return None if values is None else json.dumps(values, ensure_ascii=False, default=str)


def _convert(
    record: SourceRow, columns: Columns, origin: str, on_bad_row: OnBadRow
) -> CanonicalRow | str:
    """Return the canonical row, or the problem with it."""
    problem = record.problem
    if record.values is not None:
        try:
            return canonical_row(record.values, columns)
        except RowError as error:
            problem = str(error)
    assert problem is not None
    if on_bad_row == "raise":
        raise DataFileError(
            f"{origin}, row {record.row} (line {record.row + 1}): {problem}. Mend it, or set "
            "on_bad_row to 'skip' to keep the row unscored."
        )
    return problem


def _canonical_columns(
    rows: Sequence[CanonicalRow | str], numbers: Sequence[int], shard: str
) -> pl.DataFrame:
    good = [row if isinstance(row, CanonicalRow) else None for row in rows]
    values: dict[str, list[Any]] = {
        "shard": [shard] * len(rows),
        "row": list(numbers),
        "sample_id": [row.sample_id if row else None for row in good],
        "messages": [row.messages if row else None for row in good],
        "tools": [row.tools if row else None for row in good],
        "group": [row.group if row else None for row in good],
        "problem": [row if isinstance(row, str) else None for row in rows],
        "source": [None] * len(rows),
    }
    return pl.DataFrame(values, schema=CANONICAL_SCHEMA)


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

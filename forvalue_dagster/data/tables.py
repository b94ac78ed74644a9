"""Readers of tables: Parquet, Arrow, datasets saved by Hugging Face, and delimited text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from forvalue_dagster.data.files import DataFileError, ReadLimits, SourceRow, opened


def read_parquet(path: Path, limits: ReadLimits) -> pl.DataFrame:
    """Read a Parquet file.

    Raises:
        DataFileError: if it is damaged, or decodes to more than the limit.
    """
    try:
        # The path is taken literally: [, *, ? and k=v in it have no meaning.
        frame = pl.read_parquet(path, glob=False, hive_partitioning=False)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise _damaged(path, "Parquet", error) from error
    return _bounded(frame, path, limits)


def read_arrow(path: Path, limits: ReadLimits) -> pl.DataFrame:
    """Read an Arrow file or stream.

    Raises:
        DataFileError: as `read_parquet`.
    """
    return _bounded(_frame(path, [path], "Arrow"), path, limits)


def read_saved_dataset(path: Path, limits: ReadLimits) -> pl.DataFrame:
    """Read the Arrow streams that a saved dataset's state names, in its order.

    Raises:
        DataFileError: as `read_parquet`.
    """
    try:
        state = json.loads((path / "state.json").read_text("utf-8"))
        files = [path / entry["filename"] for entry in state["_data_files"]]
        for file in files:
            # The state is untrusted data: it may not point outside its folder.
            if file.resolve().parent != path.resolve():
                raise ValueError(f"state.json names {file.name!r}, outside the dataset")
        if state.get("_indices_data_files"):
            raise ValueError("it keeps its rows' order apart; save it with datasets 2 or later")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, "an Arrow dataset", error) from error
    return _bounded(_frame(path, files, "an Arrow dataset"), path, limits)


def read_csv(path: Path, limits: ReadLimits) -> Iterator[SourceRow]:
    """Yield the rows of comma-separated values, all text; an empty value is absent.

    Raises:
        DataFileError: if a quote does not end, a column has no name or one that occurs twice, or
            as in `opened`.
    """
    return _delimited(path, ",", limits)


def read_tsv(path: Path, limits: ReadLimits) -> Iterator[SourceRow]:
    """Yield the rows of tab-separated values, as `read_csv` does."""
    return _delimited(path, "\t", limits)


def _delimited(path: Path, separator: str, limits: ReadLimits) -> Iterator[SourceRow]:
    # polars fills up a row that is too short, and refuses the file for one that is too long.
    csv.field_size_limit(max(csv.field_size_limit(), limits.file_bytes))
    with opened(path, limits) as stream:
        text = io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="")
        rows = csv.reader(text, delimiter=separator, strict=True)
        names = next(rows, [])
        if len(set(names)) != len(names) or "" in names:
            raise DataFileError(
                f"{path} has a column without a name, or two of one name, in its first line; "
                "expected the name of each column there."
            )
        number = 0
        cells: list[str] | str
        while True:
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                if "end of data" in str(error):
                    raise DataFileError(
                        f"{path} ends inside quoted text; expected a quote at its end, and quotes "
                        "inside it doubled. Write it again."
                    ) from None
                cells = str(error)
            if cells:
                yield _cells(number, names, cells, f"line {rows.line_num}", limits)
                number += 1


def _cells(
    row: int, names: list[str], cells: list[str] | str, place: str, limits: ReadLimits
) -> SourceRow:
    """Return a row, or its problem."""
    problem = None
    if isinstance(cells, str):
        problem = f"not delimited text ({cells}); expected quotes inside quoted text doubled"
    elif len(cells) != len(names):
        problem = f"{len(cells)} cells; expected {len(names)}, one for each column"
    elif sum(map(len, cells)) > limits.line_bytes:
        problem = limits.long_line
    elif not _is_unicode(cells):
        problem = "not UTF-8; re-encode the file"
    if problem is not None:
        return SourceRow(row, None, None, problem, place)
    values = {name: cell or None for name, cell in zip(names, cells, strict=True)}
    return SourceRow(row, values, None, None, place)


def _is_unicode(cells: list[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


def _frame(path: Path, files: list[Path], kind: str) -> pl.DataFrame:
    import pyarrow as pa

    try:
        frame = pl.from_arrow(pa.concat_tables([_arrow(file) for file in files]))
        if not isinstance(frame, pl.DataFrame):
            raise ValueError("it has no columns")
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise _damaged(path, kind, error) from error
    return frame


def _arrow(file: Path) -> Any:
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        # An Arrow file begins with the format's name, a stream does not.
        opener = pa.ipc.open_file if source.read(6) == b"ARROW1" else pa.ipc.open_stream
        source.seek(0)
        return opener(source).read_all()


def _damaged(path: Path, kind: str, error: Exception) -> DataFileError:
    return DataFileError(f"{path}: not readable as {kind} ({error}); write it again.")


def _bounded(frame: pl.DataFrame, path: Path, limits: ReadLimits) -> pl.DataFrame:
    """Check a table's size against the limit: a dictionary can repeat one text very often."""
    size = 0
    for column in frame:
        if column.dtype == pl.Binary:
            size += int(column.bin.size().sum() or 0)
        elif column.dtype in (pl.String, pl.Categorical, pl.Enum):
            size += int(column.cast(pl.String).str.len_bytes().sum() or 0)
    limits.check_file(path, max(size, int(frame.estimated_size())))
    return frame

"""Read rows that are in memory: frames of any library, datasets, and lists of dicts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import polars as pl

from forvalue_dagster.data.files import DataFileError, SourceRow


@runtime_checkable
class ArrowStream(Protocol):
    """A table of PyArrow, pandas or another library that exports Arrow data."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


Frame: TypeAlias = pl.DataFrame | pl.LazyFrame | ArrowStream


def as_table(rows: Any) -> pl.DataFrame | Iterator[SourceRow]:
    """Return rows as a frame if a library holds them as one, otherwise one by one.

    Args:
        rows: a frame of polars, pandas or Arrow; a `datasets.Dataset`; columns by name; or an
            iterable of mappings.

    Raises:
        DataFileError: if it is none of these.
    """
    if isinstance(rows, pl.DataFrame):
        return rows
    if isinstance(rows, pl.LazyFrame):
        return rows.collect()
    library = type(rows).__module__.partition(".")[0]
    if isinstance(rows, Mapping):
        return _columns(rows, library)
    if library == "pandas" and hasattr(rows, "columns") and not rows.columns.is_unique:
        twice = sorted({str(name) for name in rows.columns[rows.columns.duplicated()]})
        raise DataFileError(f"{_kind(rows)} has columns {twice} twice; expected each once.")
    try:
        if library == "datasets" and hasattr(rows, "with_format") and hasattr(rows, "num_rows"):
            # The selected rows in their order, and images as they are stored.
            if rows.format["type"] == "custom":  # rows as its own function returns them
                return _records(rows)
            rows = rows.with_format("arrow", columns=rows.format["columns"])[:]
        if library == "pandas" and hasattr(rows, "columns"):
            return _pandas(rows)
        if isinstance(rows, ArrowStream) or hasattr(rows, "__arrow_c_array__"):
            return pl.DataFrame(rows)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
        # Without the cause, which would quote the rows.
        raise DataFileError(
            f"{_kind(rows)} that polars cannot read ({type(error).__name__}); expected columns of "
            "one type each."
        ) from None
    if not isinstance(rows, Iterable) or isinstance(rows, str | bytes):
        raise DataFileError(
            f"{_kind(rows)} holds no rows; expected a path, a frame of polars, pandas or Arrow, a "
            "datasets.Dataset, or a list of dicts."
        )
    return _records(rows)


def _records(rows: Iterable[Any]) -> Iterator[SourceRow]:
    yield from (_record(number, values) for number, values in enumerate(rows))


def _record(number: int, values: Any) -> SourceRow:
    if isinstance(values, Mapping):
        return SourceRow(number, {str(name): value for name, value in values.items()})
    kind = type(values).__name__
    return SourceRow(number, None, None, f"a {kind}; expected a dict with named columns")


def _columns(rows: Mapping[Any, Any], library: str) -> pl.DataFrame:
    if library == "datasets":
        raise DataFileError(
            f"a DatasetDict with the splits {', '.join(map(str, rows))}; expected one of them."
        )
    try:
        return pl.DataFrame(rows)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
        raise DataFileError(
            f"a dict that is no table ({type(error).__name__}); expected a list of dicts, or "
            "columns of one type and length."
        ) from None


def _pandas(rows: Any) -> pl.DataFrame | Iterator[SourceRow]:
    """Read a pandas frame without its index; NaN there means that a value is absent."""
    try:
        return pl.from_pandas(rows)
    except Exception:  # pyarrow raises many kinds; the cause is a column of several types
        records = rows.astype(object).where(rows.notna(), None).to_dict("records")
        return _records(records)


def _kind(rows: Any) -> str:
    return f"a {type(rows).__module__.partition('.')[0]} {type(rows).__name__}"

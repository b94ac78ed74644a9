"""The source's own columns next to the canonical ones, and joining tables with different ones."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from forvalue_dagster.data.plain_json import IMAGE_NAME, as_json

# Of a file with more keys than MOST_COLUMNS, only keys that one row in a hundred has get a column.
MOST_COLUMNS = 256
_RARE = 100
_EXACT_IN_A_FLOAT = 2**53
_TEXT = (pl.String, pl.Categorical, pl.Enum)
_PLAIN_TYPES: dict[type, type[pl.DataType]] = {
    str: pl.String,
    int: pl.Int64,
    float: pl.Float64,
    bool: pl.Boolean,
}


def beside(name: str, reserved: Collection[str]) -> str:
    """Return the name of a source's column; a reserved name gets `source.` in front."""
    return f"source.{name}" if _stripped(name) in reserved else name


def in_source(name: str, reserved: Collection[str]) -> str:
    """Return the name of a column in its source; the reverse of `beside`."""
    return name.removeprefix("source.") if _stripped(name) in reserved else name


def _stripped(name: str) -> str:
    return re.sub(r"^(source\.)+", "", name)


def scalar_columns(rows: Sequence[Mapping[str, Any]], reserved: Collection[str]) -> pl.DataFrame:
    """Make a column of every key whose values are of one plain type.

    JSON is not a table. Values that are nested or change their type from row to row stay in the
    verbatim JSON only; so do values that a column cannot hold (wide integers, half a surrogate
    pair), and rare keys if there are very many.
    """
    series = []
    for name in _frequent(rows):
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        wide = any(isinstance(v, int) and v.bit_length() > 63 for v in values)
        if kinds == {int, float} and not wide:
            kinds = {float}
            values = [None if value is None else float(value) for value in values]
        if wide or len(kinds) != 1 or not kinds <= _PLAIN_TYPES.keys():
            continue
        try:
            own = beside(name, reserved)
            series.append(pl.Series(own, values, dtype=_PLAIN_TYPES[kinds.pop()]))
        except UnicodeEncodeError:
            continue
    return pl.DataFrame(series)


def _frequent(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    counts = Counter(name for row in rows for name in row)
    if len(counts) <= MOST_COLUMNS:
        return counts
    often = {name for name, count in counts.most_common(MOST_COLUMNS) if count * _RARE >= len(rows)}
    return [name for name in counts if name in often]


def together(frames: Sequence[pl.DataFrame], reserved: Collection[str]) -> pl.DataFrame:
    """Join tables vertically, as `together_lazily`; `source` keeps each row's own form."""
    types = _common_types([frame.lazy() for frame in frames])
    kept = [
        frame.with_columns(source=pl.Series(list(source_lines(frame, reserved)), dtype=pl.String))
        if any(types[name] is None and dtype != pl.Null for name, dtype in frame.schema.items())
        else frame
        for frame in frames
    ]
    return _below_each_other([frame.lazy() for frame in kept], types).collect()


def together_lazily(frames: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
    """Join tables vertically.

    A column of several types becomes JSON text, unless one type holds every value as it is.
    """
    return _below_each_other(frames, _common_types(frames))


def _common_types(frames: Sequence[pl.LazyFrame]) -> dict[str, pl.DataType | None]:
    """Return column → a type that holds every value as it is, or None."""
    held: dict[str, dict[pl.DataType, list[pl.LazyFrame]]] = {}
    for frame in frames:
        for name, dtype in frame.collect_schema().items():
            held.setdefault(name, {})
            if dtype != pl.Null:
                held[name].setdefault(dtype, []).append(frame)
    return {name: _common_type(name, types) for name, types in held.items()}


def _common_type(name: str, types: Mapping[pl.DataType, list[pl.LazyFrame]]) -> pl.DataType | None:
    if len(types) <= 1:
        return next(iter(types), pl.Null())
    if all(dtype in _TEXT for dtype in types):
        return pl.String()
    if not all(dtype.is_integer() or dtype.is_float() for dtype in types):
        return None
    column = pl.col(name)
    bounds: list[int] = [
        int(bound)
        for dtype, frames in types.items()
        if dtype.is_integer()
        for frame in frames
        for bound in frame.select(column.min(), column.max().alias("max")).collect().row(0)
        if bound is not None
    ]
    if all(dtype.is_integer() for dtype in types):
        fits = all(-(2**63) <= bound < 2**63 for bound in bounds)
        return pl.Int64() if fits else None
    exact = all(abs(bound) <= _EXACT_IN_A_FLOAT for bound in bounds)
    return pl.Float64() if exact else None


def _below_each_other(
    frames: Sequence[pl.LazyFrame], types: Mapping[str, pl.DataType | None]
) -> pl.LazyFrame:
    fitted = []
    for frame in frames:
        changes = []
        for name, dtype in frame.collect_schema().items():
            target = types[name]
            if target is None and dtype != pl.Null:
                changes.append(pl.col(name).map_batches(_json_text, return_dtype=pl.String))
            elif target is not None and target != dtype:
                changes.append(pl.col(name).cast(target))
        fitted.append(frame.with_columns(changes))
    return pl.concat(fitted, how="diagonal_relaxed")


def _json_text(column: pl.Series) -> pl.Series:
    values = [None if value is None else as_json(value) for value in column.to_list()]
    return pl.Series(column.name, values, dtype=pl.String)


def source_lines(frame: pl.DataFrame, reserved: Collection[str]) -> Iterable[str]:
    """Yield each row as a line of JSON in its source's own form, its images as data URIs."""
    own = {name: in_source(name, reserved) for name in frame.columns if name not in reserved}
    for row in frame.iter_rows(named=True):
        line, images = row["source"], row["images"] or ()
        if line is None:
            values = {called: row[name] for name, called in own.items()}
            line = as_json(values, images)
        elif images and f'"{IMAGE_NAME}' in line:
            line = as_json(json.loads(line), images)
        yield line


def verbatim(values: Mapping[str, Any], images: Collection[bytes | None]) -> str | None:
    """Return a row as a line of JSON with its images by name, or None if JSON cannot hold it."""
    try:
        line = as_json(values, images, by_name=True)
        try:
            line.encode()
        except UnicodeEncodeError:
            # Half a surrogate pair can only be written by its number.
            line = json.dumps(json.loads(line))
    except (RecursionError, ValueError):
        return None
    return line

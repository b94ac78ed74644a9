"""A hash of a table's content."""

from __future__ import annotations

from hashlib import sha256

import polars as pl

_ROWS_AT_A_TIME = 10_000


def digest(frame: pl.DataFrame) -> str:
    """Hash a table's columns and values, in order; the same values give the same name anywhere.

    Args:
        frame: a table with any columns.
    """
    names = ",".join(f"{name}:{dtype}" for name, dtype in frame.schema.items())
    content = sha256(names.encode("utf-8", "surrogatepass"))
    for rows in frame.iter_slices(_ROWS_AT_A_TIME):
        content.update(_plain(rows).write_ndjson().encode("utf-8", "surrogatepass"))
    return content.hexdigest()[:32]


def _plain(rows: pl.DataFrame) -> pl.DataFrame:
    """Write as text the values that JSON cannot tell apart (NaN, null) or cannot hold (bytes)."""
    bytes_inside = [name for name, dtype in rows.schema.items() if "Binary" in str(dtype)]
    return rows.with_columns(
        pl.selectors.float().cast(pl.String),
        *(pl.Series(name, [repr(value) for value in rows[name]]) for name in bytes_inside),
    )

"""Stored rows of feature tables: which can be reused, and at which places of a frame."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

# A row skipped for one of these reasons may be scored next time.
_TRY_AGAIN = ("out_of_memory", "non_finite")


def lines_to_reuse(mark: str) -> pl.Expr:
    """Return which rows of a feature table can be reused under a fingerprint."""
    passing = pl.col("reason").is_in(_TRY_AGAIN).fill_null(False)
    return (pl.col("fingerprint") == mark) & pl.col("sample_id").is_not_null() & ~passing


def placed(lines: pl.DataFrame, places: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Put rows of a feature table at every place that has their sample id.

    Args:
        lines: feature rows, no sample id twice; a row without one keeps its place.
        places: shard, row and sample_id of every row of a frame.

    Yields:
        Tables of at most as many rows as `lines`, or an empty one if there are none.
    """
    named = lines.select("sample_id").with_row_index("line").drop_nulls("sample_id")
    targets = places.join(named, on="sample_id", how="inner", maintain_order="left")
    own = lines.filter(pl.col("sample_id").is_not_null()).select("shard", "row", "sample_id")
    if targets.drop("line").equals(own):
        yield lines
        return
    for first in range(0, len(targets), len(lines)):
        here = targets.slice(first, len(lines))
        yield lines[here["line"]].with_columns(here["shard"], here["row"])
    unnamed = lines.filter(pl.col("sample_id").is_null())
    if len(unnamed):
        yield unnamed

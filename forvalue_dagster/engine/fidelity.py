"""The accuracy of values from features, measured on a sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import sha256

import polars as pl


@dataclass(frozen=True)
class Fidelity:
    """Values from features compared with exact ones.

    Attributes:
        rows: number of rows compared.
        spearman: rank correlation.
        top_overlap: share of the exact top tenth that is the top tenth from features, too.
        largest_error: largest error, in units of the row's gradient norm.
    """

    rows: int
    spearman: float
    top_overlap: float
    largest_error: float


def seeded_sample(scored: pl.DataFrame, rows: int, seed: int = 0) -> pl.DataFrame:
    """Return up to `rows` rows, the same whatever the order of the table."""
    order = [
        sha256(f"{seed} {sample_id}".encode()).hexdigest() for sample_id in scored["sample_id"]
    ]
    ordered = scored.with_columns(pl.Series("order", order, dtype=pl.String))
    return ordered.sort("order", "shard", "row").head(rows).drop("order")


def measure_fidelity(features: pl.DataFrame, exact: pl.DataFrame) -> Fidelity:
    """Compare two tables of scores over the rows that both scored, at least two.

    Args:
        features: values from features.
        exact: exact values, in any order.
    """
    both = features.join(
        exact.filter(pl.col("status") == "scored"), on=["shard", "row"], suffix="_exact"
    )
    count = max(1, round(len(both) / 10))
    top = [
        set(both.sort(name, descending=True).head(count).select("shard", "row").rows())
        for name in ("value", "value_exact")
    ]
    error = (both["value"] - both["value_exact"]).abs() / both["gradient_norm_exact"]
    largest = float(error.fill_nan(0.0).max() or 0.0)  # type: ignore[arg-type]
    spearman = both.select(pl.corr("value", "value_exact", method="spearman")).item()
    if spearman is None or math.isnan(spearman):
        # Values that are all the same have no ranks: they agree only if both sides do.
        spearman = 1.0 if largest == 0 else 0.0
    return Fidelity(
        rows=len(both),
        spearman=spearman,
        top_overlap=len(top[0] & top[1]) / count,
        largest_error=largest,
    )

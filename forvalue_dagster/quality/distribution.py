"""The distribution of values as a small histogram for metadata, and its drift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

_BINS = 10
# An empty bin counts as this share of the rows, so that the index stays finite.
_FLOOR = 1e-4


@dataclass(frozen=True)
class ValueHistogram:
    """Deciles of values, and the share of rows between them.

    Attributes:
        edges: inner bounds, ascending.
        shares: one more than the edges; they sum to one.
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, values: pl.Series) -> ValueHistogram | None:
        """Return the histogram of some values; None if there are none."""
        numbers = values.drop_nulls().to_numpy()
        if not len(numbers):
            return None
        inner = np.quantile(numbers, np.arange(1, _BINS) / _BINS)
        # Six digits, because people see them, too.
        edges = tuple(dict.fromkeys(float(f"{edge:.6g}") for edge in inner))
        return cls(edges, tuple(_shares(numbers, edges).tolist()))

    def to_json(self) -> dict[str, Any]:
        """Return plain values, shares to four digits; `from_json` is the inverse."""
        return {"edges": self.edges, "shares": [round(share, 4) for share in self.shares]}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> ValueHistogram:
        """Rebuild a stored histogram."""
        return cls(tuple(plain["edges"]), tuple(plain["shares"]))


def stability_index(before: ValueHistogram, values: pl.Series) -> float:
    """Return the population stability index: Σ (p − q) ln(p / q) over the earlier deciles."""
    p = np.clip(_shares(values.drop_nulls().to_numpy(), before.edges), _FLOOR, None)
    q = np.clip(np.array(before.shares), _FLOOR, None)
    return float(((p - q) * np.log(p / q)).sum())


def _shares(numbers: Any, edges: tuple[float, ...]) -> Any:
    counts = np.bincount(np.searchsorted(edges, numbers, "right"), minlength=len(edges) + 1)
    return counts / len(numbers)

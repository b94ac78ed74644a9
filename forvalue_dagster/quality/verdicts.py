"""The verdict on a shard, derived from its stored scores and nothing else.

Interim noise estimate: the share of rows whose mean response NLL exceeds the 95th percentile of
the trusted validation rows, corrected for the 5 % of clean rows that exceed it by definition.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

# The quantile of the validation rows' NLL above which a row counts as atypical.
ATYPICAL_QUANTILE = 0.95
ATYPICAL_COLUMN = "atypical_nll"


@dataclass(frozen=True)
class ShardVerdict:
    """Whether a shard may be trained on, and the figure it rests on.

    Attributes:
        shard: the partition.
        passed: whether `noise_share` is within `max_noise_share`.
        noise_share: estimated share of noisy rows, 0 to 1.
        max_noise_share: the threshold.
        scored: rows that the estimate rests on.
    """

    shard: str
    passed: bool
    noise_share: float
    max_noise_share: float
    scored: int

    @property
    def summary(self) -> str:
        """One sentence for a person."""
        relation = "within" if self.passed else "above"
        return (
            f"shard {self.shard!r}: estimated noise {self.noise_share:.1%} of {self.scored} scored "
            f"rows, {relation} the limit of {self.max_noise_share:.1%}"
        )


def judge_shard(shard: str, scores: pl.DataFrame, max_noise_share: float) -> ShardVerdict:
    """Judge a shard by its value scores; a shard without a scored row does not pass.

    Args:
        shard: the partition.
        scores: the table of `value_scores`, with `status` and `atypical_nll`.
        max_noise_share: the threshold, 0 to 1.
    """
    scored = scores.filter(pl.col("status") == "scored")
    if scored.is_empty():
        return ShardVerdict(shard, False, 1.0, max_noise_share, 0)
    expected = 1 - ATYPICAL_QUANTILE
    observed = float(scored[ATYPICAL_COLUMN].mean())  # type: ignore[arg-type]
    noise = max(0.0, (observed - expected) / (1 - expected))
    return ShardVerdict(shard, noise <= max_noise_share, noise, max_noise_share, len(scored))


def mark_atypical(scores: pl.DataFrame, validation_nll: pl.Series) -> pl.DataFrame:
    """Add `atypical_nll`: whether a scored row's NLL exceeds that of 95 % of the trusted rows.

    Args:
        scores: with `nll`, null where a row was skipped.
        validation_nll: mean response NLL of each validation row.
    """
    threshold = validation_nll.quantile(ATYPICAL_QUANTILE, interpolation="linear")
    return scores.with_columns((pl.col("nll") > threshold).alias(ATYPICAL_COLUMN))

"""Selection: which scored rows are kept, and why each of the others is not."""

from __future__ import annotations

import math

import polars as pl

from forvalue_dagster.engine.columns import group_columns
from forvalue_dagster.options.selection import Selection

RANKED_BELOW = "ranked below the limit"
_TIES = ["sample_id", "shard", "row"]


def select_rows(scores: pl.DataFrame, selection: Selection) -> pl.DataFrame:
    """Decide for every row whether it is kept.

    Args:
        scores: value scores of any number of shards, one row each.
        selection: the policy.

    Returns:
        `scores` in the same order with `drop_reason`, null for a kept row.

    Raises:
        ValueError: if the selection uses noise probabilities and some scored row has none.
    """
    scored = pl.col("status") == "scored"
    # (condition, reason); the first condition that holds gives the row's reason.
    rules = [(~scored, pl.concat_str(pl.lit("skipped: "), "reason"))]
    if selection.drop_duplicates:
        # Rows with the same hash are the same conversation: the first one is kept.
        repeated = pl.int_range(pl.len()).over("sample_id", "status", order_by=["shard", "row"]) > 0
        rules.append((repeated, pl.lit("duplicate")))
    if selection.min_value is not None:
        rules.append((pl.col("value") < selection.min_value, pl.lit("below min_value")))
    if selection.max_noise_probability is not None:
        if scores.filter(scored)["noise_probability"].null_count():
            raise ValueError(
                f"max_noise_probability is {selection.max_noise_probability}, but some scored rows "
                "have no noise probability: no noise probe has been fitted. Set it to None."
            )
        noisy = pl.col("noise_probability") > selection.max_noise_probability
        rules.append((noisy, pl.lit("above max_noise_probability")))
    reasons = [pl.when(condition).then(reason) for condition, reason in rules]
    decided = scores.with_columns(drop_reason=pl.coalesce(reasons))
    return _limit(decided, selection, scored_rows=scores.filter(scored).height)


def rank_score(scores: pl.DataFrame, selection: Selection) -> pl.Expr:
    """Return the expression that ranks the rows, larger first."""
    groups = group_columns(scores.columns)
    if selection.across_groups == "pooled" or not groups:
        return pl.col(selection.by)
    per_token = selection.by == "value_per_token"
    values = [pl.col(name) / (pl.col("response_tokens") if per_token else 1) for name in groups]
    if selection.across_groups == "mean":
        return pl.mean_horizontal(values)
    if selection.across_groups == "maximum":
        return pl.max_horizontal(values)
    # A row's turn is its best rank in any group.
    turns = [
        pl.struct(-value, *_TIES).rank("ordinal").cast(pl.Int64).alias(name)
        for name, value in zip(groups, values, strict=True)
    ]
    return -pl.min_horizontal(turns)


def _limit(decided: pl.DataFrame, selection: Selection, scored_rows: int) -> pl.DataFrame:
    """Drop the rows that rank below the limits."""
    # The hash breaks ties, so that the order of rows and shards does not matter.
    ranked = (
        decided.with_row_index("place")
        .filter(pl.col("drop_reason").is_null())
        .with_columns(rank_score(decided, selection).alias("rank score"))
        .sort(["rank score", *_TIES], descending=[True, False, False, False])
    )
    count = ranked.height
    if selection.keep_fraction is not None:
        count = min(count, math.ceil(selection.keep_fraction * scored_rows))
    if selection.keep_count is not None:
        count = min(count, selection.keep_count)
    if selection.token_budget is not None:
        fitting = (ranked["response_tokens"].cum_sum() <= selection.token_budget).sum()
        count = min(count, int(fitting))
    beyond = ranked["place"][count:].implode()
    return decided.with_columns(
        drop_reason=pl.when(pl.int_range(pl.len()).is_in(beyond))
        .then(pl.lit(RANKED_BELOW))
        .otherwise("drop_reason")
    )

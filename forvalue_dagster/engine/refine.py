"""Refinement: computes the values of rows near the selection's boundary again, exactly.

The error of a value from features is a small share of the row's gradient norm. A row whose value
is further from the boundary than that error is on the right side already. Only the others need
another forward pass; then the same rows are kept as with exact values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from forvalue_dagster.engine.selection import RANKED_BELOW, rank_score, select_rows
from forvalue_dagster.options.selection import Refine, Selection

# Scored rows → the same rows, in the same order, with their exact values.
Rescore = Callable[[pl.DataFrame], pl.DataFrame]


@dataclass(frozen=True)
class Refinement:
    """The result of a refinement.

    Attributes:
        rows: number of scored rows.
        refined: number of them that were computed exactly.
        resolved: whether every row within the band was computed exactly.
        band: width of the band from the errors seen, in units of the gradient norm.
    """

    rows: int
    refined: int
    resolved: bool
    band: float

    @property
    def boundary(self) -> str:
        """Say in a word whether the same rows are kept as with exact values."""
        return "resolved" if self.resolved else "unresolved"


def refine_scores(
    scores: pl.DataFrame, selection: Selection, rescore: Rescore, policy: Refine
) -> tuple[pl.DataFrame, Refinement]:
    """Compute rows near the boundary exactly until no other row could change sides.

    The rows nearest to the boundary come first. The largest error seen so far, times
    `policy.safety`, is the band. Rows inside it follow, until there is none left or
    `policy.max_share` of the scored rows is used up.

    Args:
        scores: value scores of every row that takes part in the selection.
        selection: the policy that decides.
        rescore: function that computes exact values.
        policy: the refinement policy.

    Returns:
        The scores, with value_source "refined" for refined rows, and the `Refinement`.

    Raises:
        ValueError: if the selection ranks rows by turns ("balanced"), where values have no
            boundary.
    """
    if selection.across_groups == "balanced":
        raise ValueError(
            "across_groups is 'balanced': rows are taken by turns, so no boundary in their values "
            "can be refined. Use scoring 'exact', or rank by 'pooled', 'mean' or 'maximum'."
        )
    rows = scores.filter(pl.col("status") == "scored").height
    spend = int(policy.max_share * rows)
    refined, error, resolved = 0, 0.0, False
    while not resolved and refined < spend:
        near = _distances(scores, selection)
        if refined:
            near = near.filter(pl.col("distance") <= policy.safety * error)
        else:
            near = near.head(policy.first_rows)
        chosen = near.head(spend - refined)
        if len(chosen):
            exact = rescore(chosen.select(scores.columns))
            error = max(error, _largest_error(chosen, exact, selection))
            refined += len(chosen)
            scores = _replaced(scores, exact)
        resolved = near.is_empty()
    if not resolved:
        near = _distances(scores, selection)
        resolved = near.filter(pl.col("distance") <= policy.safety * error).is_empty()
    return scores, Refinement(rows, refined, resolved, policy.safety * error)


def _distances(scores: pl.DataFrame, selection: Selection) -> pl.DataFrame:
    """Return the rows valued from features with their distance to a boundary, in gradient norms."""
    decided = select_rows(scores, selection)
    lines = decided.with_columns(rank_score(decided, selection).alias("score"))
    ranked = lines.filter(pl.col("drop_reason").is_null() | (pl.col("drop_reason") == RANKED_BELOW))
    kept = ranked.filter(pl.col("drop_reason").is_null())["score"].min()
    beyond = ranked.filter(pl.col("drop_reason").is_not_null())["score"].max()
    nearest = []
    if kept is not None and beyond is not None:
        boundary = (kept + beyond) / 2  # type: ignore[operator]
        nearest.append((pl.col("score") - boundary).abs() / _unit(selection.by))
    if selection.min_value is not None:
        nearest.append((pl.col("value") - selection.min_value).abs() / _unit("value"))
    if not nearest:
        return lines.clear().with_columns(distance=pl.lit(0.0))
    return (
        lines.filter(pl.col("value_source") == "features")
        .filter(~pl.col("drop_reason").eq("duplicate").fill_null(False))
        .with_columns(distance=pl.min_horizontal(nearest))
        .sort("distance", "sample_id", "shard", "row")
    )


def _largest_error(chosen: pl.DataFrame, exact: pl.DataFrame, selection: Selection) -> float:
    after = exact.select(rank_score(exact, selection).alias("score"), "value")
    errors = [(chosen["score"] - after["score"]).abs() / chosen.select(_unit(selection.by))[:, 0]]
    if selection.min_value is not None:
        errors.append((chosen["value"] - after["value"]).abs() / chosen["gradient_norm"])
    # A row without gradient has the value 0 and no error; its ratio is 0/0.
    return max(float(column.fill_nan(0.0).max() or 0.0) for column in errors)  # type: ignore[arg-type]


def _unit(by: str) -> pl.Expr:
    """Return the unit of a score's error."""
    if by == "alignment":
        return pl.lit(1.0)
    norm = pl.col("gradient_norm")
    return norm / pl.col("response_tokens") if by == "value_per_token" else norm


def _replaced(scores: pl.DataFrame, exact: pl.DataFrame) -> pl.DataFrame:
    refined = exact.with_columns(value_source=pl.lit("refined"))
    return scores.update(refined, on=["shard", "row"], maintain_order="left")

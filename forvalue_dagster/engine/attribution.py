"""Pairwise values: which training rows help or hurt which validation rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import polars as pl
import torch
from torch import Tensor

from forvalue_dagster.engine.feature_table import PLAIN_COLUMNS, read_features
from forvalue_dagster.engine.fingerprint import refuse_mismatch
from forvalue_dagster.engine.forward import Passed, PassedRows, Unscored, forward_pass
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.valuation.feature_value import feature_pairs
from forvalue_dagster.valuation.pairwise import pairwise_values
from forvalue_dagster.valuation.positions import ResponsePositions
from forvalue_dagster.valuation.preconditioner import Preconditioner
from forvalue_dagster.valuation.profile import ValidationProfile

# Hidden states of this many training positions are collected before their pairs are computed:
# the validation side is swept once for each such collection.
GATHERED_POSITIONS = 16_384

_logger = logging.getLogger(__name__)


def pairwise(
    loaded: LoadedModel,
    training: pl.DataFrame,
    validation: pl.DataFrame,
    options: ValuationOptions,
) -> Tensor:
    """Return the exact value of every training row for every validation row [N, M], float64.

    The last hidden states of all validation positions are in memory, and those of
    `GATHERED_POSITIONS` training positions. A row that cannot be scored is NaN throughout.
    """
    passes = forward_pass(loaded, validation, options, _positions)
    gathered = list(_gather(passes, "validation", None))
    if not gathered:
        raise ValueError("No validation row can be scored; see the log for the reasons.")
    ((validation_rows, against),) = gathered
    hidden = against.hidden.double()
    metric = _preconditioner(options).metric(hidden.mean(dim=0), hidden.T @ hidden / len(hidden))
    metric = metric.to(against.states)
    pairs = torch.full((len(training), len(validation)), torch.nan, dtype=torch.float64)
    passes = forward_pass(loaded, training, options, _positions)
    for rows, positions in _gather(passes, "training", GATHERED_POSITIONS):
        values = pairwise_values(loaded.unembedding, positions, against, metric)
        pairs[torch.tensor(rows)[:, None], torch.tensor(validation_rows)] = values
    return pairs


def pairs_from_features(
    features: pl.LazyFrame, profile: ValidationProfile, options: ValuationOptions
) -> Iterator[tuple[pl.DataFrame, Tensor]]:
    """Yield (scored rows of a feature table, their pairs [n, M] with `profile.rows`).

    Raises:
        FingerprintMismatchError: if features and profile differ in model or options.
        ValueError: if the profile keeps no features of its rows.
    """
    if profile.features is None:
        raise ValueError("The profile keeps no token features of its rows, so there are no pairs.")
    metric = _preconditioner(options).metric(profile.hidden_mean, profile.hidden_second_moment)
    metric = metric.to(torch.empty(0, device=profile.hidden_mean.device))
    rows = features.select(pl.len()).collect().item()
    for first in range(0, rows, options.read_rows):
        window = features.slice(first, options.read_rows).collect()
        window = window.filter(pl.col("status") == "scored")
        if len(window):
            for mark in window["fingerprint"].unique():
                refuse_mismatch(mark, profile.fingerprint)
            pairs = feature_pairs(read_features(window), profile.features, metric)
            yield window.select(PLAIN_COLUMNS), pairs


def attribute(
    pairs: Iterable[tuple[pl.DataFrame, Tensor]],
    validation: pl.DataFrame,
    top: int,
    per: Literal["validation", "training"],
) -> pl.DataFrame:
    """Name the strongest pairs of each row of one side.

    Args:
        pairs: (places of training rows: shard, row, sample_id; their values [n, M]).
        validation: shard, row and sample_id of the M validation rows.
        top: number of pairs to name for each row, and for each effect.
        per: "validation" names, for each validation row, the training rows that help and hurt
            it most; "training" the reverse.

    Returns:
        The columns of `engine.columns.ATTRIBUTION_COLUMNS`.
    """
    identity = validation.select(
        validation_row=pl.col("row"), validation_sample_id=pl.col("sample_id")
    )
    over = ["validation_row"] if per == "validation" else ["shard", "row"]
    best: pl.DataFrame | None = None
    for places, values in pairs:
        candidates = pl.concat(
            _strongest(places, identity, values, top, per, largest) for largest in (True, False)
        )
        if best is not None:
            candidates = pl.concat([best, candidates])
        strength = pl.when(pl.col("effect") == "helps").then(-pl.col("value")).otherwise("value")
        order = [strength, "sample_id", "shard", "row", "validation_row"]
        rank = pl.int_range(1, pl.len() + 1).over([*over, "effect"], order_by=order)
        best = candidates.with_columns(rank=rank).filter(pl.col("rank") <= top)
    if best is None:
        raise ValueError("No training row is scored, so no pair has a value.")
    return best.sort([*over, "effect", "rank"])


def refine_attribution(
    attributed: pl.DataFrame,
    exact: Callable[[pl.DataFrame], Tensor],
    validation: pl.DataFrame,
    top: int,
) -> pl.DataFrame:
    """Compute the pairs of candidates exactly and rank them again, for each validation row.

    Args:
        attributed: result of `attribute(per="validation")`, with more candidates than are wanted.
        exact: maps places (shard, row, sample_id) to exact pairs [n, M].
        validation: shard, row and sample_id of the M validation rows.
        top: number of pairs to keep for each row and effect.
    """
    places = attributed.select("shard", "row", "sample_id").unique(maintain_order=True)
    pairs = exact(places)
    candidates = attributed.select("validation_row", "shard", "row").unique()
    ranked = attribute([(places, pairs)], validation, len(places), "validation")
    chosen = ranked.join(candidates, on=["validation_row", "shard", "row"], how="semi")
    rank = pl.int_range(1, pl.len() + 1).over(["validation_row", "effect"], order_by="rank")
    chosen = chosen.with_columns(rank=rank).filter(pl.col("rank") <= top)
    return chosen.sort("validation_row", "effect", "rank")


def _strongest(
    places: pl.DataFrame,
    validation: pl.DataFrame,
    values: Tensor,
    top: int,
    per: Literal["validation", "training"],
    largest: bool,
) -> pl.DataFrame:
    dimension = 0 if per == "validation" else 1
    count = min(top, values.shape[dimension])
    chosen, index = values.topk(count, dim=dimension, largest=largest)
    other = torch.arange(values.shape[1 - dimension])
    other = (other[None, :] if dimension == 0 else other[:, None]).expand_as(index)
    training, against = (index, other) if dimension == 0 else (other, index)
    return pl.concat(
        [
            validation[against.flatten().numpy()],
            pl.DataFrame({"effect": ["helps" if largest else "hurts"] * index.numel()}),
            places.select("shard", "row", "sample_id")[training.flatten().numpy()],
            pl.DataFrame({"value": chosen.flatten().numpy()}),
        ],
        how="horizontal",
    ).select(
        "validation_row",
        "validation_sample_id",
        "effect",
        pl.lit(0, pl.Int64).alias("rank"),
        "shard",
        "row",
        "sample_id",
        "value",
    )


def _preconditioner(options: ValuationOptions) -> Preconditioner:
    return Preconditioner(options.preconditioner, options.damping, options.centre)


def _positions(passed: Passed) -> ResponsePositions:
    return passed.positions


def _gather(
    passes: Iterable[PassedRows[ResponsePositions] | Unscored], side: str, limit: int | None
) -> Iterator[tuple[list[int], ResponsePositions]]:
    """Join batches until `limit` positions are reached; log the rows that are left out."""
    rows: list[int] = []
    parts: list[ResponsePositions] = []
    count = 0
    for passed in passes:
        if isinstance(passed, Unscored):
            _logger.warning("%s row %d is not scored: %s", side, passed.row, passed.reason)
            continue
        if limit is not None and parts and count + sum(passed.lengths) > limit:
            yield rows, ResponsePositions.concatenate(parts)
            rows, parts, count = [], [], 0
        rows += passed.rows
        parts.append(passed.result)
        count += sum(passed.lengths)
    if parts:
        yield rows, ResponsePositions.concatenate(parts)

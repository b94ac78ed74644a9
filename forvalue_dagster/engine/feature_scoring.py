"""Values from a feature table: a product for every row, and no model."""

from __future__ import annotations

from typing import Any

import polars as pl

from forvalue_dagster.engine.columns import IDENTITY, OUTCOME
from forvalue_dagster.engine.feature_table import read_features, read_prompts
from forvalue_dagster.engine.fingerprint import refuse_strangers
from forvalue_dagster.engine.noise import NOISE_COLUMNS, judge
from forvalue_dagster.engine.options import ValuationOptions
from forvalue_dagster.engine.outcomes import Progress, value_columns, value_records
from forvalue_dagster.engine.scoring import direction_of, noise_direction, with_source
from forvalue_dagster.valuation.columns import FORWARD_STATISTICS
from forvalue_dagster.valuation.feature_value import feature_values
from forvalue_dagster.valuation.profile import ValidationProfile, ValueDirection


def score_features(
    features: pl.LazyFrame,
    profile: ValidationProfile,
    options: ValuationOptions,
    progress: Progress | None = None,
    *,
    overwrite: bool = False,
) -> pl.DataFrame:
    """Value every row of a feature table against a validation profile.

    The table is read in windows of `options.window_rows`: memory does not grow with its rows.

    Args:
        features: a feature table, of any number of shards.
        profile: of the same model and options, on the CPU or a GPU.
        options: preconditioner and window.
        progress: told of each window.
        overwrite: spend the profile, which halves the memory that its groups take.

    Returns:
        The columns of `score_rows`, one line for each line of the table, in order, with
        value_source "features".

    Raises:
        FingerprintMismatchError: if features and profile were not made alike.
    """
    identity = profile.identity
    probe_direction = noise_direction(profile, options)
    direction = direction_of(profile, options, overwrite=overwrite)
    scores, tokens = [], 0
    rows = features.select(pl.len()).collect().item()
    for first in range(0, max(rows, 1), options.window_rows):
        window = features.slice(first, options.window_rows).collect()
        for mark in window["fingerprint"].unique():
            refuse_strangers(mark, profile.fingerprint)
        scores.append(_score_window(window, profile, direction, probe_direction))
        tokens += int(window["response_tokens"].sum())
        if progress is not None:
            progress(first + len(window), tokens)
    return with_source(pl.concat(scores), "features", identity)


def _score_window(
    window: pl.DataFrame,
    profile: ValidationProfile,
    direction: ValueDirection,
    probe_direction: ValueDirection | None,
) -> pl.DataFrame:
    scored = window.filter(pl.col("status") == "scored")
    columns = value_columns(direction)
    records: list[dict[str, float]] = []
    judged: dict[str, Any] = {}
    if len(scored):
        features = read_features(scored).to(direction.gradients.device)
        values = feature_values(features, direction)
        records = value_records(values, features.lengths, direction)
        probed = values if probe_direction is None else feature_values(features, probe_direction)
        judged = judge(
            profile,
            scored.select(*FORWARD_STATISTICS).to_numpy(),
            probed.alignment.numpy(),
            read_prompts(scored),
        )
    values_of = scored.select("shard", "row").hstack(pl.DataFrame(records, schema=columns))
    values_of = values_of.with_columns(
        pl.Series(name, judged.get(name) or [None] * len(scored), dtype)
        for name, dtype in NOISE_COLUMNS.items()
    )
    table = window.join(values_of, on=["shard", "row"], how="left", maintain_order="left")
    return table.select(*IDENTITY, *columns, *FORWARD_STATISTICS, *NOISE_COLUMNS, *OUTCOME)

"""Values from a feature table, without the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from forvalue_dagster.engine.columns import IDENTITY, OUTCOME
from forvalue_dagster.engine.feature_table import read_features, read_prompts
from forvalue_dagster.engine.fingerprint import refuse_mismatch
from forvalue_dagster.engine.noise import NOISE_COLUMNS, judge
from forvalue_dagster.engine.outcomes import Progress, value_columns, value_records
from forvalue_dagster.engine.scoring import direction_of, noise_direction, with_source
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.valuation.columns import FORWARD_STATISTICS
from forvalue_dagster.valuation.feature_value import feature_values
from forvalue_dagster.valuation.profile import ValidationProfile, ValueDirection


def score_features(
    features: pl.LazyFrame,
    profile: ValidationProfile,
    options: ValuationOptions,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Value every row of one feature table; see `FeatureScoring.score`."""
    return FeatureScoring.of(profile, options).score(features, progress)


@dataclass(frozen=True)
class FeatureScoring:
    """Values feature tables against one validation profile, whose direction is computed once.

    Attributes:
        profile: profile of the same model and options as the features, on the CPU or a GPU.
        identity: identity of the profile.
        options: preconditioner and window.
        direction: the direction of the values.
        probe_direction: the direction of the noise probe's alignments; None if it is the same.
    """

    profile: ValidationProfile
    identity: str
    options: ValuationOptions
    direction: ValueDirection
    probe_direction: ValueDirection | None

    @classmethod
    def of(
        cls, profile: ValidationProfile, options: ValuationOptions, *, overwrite: bool = False
    ) -> FeatureScoring:
        """Prepare to score against a profile.

        Args:
            profile: the profile.
            options: preconditioner and window.
            overwrite: write over the profile's gradients, which halves the memory they take.
        """
        identity = profile.identity
        probe_direction = noise_direction(profile, options)
        direction = direction_of(profile, options, overwrite=overwrite)
        return cls(profile, identity, options, direction, probe_direction)

    def score(self, features: pl.LazyFrame, progress: Progress | None = None) -> pl.DataFrame:
        """Value every row of a feature table.

        The table is read in windows of `options.read_rows`: memory does not grow with its rows.

        Args:
            features: a feature table, of any number of shards.
            progress: callback after each window.

        Returns:
            The columns of `score_rows`, one row for each row of the table, in order, with
            value_source "features".

        Raises:
            FingerprintMismatchError: if features and profile differ in model or options.
        """
        scores, tokens = [], 0
        size = self.options.read_rows
        rows = features.select(pl.len()).collect().item()
        for first in range(0, max(rows, 1), size):
            window = features.slice(first, size).collect()
            for mark in window["fingerprint"].unique():
                refuse_mismatch(mark, self.profile.fingerprint)
            scores.append(_score_window(window, self.profile, self.direction, self.probe_direction))
            tokens += int(window["response_tokens"].sum())
            if progress is not None:
                progress(first + len(window), tokens)
        return with_source(pl.concat(scores), "features", self.identity)


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

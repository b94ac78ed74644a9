"""The passes with a model and a validation set: the profile, and exact values."""

from __future__ import annotations

import polars as pl

from forvalue_dagster.engine.columns import COLUMN_DESCRIPTIONS
from forvalue_dagster.engine.fingerprint import fingerprint
from forvalue_dagster.engine.forward import Unscored, forward_pass
from forvalue_dagster.engine.options import ValuationOptions
from forvalue_dagster.engine.outcomes import (
    Outcomes,
    Progress,
    refuse_broken_outcome,
    value_columns,
    value_records,
)
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.valuation.columns import FORWARD_STATISTICS
from forvalue_dagster.valuation.preconditioner import Preconditioner
from forvalue_dagster.valuation.profile import ProfileBuilder, ValidationProfile, ValueDirection
from forvalue_dagster.valuation.statistics import summarise_rows
from forvalue_dagster.valuation.value import exact_values

DEFAULT_GROUP = "all"


def build_profile(
    loaded: LoadedModel,
    frame: pl.DataFrame,
    options: ValuationOptions,
    progress: Progress | None = None,
) -> tuple[ValidationProfile, pl.DataFrame]:
    """Pass the validation rows through the model once.

    Args:
        loaded: the model.
        frame: canonical rows; `group` names each row's validation group, all or none.
        options: how rows are valued.
        progress: told of each batch.

    Returns:
        The profile, and (sample_id, shard, row, group, status, reason, …) of every row.

    Raises:
        ValueError: if only some rows name a group, a group's column is taken, or a group ends up
            without a usable row.
    """
    ungrouped = frame["group"].null_count()
    if 0 < ungrouped < len(frame):
        raise ValueError(
            f"{ungrouped} of {len(frame)} validation rows name no group; expected all or none."
        )
    frame = frame.with_columns(pl.col("group").fill_null(DEFAULT_GROUP))
    groups = frame["group"].to_list()
    if taken := sorted({f"value_{group}" for group in groups} & COLUMN_DESCRIPTIONS.keys()):
        raise ValueError(
            f"A validation group would need the column {taken[0]!r}, which means something else; "
            "rename the group."
        )
    builder = ProfileBuilder(
        loaded.unembedding,
        sorted(set(groups)),
        keep=options.features,
        fingerprint=fingerprint(loaded, options),
    )
    outcome = Outcomes(frame, progress)
    for passed in forward_pass(loaded, frame, options):
        if isinstance(passed, Unscored):
            outcome.skip(passed)
        else:
            own = [groups[row] for row in passed.rows]
            usable = builder.add(passed.positions, own, passed.rows)
            outcome.add(passed, [{} if ok else None for ok in usable])
    table = refuse_broken_outcome(outcome.frame({}))
    return builder.build(), table.with_columns(frame["group"])


def score_rows(
    loaded: LoadedModel,
    frame: pl.DataFrame,
    profile: ValidationProfile,
    options: ValuationOptions,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Compute the exact value of every row against a validation profile.

    Returns:
        One row for each input row, in order: identity, `value` and `value_<group>`, `alignment`,
        the forward statistics, `status` scored or skipped with the `reason`.
    """
    direction = direction_of(profile, options)
    outcome = Outcomes(frame, progress)
    for passed in forward_pass(loaded, frame, options):
        if isinstance(passed, Unscored):
            outcome.skip(passed)
            continue
        values = exact_values(loaded.unembedding, passed.positions, direction)
        records = value_records(values.rows, passed.positions.lengths, direction)
        statistics = summarise_rows(values.tokens, passed.positions)
        outcome.add(passed, [a | b for a, b in zip(records, statistics, strict=True)])
    columns = value_columns(direction) | dict.fromkeys(FORWARD_STATISTICS, pl.Float64())
    return with_source(refuse_broken_outcome(outcome.frame(columns)), "exact")


def direction_of(
    profile: ValidationProfile, options: ValuationOptions, *, overwrite: bool = False
) -> ValueDirection:
    """Return the direction that the options ask for; `overwrite` spends the profile for it."""
    preconditioner = Preconditioner(options.preconditioner, options.damping, options.centre)
    return profile.direction(preconditioner, overwrite=overwrite)


def with_source(scores: pl.DataFrame, source: str) -> pl.DataFrame:
    """Complete a table of scores by how its values were computed."""
    return scores.with_columns(
        noise_probability=pl.lit(None, pl.Float64),
        value_source=pl.when(pl.col("status") == "scored").then(pl.lit(source)),
    )

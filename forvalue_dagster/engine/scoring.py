"""What is made of a forward pass: a validation profile, forward statistics, exact values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from forvalue_dagster.engine.columns import COLUMN_DESCRIPTIONS, IDENTITY, OUTCOME
from forvalue_dagster.engine.forward import PassedRows, Unscored, forward_pass
from forvalue_dagster.engine.options import ValuationOptions
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.valuation.columns import FORWARD_STATISTICS
from forvalue_dagster.valuation.preconditioner import Preconditioner
from forvalue_dagster.valuation.prediction_error import PredictionErrors, workspace_positions
from forvalue_dagster.valuation.profile import ProfileBuilder, ValidationProfile
from forvalue_dagster.valuation.statistics import summarise_rows
from forvalue_dagster.valuation.value import exact_values

# Called after each batch with (rows done, response tokens done).
Progress = Callable[[int, int], None]

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
    builder = ProfileBuilder(loaded.unembedding, sorted(set(groups)))
    outcome = _Outcomes(frame, progress)
    for passed in forward_pass(loaded, frame, options):
        if isinstance(passed, Unscored):
            outcome.skip(passed)
        else:
            usable = builder.add(passed.positions, [groups[row] for row in passed.rows])
            outcome.add(passed, [{} if ok else None for ok in usable])
    return builder.build(), outcome.frame({}).with_columns(frame["group"])


def forward_statistics(
    loaded: LoadedModel,
    frame: pl.DataFrame,
    options: ValuationOptions,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Compute the statistics of `FORWARD_STATISTICS` for every row; needs no validation set.

    Returns:
        One row for each input row, in order, scored or skipped with the reason.
    """
    outcome = _Outcomes(frame, progress)
    for passed in forward_pass(loaded, frame, options):
        if isinstance(passed, Unscored):
            outcome.skip(passed)
            continue
        limit = workspace_positions(loaded.unembedding, passed.positions.hidden)
        results: list[dict[str, float]] = []
        for _, chunk in passed.positions.chunks(limit):
            tokens = PredictionErrors(loaded.unembedding, chunk).tokens
            results += summarise_rows(tokens, chunk)
        outcome.add(passed, results)
    return outcome.frame(dict.fromkeys(FORWARD_STATISTICS, pl.Float64()))


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
    direction = profile.direction(Preconditioner(options.preconditioner, options.damping))
    # With one group its value is the value.
    named = () if len(direction.groups) == 1 else direction.groups
    outcome = _Outcomes(frame, progress)
    for passed in forward_pass(loaded, frame, options):
        if isinstance(passed, Unscored):
            outcome.skip(passed)
            continue
        values = exact_values(loaded.unembedding, passed.positions, direction)
        results = summarise_rows(values.tokens, passed.positions)
        for place, result in enumerate(results):
            value = float(values.value[place])
            result["value"] = value
            result["alignment"] = float(values.alignment[place])
            result["value_per_token"] = value / passed.positions.lengths[place]
            if named:
                per_group = values.groups[place].tolist()
                result |= {f"value_{g}": v for g, v in zip(named, per_group, strict=True)}
        outcome.add(passed, results)
    columns = ["value", *(f"value_{g}" for g in named), "alignment", "value_per_token"]
    table = outcome.frame(dict.fromkeys([*columns, *FORWARD_STATISTICS], pl.Float64()))
    return table.with_columns(
        noise_probability=pl.lit(None, pl.Float64),
        value_source=pl.when(pl.col("status") == "scored").then(pl.lit("exact")),
    )


class _Outcomes:
    """Collects one record for each input row, scored or skipped with the reason."""

    def __init__(self, frame: pl.DataFrame, progress: Progress | None) -> None:
        self._identity = frame.select(*IDENTITY)
        self._records: list[dict[str, Any] | None] = [None] * len(frame)
        self._progress = progress
        self._done = self._tokens = 0

    def skip(self, unscored: Unscored) -> None:
        self._records[unscored.row] = {
            "status": "skipped",
            "reason": unscored.reason,
            "truncated": unscored.truncated,
            "response_tokens": 0,
        }
        self._done += 1

    def add(self, passed: PassedRows, results: Sequence[Mapping[str, float] | None]) -> None:
        """Record the results of rows; None, or anything not finite in them, skips the row."""
        rows = zip(passed.rows, passed.truncated, passed.positions.lengths, results, strict=True)
        for row, truncated, tokens, result in rows:
            finite = result is not None and all(map(math.isfinite, result.values()))
            self._records[row] = {
                **(result if result is not None and finite else {}),
                "status": "scored" if finite else "skipped",
                "reason": None if finite else "non_finite",
                "truncated": truncated,
                "response_tokens": tokens,
            }
            self._tokens += tokens
        self._done += len(passed.rows)
        if self._progress is not None:
            self._progress(self._done, self._tokens)

    def frame(self, results: Mapping[str, pl.DataType]) -> pl.DataFrame:
        table = pl.DataFrame(self._records, schema={**results, **OUTCOME})
        return self._identity.hstack(table)

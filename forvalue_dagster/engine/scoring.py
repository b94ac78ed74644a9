"""Passes with a model: the validation profile, and exact values."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import polars as pl
import torch

from forvalue_dagster.engine.columns import COLUMN_DESCRIPTIONS
from forvalue_dagster.engine.encoding import windows_ahead
from forvalue_dagster.engine.fingerprint import fingerprint
from forvalue_dagster.engine.forward import Passed, PassedRows, Unscored, forward_pass
from forvalue_dagster.engine.noise import (
    NOISE_COLUMNS,
    judge,
    noise_preconditioner,
    preconditioner_of,
    with_probe,
)
from forvalue_dagster.engine.outcomes import (
    Outcomes,
    Progress,
    refuse_broken_outcome,
    refuse_unused_groups,
    value_columns,
    value_records,
    with_progress,
)
from forvalue_dagster.engine.transfer import Behind, Transfer
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.valuation.columns import FORWARD_STATISTICS
from forvalue_dagster.valuation.profile import ValidationProfile, ValueDirection
from forvalue_dagster.valuation.profile_builder import ProfileBuilder
from forvalue_dagster.valuation.prompt_space import fit_prompt_space
from forvalue_dagster.valuation.statistics import summarise_rows
from forvalue_dagster.valuation.value import RowValues, exact_values

DEFAULT_GROUP = "all"
# Number of batches whose records are made while the device continues.
_BATCHES_BEHIND = 3


def build_profile(
    loaded: LoadedModel,
    frame: pl.DataFrame,
    options: ValuationOptions,
    progress: Progress | None = None,
) -> tuple[ValidationProfile, pl.DataFrame]:
    """Pass the validation rows through the model once, and damaged copies of them.

    Args:
        loaded: the model.
        frame: canonical rows; `group` names each row's validation group, all or none.
        options: the valuation options.
        progress: callback after each batch of validation rows.

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
    outcome = Outcomes(frame)
    prompts = []
    for passed in with_progress(
        forward_pass(loaded, frame, options, lambda passed: passed), progress
    ):
        if isinstance(passed, Unscored):
            outcome.skip(passed)
            continue
        own = [groups[row] for row in passed.rows]
        usable = builder.add(passed.result.positions, own, passed.rows)
        results: list[dict[str, Any] | None] = [{} if ok else None for ok in usable]
        outcome.add(passed.rows, passed.truncated, passed.lengths, results)
        prompts.append(passed.result.prompts.float().double().cpu()[torch.tensor(usable)])
    table = refuse_broken_outcome(outcome.frame({})).with_columns(frame["group"])
    refuse_unused_groups(table)
    profile = builder.build()
    profile = replace(profile, prompts=fit_prompt_space(torch.cat(prompts).numpy()))
    profile = with_probe(loaded, frame, groups, profile, options)
    return profile, table


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
    probe_direction = noise_direction(profile, options)
    outcome = Outcomes(frame)
    head = partial(exact_head, loaded, direction, probe_direction)
    depth = _BATCHES_BEHIND if windows_ahead(options, loaded.device.type) else 0
    with Behind[None](depth) as records:
        for passed in with_progress(forward_pass(loaded, frame, options, head), progress):
            if isinstance(passed, Unscored):
                outcome.skip(passed)
                continue
            records.add(partial(_record, outcome, passed, profile, direction))
            records.wait()
        for _ in records.rest():
            pass
    columns = (
        value_columns(direction) | dict.fromkeys(FORWARD_STATISTICS, pl.Float64()) | NOISE_COLUMNS
    )
    return with_source(refuse_broken_outcome(outcome.frame(columns)), "exact", profile.identity)


@torch.inference_mode()
def exact_head(
    loaded: LoadedModel,
    direction: ValueDirection,
    probe_direction: ValueDirection | None,
    passed: Passed,
) -> Transfer:
    """Start copying values and statistics of a batch to the host.

    Args:
        loaded: the model.
        direction: the direction of the values.
        probe_direction: the direction of the noise probe's alignments; None if it is the same.
        passed: the batch.

    Returns:
        The fields of `RowValues`, "probed" alignments [R], "statistics" [R, `FORWARD_STATISTICS`],
        "prompts" [R, D].
    """
    unembedding, positions = loaded.unembedding, passed.positions
    values = exact_values(unembedding, positions, direction)
    rows = values.rows
    probed = rows.alignment
    if probe_direction is not None:
        probed = exact_values(unembedding, positions, probe_direction).rows.alignment
    return Transfer(
        {name: getattr(rows, name) for name in ("groups", "value", "norm", "alignment")}
        | {
            "probed": probed,
            "statistics": summarise_rows(values.tokens, positions).to(probed.device),
            "prompts": passed.prompts.float().to(probed.device),
        }
    )


def _record(
    outcome: Outcomes,
    passed: PassedRows[Transfer],
    profile: ValidationProfile,
    direction: ValueDirection,
) -> None:
    """Record a batch's rows."""
    arrays = passed.result.arrays()
    values = RowValues(
        *(torch.from_numpy(arrays[name]) for name in ("groups", "value", "norm", "alignment"))
    )
    columns = judge(profile, arrays["statistics"], arrays["probed"], arrays["prompts"])
    judged = {name: column for name, column in columns.items() if column is not None}
    results: list[dict[str, Any]] = [*value_records(values, passed.lengths, direction)]
    for row, numbers in enumerate(arrays["statistics"].tolist()):
        results[row] |= dict(zip(FORWARD_STATISTICS, numbers, strict=True))
        results[row] |= {name: column[row] for name, column in judged.items()}
    outcome.add(passed.rows, passed.truncated, passed.lengths, results)


def direction_of(
    profile: ValidationProfile, options: ValuationOptions, *, overwrite: bool = False
) -> ValueDirection:
    """Return the direction that the options ask for; `overwrite` spends the gradients."""
    return profile.direction(preconditioner_of(options), overwrite=overwrite)


def noise_direction(profile: ValidationProfile, options: ValuationOptions) -> ValueDirection | None:
    """Return the direction of the probe's alignments; None if it is that of the options."""
    if profile.noise is None:
        return None
    preconditioner = noise_preconditioner(profile.noise)
    return (
        None if preconditioner == preconditioner_of(options) else profile.direction(preconditioner)
    )


def with_source(scores: pl.DataFrame, source: str, profile: str) -> pl.DataFrame:
    """Add to a table of scores how its values were computed, and with which profile."""
    return scores.with_columns(
        value_source=pl.when(pl.col("status") == "scored").then(pl.lit(source)),
        profile=pl.lit(profile),
    )

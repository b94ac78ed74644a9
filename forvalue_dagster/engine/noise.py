"""The noise probe: passes that fit it, and its columns for scored rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from forvalue_dagster.data.corruption import corrupted_copies
from forvalue_dagster.engine.feature_table import read_features
from forvalue_dagster.engine.features import feature_parts
from forvalue_dagster.engine.outcomes import Progress
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.options.valuation import NoiseOptions, ValuationOptions
from forvalue_dagster.valuation.columns import FORWARD_STATISTICS
from forvalue_dagster.valuation.feature_value import feature_pairs, feature_values
from forvalue_dagster.valuation.leave_one_out import leave_one_out
from forvalue_dagster.valuation.noise import NoiseProbe, fit_probe, probabilities
from forvalue_dagster.valuation.preconditioner import Preconditioner
from forvalue_dagster.valuation.profile import ValidationProfile, ValueDirection
from forvalue_dagster.valuation.value import RowValues

Array = NDArray[np.float64]

NOISE_COLUMNS: dict[str, pl.DataType] = {
    "noise_probability": pl.Float64(),
    "prompt_coordinates": pl.List(pl.Float64()),
}
_MIN_ROWS = 2


def preconditioner_of(options: ValuationOptions) -> Preconditioner:
    """Return the metric that the options ask for."""
    return Preconditioner(options.preconditioner, options.damping, options.centre)


def noise_preconditioner(probe: NoiseProbe) -> Preconditioner:
    """Return the metric of the probe's alignments."""
    kind, damping, centre = probe.metric.split(",")
    return Preconditioner(kind, float(damping), centre == "True")  # type: ignore[arg-type]


def with_probe(
    loaded: LoadedModel,
    validation: pl.DataFrame,
    groups: Sequence[str],
    profile: ValidationProfile,
    options: ValuationOptions,
    progress: Progress | None = None,
) -> ValidationProfile:
    """Fit a noise probe on damaged copies of validation rows; return the profile with it.

    Args:
        loaded: the model.
        validation: canonical rows, those of the profile among them.
        groups: group of each row.
        profile: profile of those rows, with their features.
        options: the valuation options, those of the noise probe among them.
        progress: callback after each batch of copies.
    """
    noise = options.noise
    if noise is None or profile.features is None or len(profile.rows) < _MIN_ROWS:
        return profile
    chosen = _drawn(len(profile.rows), noise)
    rows = validation[profile.rows[chosen].tolist()]
    copies = corrupted_copies(rows, noise.recipes, noise.seed, noise.copies)
    parts = feature_parts(loaded, copies, options, progress)
    table = pl.concat(parts).hstack(copies.select("copy_of", "recipe"))
    table = table.filter(pl.col("status") == "scored")
    if table.is_empty():
        return profile
    preconditioner = preconditioner_of(options)
    direction = profile.direction(preconditioner)
    index = torch.tensor([profile.groups.index(groups[row]) for row in profile.rows.tolist()])
    values = feature_values(profile.features, direction)
    everyone = torch.arange(len(profile.rows))
    clean = _left_out(values, values, values.norm**2, everyone, index, profile, direction)
    features = read_features(table).to(direction.gradients.device)
    owners = torch.tensor(chosen)[table["copy_of"].to_list()]
    pairs = torch.cat(
        [
            feature_pairs(
                features.rows(place, place + 1),
                profile.features.rows(owner, owner + 1),
                direction.metric,
                direction.gradients.dtype,
            )[:, 0]
            for place, owner in enumerate(owners.tolist())
        ]
    )
    damaged = _left_out(
        feature_values(features, direction), values, pairs, owners, index, profile, direction
    )
    recipes = sorted(set(table["recipe"]))
    known = torch.stack(list(profile.statistics.values()), dim=1).numpy()
    statistics = np.column_stack([known, clean])[chosen]
    tables = np.full((len(chosen), len(recipes), statistics.shape[1]), np.nan)
    place = [recipes.index(name) for name in table["recipe"]]
    tables[table["copy_of"].to_list(), place] = np.column_stack(
        [table.select(*FORWARD_STATISTICS).to_numpy(), damaged]
    )
    metric = f"{preconditioner.kind},{preconditioner.damping},{preconditioner.centre}"
    probe = fit_probe(statistics, tables, recipes, seed=noise.seed, metric=metric)
    return replace(profile, noise=probe)


def judge(
    profile: ValidationProfile, statistics: Array, alignment: Array, prompts: NDArray[np.float32]
) -> dict[str, list[float] | list[list[float]] | None]:
    """Return the columns of `NOISE_COLUMNS` for rows; None if the profile has no probe.

    Args:
        profile: the profile, with or without a probe and a prompt space.
        statistics: forward statistics [N, F].
        alignment: alignments in the probe's metric [N].
        prompts: mean last hidden state of each row's prompt [N, D].
    """
    probability = coordinates = None
    if profile.noise is not None:
        log_odds = profile.noise.log_odds(np.column_stack([statistics, alignment]))
        probability = probabilities(log_odds).tolist()
    if profile.prompts is not None:
        coordinates = profile.prompts.project(prompts.astype(np.float64)).tolist()
    return {"noise_probability": probability, "prompt_coordinates": coordinates}


def _drawn(rows: int, noise: NoiseOptions) -> list[int]:
    if rows <= noise.max_rows:
        return list(range(rows))
    drawn = np.random.default_rng(noise.seed).permutation(rows)[: noise.max_rows]
    return sorted(drawn.tolist())


def _left_out(
    values: RowValues,
    validation: RowValues,
    own_pairs: torch.Tensor,
    owners: torch.Tensor,
    groups: torch.Tensor,
    profile: ValidationProfile,
    direction: ValueDirection,
) -> Array:
    """Return the alignment of rows with the validation rows that they are not copies of."""
    of_owners = RowValues(
        validation.groups[owners],
        validation.value[owners],
        validation.norm[owners],
        validation.alignment[owners],
    )
    left = leave_one_out(
        values, of_owners, own_pairs, groups[owners], torch.tensor(profile.counts), direction.norm
    )
    return left.alignment.numpy()

"""Estimate the share of noisy rows in a set, with an interval.

Two estimates, on the ranks of the set's rows among clean ones (`noise_reference.py`).

*Adjusted count* (Forman 2008; Bella et al. 2010 with soft counts). A row with the share r of the
clean rows below it counts r⁴. Clean rows count E₀ on average and damaged copies E₁, so a set whose
rows count U on average has a noise share of (U − E₀) / (E₁ − E₀). What clean sets get by chance
is subtracted.

*Bound for any kind* (Storey 2002; mixture proportions, Blanchard et al. 2010). A set of clean share
c has at least c F₀(t) of its rows below t, where clean rows have F₀(t). So its noise is at least
1 − F(t) / F₀(t), of whatever kind. It is used where it exceeds the adjusted count by more than
chance: that noise is milder than any known kind. Elsewhere it widens the interval.

Both grow with the log-odds of any row, and with any row added above all others: rows that are
noisier than every damaged copy are noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forvalue_dagster.valuation.noise import NoiseProbe
from forvalue_dagster.valuation.noise_reference import NoiseReference

Array = NDArray[np.float64]

# (noise of a set, share of the set's rows in each cell, mass of clean rows in each cell) → noise of
# the rows to estimate; arrays have one entry for each replicate.
NoiseOf = Callable[[Array | float, Array, Array], Array]

REPLICATES = 400
# Kept rows stand for the rows of the same range of ranks: the largest number of ranges, and the
# rows in each.
_RANGES, _ROWS_IN_RANGE = 10, 40


@dataclass(frozen=True)
class NoiseFraction:
    """The estimated share of noisy rows in a set.

    Attributes:
        estimate: 0 to 1.
        lower, upper: 95 % interval, for the process that the set is a sample of; at its lower end
            unexplained rows are clean, at its upper end they are noise.
        rows: number of rows that the estimate is based on.
        unexplained: share of rows that are like neither clean rows nor damaged ones.
        if_clean, if_noise: the estimate if all unexplained rows were clean, or were noise.
    """

    estimate: float
    lower: float
    upper: float
    rows: int
    unexplained: float
    if_clean: float
    if_noise: float


def noise_fraction(
    probe: NoiseProbe,
    log_odds: Array,
    kept: Array | None = None,
    *,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> NoiseFraction:
    """Estimate the share of noisy rows in a set, or among the rows kept of it.

    Kept rows may have been chosen by the same log-odds, which then say nothing more about them.
    So the noise of the whole set is estimated. Within a range of ranks, clean rows are as dense as
    among the validation rows, the rest is noise, and a kept row is as probably noise as any row of
    its range. Kept rows hold no more noisy rows than the set.

    Args:
        probe: the noise probe; its log-odds of the validation rows are the reference.
        log_odds: log-odds that the probe gives the rows of the set [N].
        kept: number of times each row was kept [N]; None to estimate the whole set.
        seed: seed of the bootstrap.
        replicates: number of bootstrap replicates.

    Raises:
        ValueError: if there is no row, or none was kept.
    """
    weights = np.ones(len(log_odds)) if kept is None else kept
    if not weights.sum() > 0:
        raise ValueError("No rows: no share of them can be estimated.")
    reference = NoiseReference(probe)

    def estimated(rows: NDArray[np.bool_]) -> tuple[float, float, float]:
        cells = reference.cells_of(log_odds[rows])
        noise_of: NoiseOf = _noise_of_all
        count = len(cells)
        if kept is not None and kept[rows].any():
            noise_of, count = _noise_of_kept(reference, cells, kept[rows]), kept[rows].sum()
        rng = np.random.default_rng(seed)
        return _estimate(reference, cells, noise_of, count, rng, replicates)

    strange = reference.unexplained(log_odds)
    share = float(weights[strange].sum() / weights.sum())
    whole = estimate, lower, upper = estimated(np.ones_like(strange))
    explained = whole if share == 0 else (0.0, 0.0, 0.0) if share == 1 else estimated(~strange)
    return NoiseFraction(
        estimate=estimate,
        lower=min((1 - share) * explained[1], lower if share == 0 else estimate),
        upper=max((1 - share) * explained[2] + share, upper if share == 0 else estimate),
        rows=int(weights.sum()),
        unexplained=share,
        if_clean=min((1 - share) * explained[0], estimate),
        if_noise=max((1 - share) * explained[0] + share, estimate),
    )


def rows_needed(limit: float) -> float:
    """Return how many clean rows it takes for an interval within a limit; infinity for 0."""
    return math.ceil(3 / limit - 1e-9) if limit > 0 else math.inf


def _estimate(
    reference: NoiseReference,
    cells: NDArray[np.int64],
    noise_of: NoiseOf,
    count: float,
    rng: np.random.Generator,
    replicates: int,
) -> tuple[float, float, float]:
    """Return an estimate and its interval.

    Args:
        reference: clean rows and damaged copies.
        cells: cell of each row of the set.
        noise_of: function that returns the noise of the rows to estimate.
        count: number of those rows.
        rng: random generator of the bootstrap.
        replicates: number of bootstrap replicates.
    """
    rows, even = len(cells), reference.clean
    shares = np.bincount(cells, minlength=reference.cells) / rows
    off, bound_off = reference.chance(rows)
    off = min(off, 0.9)
    bound = float(reference.bound(shares, even))
    known = (float(reference.adjusted_count(shares, even, reference.damaged)) - off) / (1 - off)

    estimate = float(noise_of(max(known, bound - 1.96 * bound_off, 0), shares, even))
    clean = reference.resampled_clean(rng, replicates)
    drawn = rng.multinomial(rows, shares, replicates) / rows
    damaged = reference.resampled_damage(rng, replicates)
    resampled = (reference.adjusted_count(drawn, clean, damaged) - off) / (1 - off)
    lower, upper = np.quantile(noise_of(resampled, drawn, clean), [0.025, 0.975])
    if known <= 0.645 * off / (1 - off) or lower * rows < 0.5:
        lower = 0.0  # one clean set in twenty counts as much (1.645 deviations); or half a row
    upper = max(upper, float(noise_of(max(bound, known), shares, even)))
    # Even if no row looks damaged, or none looks clean, about 3 in n may be (rule of three).
    lower, upper = min(lower, 1 - 3 / count), max(upper, 3 / count)
    estimate, lower, upper = (float(np.clip(value, 0, 1)) for value in (estimate, lower, upper))
    return estimate, min(lower, estimate), max(upper, estimate)


def _noise_of_all(noise: Array | float, shares: Array, clean: Array) -> Array:
    return np.minimum(noise, 1)


def _noise_of_kept(reference: NoiseReference, cells: NDArray[np.int64], kept: Array) -> NoiseOf:
    """Return the function that computes the noise of the kept rows.

    Args:
        reference: clean rows.
        cells: cell of each row of the set [N].
        kept: number of times each row was kept [N]; not all 0.
    """
    chosen = np.bincount(cells, kept, reference.cells)
    last = int(np.flatnonzero(chosen)[-1])
    count = int(np.clip(min((cells <= last).sum() // _ROWS_IN_RANGE, _RANGES), 1, last + 1))
    first = np.round(np.linspace(0, last + 1, count + 1)).astype(np.int64)[:-1]
    own = np.add.reduceat(chosen[: last + 1], first) / kept.sum()
    # The largest it can be: every noisy row of the set kept, as often as any row is.
    most = len(cells) * kept.max() / kept.sum()

    def noise_of(noise: Array | float, shares: Array, clean: Array) -> Array:
        thick, expected = (
            np.add.reduceat(side[..., : last + 1], first, axis=-1) for side in (shares, clean)
        )
        density = (own * expected / np.maximum(thick, 0.5 / len(cells))).sum(axis=-1)
        noise = np.minimum(noise, 1)
        # A set that is cleaner than the validation rows also has more rows where clean rows are.
        # That excess is not noise: kept rows hold no more noise than the set.
        return np.asarray(np.minimum(1 - (1 - noise) * density, noise * most))

    return noise_of

"""How much of a training set is noise: the prior, re-estimated, with an interval.

The log-odds that a noise probe gives the rows of a set are a mixture: of what it gives to clean
rows, and of what it gives to rows damaged in each known way. Those are known from cross-fitted
validation rows and their copies; the shares of the mixture are found by expectation maximisation
(Saerens, Latinne and Decaestecker 2002, with one class for each kind of damage, so that the kinds
need not occur as often here as among the copies). The interval is a bootstrap over the rows of
the set and over the validation rows, a row together with its copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forvalue_dagster.valuation.noise import NoiseProbe

Array = NDArray[np.float64]

REPLICATES = 200
_CELLS = 120  # log-odds are counted on a grid: the cost does not grow with the rows
_STEPS = 200
_FLOOR = 1e-3  # share of each density that is spread evenly, so that no row is impossible


@dataclass(frozen=True)
class NoiseFraction:
    """The estimated share of noisy rows in a set.

    Attributes:
        estimate: 0 to 1.
        lower, upper: 95 % interval, for the process that the set is a sample of.
        rows: rows that it rests on.
        shares: of each recipe, its part of the estimate; they overlap where recipes look alike.
    """

    estimate: float
    lower: float
    upper: float
    rows: int
    shares: dict[str, float]


def noise_fraction(
    probe: NoiseProbe, log_odds: Array, *, seed: int = 0, replicates: int = REPLICATES
) -> NoiseFraction:
    """Estimate the share of noisy rows.

    Args:
        probe: whose judgements on validation rows are the reference.
        log_odds: its judgements on the rows of the set [N].
        seed: of the bootstrap.
        replicates: of the bootstrap.

    Raises:
        ValueError: if there is no row.
    """
    if not len(log_odds):
        raise ValueError("No rows: no share of them can be estimated.")
    grid = _Grid.over(probe)
    rng = np.random.default_rng(seed)
    counts = grid.counts(log_odds)
    even = np.full((1, probe.rows), 1 / probe.rows)
    shares = _mixture(grid.densities(even), counts[None])[0]
    rows = len(log_odds)
    weights = rng.multinomial(rows, counts / rows, replicates).astype(np.float64)
    trusted = rng.multinomial(probe.rows, even[0], replicates) / probe.rows
    resampled = 1 - _mixture(grid.densities(trusted), weights)[:, 0]
    estimate = float(1 - shares[0])
    # A bootstrap that misses its own estimate (tiny sets) still covers it.
    lower = min(float(np.quantile(resampled, 0.025)), estimate)
    upper = max(float(np.quantile(resampled, 0.975)), estimate)
    if shares[0] > 0.5:
        # Where no row at all looks damaged, n rows still rule out only about 3/n (rule of three).
        upper = max(upper, min(1.0, 3 / rows))
    named = dict(zip(probe.recipes, shares[1:].tolist(), strict=True))
    return NoiseFraction(estimate, lower, upper, rows, named)


@dataclass(frozen=True)
class _Grid:
    """Log-odds on a grid: where its cells lie, and what each reference row puts into them."""

    low: float
    high: float
    first: float
    step: float
    clean: Array  # [cells, M]
    copies: Array  # [R, cells, M], zero where there is no copy

    @classmethod
    def over(cls, probe: NoiseProbe) -> _Grid:
        present = np.isfinite(probe.copies)
        everything = np.concatenate([probe.clean, probe.copies[present]])
        low, high = np.quantile(everything, [0.001, 0.999]) + np.array([-1.0, 1.0])
        # Scott's rule on the clean rows, the narrower side, for all: sharper would fit noise.
        width = max(1.06 * float(probe.clean.std()) * probe.rows**-0.2, 1e-3)
        first, last = low - 2 * width, high + 2 * width
        cells = np.linspace(first, last, _CELLS)

        def bumps(points: Array) -> Array:
            points = np.clip(points, low, high)
            return np.asarray(np.exp(-0.5 * ((cells[:, None] - points[None]) / width) ** 2))

        copies = np.where(present, probe.copies, 0.0)
        return cls(
            float(low),
            float(high),
            float(first),
            float(cells[1] - cells[0]),
            bumps(probe.clean),
            np.stack([bumps(own) * there for own, there in zip(copies.T, present.T, strict=True)]),
        )

    def counts(self, log_odds: Array) -> Array:
        """Return how many rows lie in each cell."""
        cell = np.round((np.clip(log_odds, self.low, self.high) - self.first) / self.step)
        places = cell.astype(np.int64)
        return np.bincount(places, minlength=_CELLS).astype(np.float64)

    def densities(self, weights: Array) -> Array:
        """Return clean and damaged densities [B, 1 + R, cells] of reweighted rows [B, M]."""
        clean = (weights @ self.clean.T)[:, None]
        copies = np.einsum("bm,rcm->brc", weights, self.copies)
        density = np.concatenate([clean, copies], axis=1)
        total = density.sum(axis=2, keepdims=True)
        density = np.divide(density, total, out=np.zeros_like(density), where=total > 0)
        return density * (1 - _FLOOR) + _FLOOR / _CELLS


def _mixture(densities: Array, counts: Array) -> Array:
    """Return the shares [B, K] of densities [B, K, cells] that explain counts [B, cells] best."""
    shares = np.full(densities.shape[:2], 1 / densities.shape[1])
    rows = counts.sum(axis=1, keepdims=True)
    for _ in range(_STEPS):
        mixed = np.einsum("bk,bkc->bc", shares, densities)
        shares = shares * np.einsum("bkc,bc->bk", densities, counts / mixed) / rows
    return shares

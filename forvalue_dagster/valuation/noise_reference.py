"""The reference for log-odds: their ranks among clean rows and among damaged copies.

The M validation rows, sorted by their cross-fitted log-odds, cut the line into M + 1 cells. An
unseen clean row is equally likely to fall into each, however clean rows are distributed. How
unequal the cells really are is known, too: their masses follow a Dirichlet distribution with
parameters 1. So every row has a rank: one noisier than all clean rows is in the last cell.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from forvalue_dagster.valuation.noise import NoiseProbe, log_odds_of, probabilities

Array = NDArray[np.float64]

# How steeply a row counts by its rank: the steepest at which even copies of the recipe that is
# detected worst count this much. Steeper is more exact where damage lies above all clean rows;
# where it does not, noise of unknown kinds would count too little.
_POWERS = (4, 8, 16, 32)
_COUNTED = 0.95
# A damaged row counts half-way between the mean of the recipes and the one that is detected
# worst: noise without a recipe is seldom of the kind that is detected best.
_TOWARDS_WORST = 0.5
# However badly copies are detected, a noisy row counts at least this share of the most it can.
_LEAST_COUNTED = 0.2
# Quantiles of the clean rows that the bound for any kind is averaged over.
_BOUND_QUANTILES = (0.5, 0.8)
# A row noisier than this share of the copies of some recipe is like damage of a known kind.
_MILDEST = 0.1
# Where a gap divides clean rows from all damage, a row counts as above a clean one only if it is
# half the gap above it: ranks alone would take a slight difference in style for noise.
_MARGIN = 0.5
# Distance from all clean rows beyond which a row is not like them: in standard deviations of the
# clean rows, and in shares of the gap.
_REACH, _REACH_INTO_GAP = 3, 0.25


class NoiseReference:
    """Clean rows and damaged copies that rows are compared with.

    Args:
        probe: the fitted noise probe.
    """

    def __init__(self, probe: NoiseProbe) -> None:
        # Only as exact as stored probabilities: otherwise damage could lie above all of these.
        self._clean = np.sort(log_odds_of(probabilities(probe.clean)))
        self._copies = log_odds_of(probabilities(probe.copies[:, probe.detectable]))
        self.cells = len(self._clean) + 1
        self._mildest = float(np.nanquantile(self._copies, _MILDEST, axis=0).min())
        self._gap = max(self._mildest - float(self._clean[-1]), 0.0)
        self._margin = _MARGIN * self._gap
        # The count of a row in each cell: a power of the share of clean rows below it.
        for power in _POWERS:
            counts = np.asarray(np.linspace(0, 1, self.cells) ** power)
            of_copies = self._of_copies(counts)
            if power > _POWERS[0] and np.nanmean(of_copies, axis=0).min() < _COUNTED:
                break
            self.counts, self._counts_of_copies = counts, of_copies
        # The cell where a clean row of each cell is counted: lower by the margin, as any row.
        ends = self._clean[np.minimum(np.arange(self.cells), len(self._clean) - 1)]
        counted = self.cells_of(ends) if self._margin else np.arange(self.cells)
        self._counted = np.eye(self.cells)[counted]
        self.clean = np.full(self.cells, 1 / self.cells) @ self._counted

    def cells_of(self, log_odds: Array) -> NDArray[np.int64]:
        """Return how many clean rows lie below each row by the margin; equal ones count half."""
        below = np.searchsorted(self._clean, log_odds - self._margin, "left")
        not_above = np.searchsorted(self._clean, log_odds - self._margin, "right")
        return np.asarray((below + not_above) // 2, np.int64)

    def unexplained(self, log_odds: Array) -> NDArray[np.bool_]:
        """Return which rows are neither like clean rows nor like damaged ones.

        They lie far below all clean rows, or far above all of them and still below the copies of
        every recipe.
        """
        reach = max(_REACH * float(self._clean.std()), _REACH_INTO_GAP * self._gap)
        above = (log_odds > self._clean[-1] + reach) & (log_odds < self._mildest)
        return np.asarray(above | (log_odds < self._clean[0] - reach))

    def resampled_clean(self, rng: np.random.Generator, replicates: int) -> Array:
        """Draw masses of clean rows in the cells [B, M + 1]; `clean` is their mean."""
        return np.asarray(rng.dirichlet(np.ones(self.cells), replicates) @ self._counted)

    def _of_copies(self, counts: Array) -> Array:
        """Return the count of each copy [M, R]; NaN where there is none."""
        there = np.isfinite(self._copies)
        cells = self.cells_of(np.where(there, self._copies, 0.0))
        return np.where(there, counts[cells], np.nan)

    @cached_property
    def damaged(self) -> float:
        """The average count of a noisy row."""
        recipes = np.nanmean(self._counts_of_copies, axis=0)
        return float(recipes.mean() - _TOWARDS_WORST * (recipes.mean() - recipes.min()))

    def resampled_damage(self, rng: np.random.Generator, replicates: int) -> Array:
        """Return the same [B] for resampled copies, with the kinds mixed in random shares."""
        own = self._counts_of_copies
        rows = rng.dirichlet(np.ones(len(own)), replicates)
        recipes = (rows @ np.where(np.isfinite(own), own, 0.0)) / np.maximum(
            rows @ np.isfinite(own), 1e-12
        )
        kinds = rng.dirichlet(np.ones(own.shape[1]), replicates)
        lowered = np.nanmean(own, axis=0).mean() - self.damaged
        return np.asarray((kinds * recipes).sum(axis=1) - lowered)

    def adjusted_count(self, shares: Array, clean: Array, damaged: Array | float) -> Array:
        """Return the noise of a set: where its rows' count lies between clean and damaged ones.

        Args:
            shares: share of the set's rows in each cell [..., M + 1].
            clean: mass of clean rows in each cell [..., M + 1].
            damaged: average count of a noisy row.
        """
        nothing = clean @ self.counts
        return np.asarray((shares @ self.counts - nothing) / _span(nothing, damaged))

    def bound(self, shares: Array, clean: Array) -> Array:
        """Return the least share of a set that is noise, of whatever kind: 1 − F / F₀."""
        below = np.cumsum(shares, axis=-1)[..., self._ranks - 1]
        expected = np.cumsum(clean, axis=-1)[..., self._ranks - 1]
        return np.asarray((1 - below / np.maximum(expected, 1e-12)).mean(axis=-1))

    def chance(self, rows: int) -> tuple[float, float]:
        """Return the standard deviations of both estimates for a number of clean rows."""
        below = np.arange(self.cells) < self._ranks[:, None]
        weights = (below / (below @ self.clean)[:, None]).mean(axis=0)
        spread = np.sqrt(1 / rows + 1 / (self.cells - 1))
        counted = self._deviation(self.counts) / _span(self.clean @ self.counts, self.damaged)
        return float(counted * spread), float(self._deviation(weights) * spread)

    def _deviation(self, of_cells: Array) -> float:
        """Return the standard deviation over clean rows of a figure that depends on the cell."""
        mean = self.clean @ of_cells
        return float(np.sqrt(self.clean @ (of_cells - mean) ** 2))

    @cached_property
    def _ranks(self) -> NDArray[np.int64]:
        first, last = (max(1, round(share * (self.cells - 1))) for share in _BOUND_QUANTILES)
        return np.arange(first, last + 1)


def _span(nothing: Array | float, damaged: Array | float) -> Array:
    return np.maximum(damaged - nothing, _LEAST_COUNTED * (1 - nothing))

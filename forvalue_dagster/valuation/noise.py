"""The noise probe: tells damaged responses from clean ones by their forward statistics.

The value score does not see noise. The validation rows are trusted; so copies of them are damaged
by known recipes, and a small regularised logistic regression learns what damage does to the
statistics of a row. It is cross-fitted by row: a validation row and its copies are judged by
models that saw neither. Those judgements are the reference that a training set is compared with
(`noise_fraction.py`), so they must be what unseen rows would get.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forvalue_dagster.valuation.columns import FORWARD_STATISTICS

Array = NDArray[np.float64]

# What the probe looks at: the forward statistics, and the row's alignment with the validation
# rows (of a validation row and its copies: with all others).
PROBE_COLUMNS: tuple[str, ...] = (*FORWARD_STATISTICS, "alignment")
FOLDS = 10
# Inverse strength of the L2 penalty on standardised statistics. On GSM8K anything from 0.3 to 10
# gave the same AUC within 0.002.
PENALTY = 1.0
# Beyond these quantiles of the rows it was fitted on, a statistic counts as if it lay there.
_CLIPPED = (0.002, 0.998)


@dataclass(frozen=True)
class NoiseProbe:
    """A fitted probe and its judgements on the rows it was fitted on; plain numbers.

    Attributes:
        recipes: names of the damage it knows [R].
        low, high: range of each statistic [F]; what lies outside counts as at the edge.
        coefficients: of the statistics as they are [F].
        intercept: log-odds of a row whose statistics are all zero.
        clean: cross-fitted log-odds of the validation rows [M].
        copies: cross-fitted log-odds of their damaged copies [M, R]; NaN where there is none.
        metric: how the alignment was measured, as the engine names it.
    """

    recipes: tuple[str, ...]
    low: Array
    high: Array
    coefficients: Array
    intercept: float
    clean: Array
    copies: Array
    metric: str = ""

    def log_odds(self, statistics: Array) -> Array:
        """Return the log-odds of damage, at even prior odds, of rows [N, F] as [N]."""
        bounded = np.clip(statistics, self.low, self.high)
        return np.asarray(bounded @ self.coefficients + self.intercept)

    @property
    def rows(self) -> int:
        """The validation rows it was fitted on."""
        return len(self.clean)

    @property
    def auc(self) -> float:
        """Cross-fitted ROC-AUC of clean rows against all copies."""
        return roc_auc(self.clean, self.copies[np.isfinite(self.copies)])

    @property
    def auc_by_recipe(self) -> dict[str, float]:
        """Cross-fitted ROC-AUC of clean rows against the copies of each recipe."""
        columns = zip(self.recipes, self.copies.T, strict=True)
        return {name: roc_auc(self.clean, own[np.isfinite(own)]) for name, own in columns}

    def to_arrays(self) -> dict[str, Array]:
        """Return arrays to be stored beside `recipes` and `metric`."""
        names = ("low", "high", "coefficients", "clean", "copies")
        return {name: getattr(self, name) for name in names} | {
            "intercept": np.array([self.intercept])
        }

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Array], recipes: Sequence[str], metric: str
    ) -> NoiseProbe:
        """Rebuild a stored probe."""
        fields = dict(arrays)
        intercept = float(fields.pop("intercept")[0])
        return cls(recipes=tuple(recipes), intercept=intercept, metric=metric, **fields)


def fit_probe(
    clean: Array, copies: Array, recipes: Sequence[str], *, seed: int = 0, metric: str = ""
) -> NoiseProbe:
    """Fit a probe, cross-fitted by row.

    Args:
        clean: statistics of the M validation rows [M, F], finite.
        copies: of their copies [M, R, F]; NaN where a row has no copy by a recipe.
        recipes: names of the R recipes.
        seed: of the folds.
        metric: kept with the probe.

    Raises:
        ValueError: if there are fewer than two rows, or no copy at all.
    """
    rows = len(copies)
    present = np.isfinite(copies).all(axis=2)
    if rows < 2 or not present.any():
        raise ValueError(
            f"A noise probe needs at least two validation rows and a damaged copy; got {rows} rows "
            f"and {int(present.sum())} copies."
        )
    everything = np.concatenate([clean, copies[present]])
    low, high = np.quantile(everything, _CLIPPED, axis=0)
    bounded = np.clip(everything, low, high)
    centre, scale = bounded.mean(axis=0), bounded.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    owner = np.concatenate([np.arange(rows), np.nonzero(present)[0]])
    damaged = np.repeat([False, True], [rows, int(present.sum())])
    standard = (bounded - centre) / scale
    fold = np.random.default_rng(seed).permutation(rows) % min(FOLDS, rows)
    judged = np.empty(len(everything))
    weights, intercepts = [], []
    for held_out in range(int(fold.max()) + 1):
        outside = fold[owner] == held_out
        weight, intercept = _regression(standard[~outside], damaged[~outside])
        judged[outside] = standard[outside] @ weight + intercept
        weights.append(weight)
        intercepts.append(intercept)
    # The mean of the folds' models: as strong as those that made the reference judgements.
    coefficients = np.mean(weights, axis=0) / scale
    table = np.full((rows, len(recipes)), np.nan)
    table[present] = judged[rows:]
    return NoiseProbe(
        recipes=tuple(recipes),
        low=low,
        high=high,
        coefficients=coefficients,
        intercept=float(np.mean(intercepts) - coefficients @ centre),
        clean=judged[:rows],
        copies=table,
        metric=metric,
    )


def _regression(standard: Array, damaged: NDArray[np.bool_]) -> tuple[Array, float]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=PENALTY, class_weight="balanced", max_iter=2000)
    model.fit(standard, damaged)
    return model.coef_[0], float(model.intercept_[0])


def probabilities(log_odds: Array) -> Array:
    """Return 1 / (1 + exp(−log-odds))."""
    return np.asarray(1 / (1 + np.exp(-np.clip(log_odds, -700, 700))))


def roc_auc(lower: Array, higher: Array) -> float:
    """Return how often a value of the second exceeds one of the first; ties count half."""
    if not len(lower) or not len(higher):
        return float("nan")
    ordered = np.sort(lower)
    below = np.searchsorted(ordered, higher, "left") + np.searchsorted(ordered, higher, "right")
    return float(below.mean() / (2 * len(lower)))

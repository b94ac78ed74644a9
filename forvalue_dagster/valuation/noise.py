"""The noise probe: tells damaged responses from clean ones by their forward statistics.

The value score does not see noise. The validation rows are trusted; so copies of them are damaged
by known recipes, and a small regularised logistic regression with one class for each recipe
learns what damage does to the statistics of a row (each kind has a direction of its own: shuffled
words surprise the model, a loop does not). It is cross-fitted by row: a validation row and its
copies are scored by models that saw neither. Those scores are the reference that a training
set is compared with (`noise_fraction.py`), so they must be what unseen rows would get.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FOLDS = 10
# Inverse strength of the L2 penalty on standardised statistics. On GSM8K anything from 0.1 to 10
# gave the same AUC within 0.003 when the probe was built.
PENALTY = 1.0
# Score of a class that a fold has no example of: finite, so that folds can be averaged.
_NEVER = -50.0
# A recipe counts in a noise fraction only if its copies can be told from clean rows this well
# (ROC-AUC): no share can be estimated of damage that looks clean.
DETECTABLE = 0.9
# Probabilities nearer to 0 or 1 are not told apart: near 1, double precision cannot.
_SURE = 1e-12
# Beyond these quantiles of the rows it was fitted on, a statistic counts as if it lay there.
_CLIPPED = (0.002, 0.998)


@dataclass(frozen=True)
class NoiseProbe:
    """A fitted probe and its cross-fitted scores of the rows it was fitted on; plain numbers.

    It uses F numbers of each row: the forward statistics, in the order of
    `FORWARD_STATISTICS`, and the row's alignment with the validation rows (for a validation row
    and its copies: with all others).

    Attributes:
        recipes: names of the damage it knows [R].
        low, high: range of each statistic [F]; a value outside counts as the nearest end.
        coefficients: coefficients of the clean class and of each recipe's, for statistics that are
            not standardised [1 + R, F].
        intercepts: intercepts of the same classes [1 + R].
        clean: cross-fitted log-odds of the validation rows [M].
        copies: cross-fitted log-odds of their damaged copies [M, R]; NaN where there is none.
        metric: the metric of the alignments, as the engine names it.
    """

    recipes: tuple[str, ...]
    low: Array
    high: Array
    coefficients: Array
    intercepts: Array
    clean: Array
    copies: Array
    metric: str = ""

    def log_odds(self, statistics: Array) -> Array:
        """Return the log-odds of damage, at even prior odds, of rows [N, F] as [N]."""
        bounded = np.clip(statistics, self.low, self.high)
        return _damage(bounded @ self.coefficients.T + self.intercepts)

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

    @property
    def detectable(self) -> NDArray[np.bool_]:
        """Which recipes count in a noise fraction [R]; all with copies if none is detected well."""
        told = np.array(list(self.auc_by_recipe.values()))
        return told >= DETECTABLE if (told >= DETECTABLE).any() else np.isfinite(told)

    def to_arrays(self) -> dict[str, Array]:
        """Return arrays to store in addition to `recipes` and `metric`."""
        names = ("low", "high", "coefficients", "intercepts", "clean", "copies")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Array], recipes: Sequence[str], metric: str
    ) -> NoiseProbe:
        """Rebuild a stored probe."""
        return cls(recipes=tuple(recipes), metric=metric, **dict(arrays))


def fit_probe(
    clean: Array, copies: Array, recipes: Sequence[str], *, seed: int = 0, metric: str = ""
) -> NoiseProbe:
    """Fit a probe, cross-fitted by row.

    Args:
        clean: statistics of the M validation rows [M, F], finite.
        copies: statistics of their copies [M, R, F]; NaN where a row has no copy by a recipe.
        recipes: names of the R recipes.
        seed: seed of the folds.
        metric: the metric of the alignments, stored with the probe.

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
    kind = np.concatenate([np.zeros(rows, np.int64), 1 + np.nonzero(present)[1]])
    standard = (bounded - centre) / scale
    fold = np.random.default_rng(seed).permutation(rows) % min(FOLDS, rows)
    judged = np.empty(len(everything))
    weights, intercepts = [], []
    for held_out in range(int(fold.max()) + 1):
        outside = fold[owner] == held_out
        weight, intercept = _regression(standard[~outside], kind[~outside], len(recipes))
        judged[outside] = _damage(standard[outside] @ weight.T + intercept)
        weights.append(weight)
        intercepts.append(intercept)
    # The mean of the folds' models: as strong as those that made the reference scores.
    coefficients = np.mean(weights, axis=0) / scale
    table = np.full((rows, len(recipes)), np.nan)
    table[present] = judged[rows:]
    return NoiseProbe(
        recipes=tuple(recipes),
        low=low,
        high=high,
        coefficients=coefficients,
        intercepts=np.mean(intercepts, axis=0) - coefficients @ centre,
        clean=judged[:rows],
        copies=table,
        metric=metric,
    )


def _regression(standard: Array, kind: NDArray[np.int64], recipes: int) -> tuple[Array, Array]:
    """Return coefficients [1 + R, F] and intercepts [1 + R] of the classes.

    Clean rows weigh as much as all copies together, every recipe as much as any other.
    """
    from sklearn.linear_model import LogisticRegression

    counts = np.bincount(kind, minlength=1 + recipes)
    occurring = np.nonzero(counts)[0]
    share = np.where(np.arange(1 + recipes) == 0, 0.5, 0.5 / max(len(occurring) - 1, 1))
    weights = (share / np.maximum(counts, 1))[kind] * len(kind)
    model = LogisticRegression(C=PENALTY, max_iter=3000)
    model.fit(standard, kind, sample_weight=weights)
    coefficients = np.zeros((1 + recipes, standard.shape[1]))
    intercepts = np.full(1 + recipes, _NEVER)
    # Of two classes scikit-learn models the second alone.
    two = len(model.classes_) == 2
    coefficients[model.classes_] = np.vstack([0 * model.coef_, model.coef_]) if two else model.coef_
    intercepts[model.classes_] = (
        np.concatenate([[0.0], model.intercept_]) if two else model.intercept_
    )
    return coefficients, intercepts


def _damage(scores: Array) -> Array:
    """Return log Σ_recipes exp(score) − score of the clean class, of class scores [N, 1 + R]."""
    with np.errstate(invalid="ignore"):  # rows that are not finite come out as such
        return np.asarray(np.logaddexp.reduce(scores[:, 1:], axis=1) - scores[:, 0])


def probabilities(log_odds: Array) -> Array:
    """Return 1 / (1 + exp(−log-odds))."""
    return np.asarray(1 / (1 + np.exp(-np.clip(log_odds, -700, 700))))


def log_odds_of(probability: Array) -> Array:
    """Return log-odds of stored probabilities: `probabilities` undone, up to ±27.6."""
    bounded = np.clip(probability, _SURE, 1 - _SURE)
    return np.asarray(np.log(bounded) - np.log1p(-bounded))


def roc_auc(lower: Array, higher: Array) -> float:
    """Return how often a value of the second exceeds one of the first; ties count half."""
    if not len(lower) or not len(higher):
        return float("nan")
    ordered = np.sort(lower)
    below = np.searchsorted(ordered, higher, "left") + np.searchsorted(ordered, higher, "right")
    return float(below.mean() / (2 * len(lower)))

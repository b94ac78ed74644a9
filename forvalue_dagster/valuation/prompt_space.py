"""Shift: how much a set's prompts differ from the validation prompts.

A noise fraction assumes that clean training rows look like the validation rows. Damage to a
response does not change its prompt, so prompts can test that. The mean last hidden state of each
prompt is described by its place among the validation prompts (principal coordinates, and the
distance from them), and a cross-fitted classifier tries to tell the two sets apart. Its ROC-AUC is
the size of the shift: one half for sets of one origin, one for sets without overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forvalue_dagster.valuation.noise import roc_auc

Array = NDArray[np.float64]

AXES = 16
MIN_ROWS = 10
_FOLDS = 5
_PENALTY = 0.1  # strong: a handful of rows must not be told apart by chance
_CLIPPED = (0.01, 0.99)


@dataclass(frozen=True)
class PromptSpace:
    """Coordinates of prompts among the validation prompts; plain numbers.

    Attributes:
        mean: mean of the validation prompts [D].
        axes: their principal directions [Q, D], divided by the standard deviation along each.
        directions: the same at unit length [Q, D].
        coordinates: coordinates of the validation prompts [M, Q + 1]; the last is the distance
            from the directions, computed as for prompts outside the fit.
    """

    mean: Array
    axes: Array
    directions: Array
    coordinates: Array

    def project(self, states: Array) -> Array:
        """Return the coordinates [N, Q + 1] of prompts [N, D]."""
        centred = states - self.mean
        along = centred @ self.directions.T
        outside = np.linalg.norm(centred - along @ self.directions, axis=1)
        return np.column_stack([centred @ self.axes.T, np.log(outside + 1e-9)])

    def to_arrays(self) -> dict[str, Array]:
        """Return arrays to be stored."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> PromptSpace:
        """Rebuild a stored space."""
        return cls(**dict(arrays))


def fit_prompt_space(states: Array) -> PromptSpace | None:
    """Fit the coordinates of validation prompts; None if they are too few or all alike.

    Args:
        states: mean last hidden state of each prompt [M, D].
    """
    if len(states) < MIN_ROWS or np.allclose(states, states[0], rtol=1e-4, atol=1e-6):
        return None
    space = _space(states)
    fold = np.random.default_rng(0).permutation(len(states)) % _FOLDS
    coordinates = space.coordinates.copy()
    for held_out in range(_FOLDS):
        outside = fold == held_out
        coordinates[outside, -1] = _space(states[~outside]).project(states[outside])[:, -1]
    return PromptSpace(space.mean, space.axes, space.directions, coordinates)


def _space(states: Array) -> PromptSpace:
    mean = states.mean(axis=0)
    _, lengths, directions = np.linalg.svd(states - mean, full_matrices=False)
    count = min(AXES, int((lengths > 1e-6 * lengths[0]).sum()))
    deviations = lengths[:count] / np.sqrt(len(states))
    kept = directions[:count]
    space = PromptSpace(mean, kept / deviations[:, None], kept, np.zeros((0, count + 1)))
    return PromptSpace(mean, space.axes, kept, space.project(states))


@dataclass(frozen=True)
class Shift:
    """How well a set's prompts can be told from the validation prompts.

    Attributes:
        auc: cross-fitted ROC-AUC; 0.5 is not at all.
        lower: lower end of its 95 % interval.
        rows: rows of the set.
    """

    auc: float
    lower: float
    rows: int


def measure_shift(reference: Array, coordinates: Array) -> Shift | None:
    """Try to tell a set from the validation prompts; None if it has fewer than five rows.

    Args:
        reference: coordinates of the validation prompts [M, Q + 1].
        coordinates: coordinates of the set's prompts [N, Q + 1].
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(coordinates) < _FOLDS:
        return None
    both = np.concatenate([reference, coordinates])
    both = np.clip(both, *np.quantile(both, _CLIPPED, axis=0))
    ours = np.repeat([False, True], [len(reference), len(coordinates)])
    model = LogisticRegression(C=_PENALTY, class_weight="balanced", max_iter=1000)
    judged = cross_val_predict(
        make_pipeline(StandardScaler(), model),
        both,
        ours,
        cv=StratifiedKFold(_FOLDS, shuffle=True, random_state=0),
        method="decision_function",
    )
    auc = roc_auc(judged[~ours], judged[ours])
    spread = _standard_error(auc, len(reference), len(coordinates))
    return Shift(auc, auc - 1.96 * spread, len(coordinates))


def _standard_error(auc: float, lower: int, higher: int) -> float:
    """Return the standard error of an AUC (Hanley and McNeil 1982)."""
    first, second = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (
        auc * (1 - auc) + (higher - 1) * (first - auc**2) + (lower - 1) * (second - auc**2)
    ) / (lower * higher)
    return float(np.sqrt(max(variance, 0.0)))

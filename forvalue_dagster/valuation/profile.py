"""The validation profile: what is kept of the trusted rows, and the direction values look along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from forvalue_dagster.valuation.columns import FORWARD_STATISTICS
from forvalue_dagster.valuation.features import TokenFeatures, token_features
from forvalue_dagster.valuation.precision import FeaturePrecision
from forvalue_dagster.valuation.preconditioner import Metric, Preconditioner
from forvalue_dagster.valuation.prediction_error import (
    PredictionErrors,
    ResponsePositions,
    workspace_positions,
)
from forvalue_dagster.valuation.statistics import summarise_rows
from forvalue_dagster.valuation.unembedding import Unembedding

_TENSORS = ("gradients", "errors", "hidden_mean", "hidden_second_moment", "rows")


@dataclass(frozen=True)
class ValueDirection:
    """Ḡ of every group, in the metric of the preconditioner.

    Attributes:
        groups: names, in the order of `gradients`.
        weights: share of the validation rows in each group [G], float64; sums to 1.
        gradients: Ḡ_g in the metric [G, V, D].
        metric: of the preconditioner, in the same dtype.
        norm: ‖Ḡ‖ of the mean over all validation rows.
    """

    groups: tuple[str, ...]
    weights: Tensor
    gradients: Tensor
    metric: Metric
    norm: float


@dataclass(frozen=True)
class ValidationProfile:
    """The trusted rows in closed form.

    Attributes:
        groups: names of the validation groups.
        counts: validation rows in each group.
        gradients: Ḡ_g = mean over the group's rows of G_v [G, V, D], float32 (float64 if the
            model is).
        errors: mean over the group's rows of Σ_t e_t [G, V], same dtype; what centring needs.
        hidden_mean: mean of h over all response tokens [D], float64.
        hidden_second_moment: A = mean of h hᵀ over the same [D, D], float64.
        rows: which validation row each of the M entries below belongs to [M], int64.
        statistics: forward statistics of those rows, name → [M] float64.
        features: token features of those rows, for pairs; None if they were not kept.
        fingerprint: of the model and the options that made it, as the engine writes it.
    """

    groups: tuple[str, ...]
    counts: tuple[int, ...]
    gradients: Tensor
    errors: Tensor
    hidden_mean: Tensor
    hidden_second_moment: Tensor
    rows: Tensor
    statistics: dict[str, Tensor]
    features: TokenFeatures | None = None
    fingerprint: str = ""

    def direction(
        self, preconditioner: Preconditioner, *, overwrite: bool = False
    ) -> ValueDirection:
        """Return the direction that values are measured along.

        Args:
            preconditioner: the metric.
            overwrite: write over the profile's gradients, which are then spent; where there are
                many groups this halves the memory.
        """
        metric = preconditioner.metric(self.hidden_mean, self.hidden_second_moment)
        metric = metric.to(self.gradients)
        gradients = self.gradients
        if metric.mean is not None or metric.whitening is not None:
            gradients = gradients if overwrite else torch.empty_like(gradients)
            for own, target, errors in zip(self.gradients, gradients, self.errors, strict=True):
                if metric.mean is not None:  # Σ e (h − μ)ᵀ = Σ e hᵀ − (Σ e) μᵀ
                    own = own - errors[:, None] * metric.mean
                target.copy_(own if metric.whitening is None else own @ metric.whitening)
        counts = torch.tensor(self.counts, dtype=torch.float64)
        weights = counts / counts.sum()
        mean = sum(
            weight * gradient for weight, gradient in zip(weights.tolist(), gradients, strict=True)
        )
        assert isinstance(mean, Tensor)  # at least one group
        norm = float(torch.linalg.vector_norm(mean, dtype=torch.float64))
        if not norm > 0:
            raise ValueError(f"The validation rows' mean gradient has norm {norm}; no direction.")
        return ValueDirection(self.groups, weights, gradients, metric, norm)

    def to(self, device: torch.device) -> ValidationProfile:
        """Return the profile with what scoring needs on a device."""
        return replace(
            self,
            gradients=self.gradients.to(device),
            errors=self.errors.to(device),
            hidden_mean=self.hidden_mean.to(device),
            hidden_second_moment=self.hidden_second_moment.to(device),
        )

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return (tensors, plain metadata) to be stored; `from_tensors` is the inverse."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        tensors |= {f"statistics.{name}": values for name, values in self.statistics.items()}
        if self.features is not None:
            tensors |= {f"features.{k}": v for k, v in self.features.to_tensors().items()}
        return tensors, {
            "groups": list(self.groups),
            "counts": list(self.counts),
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
    ) -> ValidationProfile:
        """Rebuild a stored profile."""
        prefix = "features."
        features = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        return cls(
            groups=tuple(str(name) for name in metadata["groups"]),
            counts=tuple(int(count) for count in metadata["counts"]),
            statistics={name: tensors[f"statistics.{name}"] for name in FORWARD_STATISTICS},
            features=TokenFeatures.from_tensors(features) if features else None,
            fingerprint=str(metadata["fingerprint"]),
            **{name: tensors[name] for name in _TENSORS},
        )


class ProfileBuilder:
    """Accumulates a `ValidationProfile` batch by batch; memory does not grow with the rows.

    Args:
        unembedding: the model's.
        groups: names of all the groups that will occur.
        keep: how the rows' token features are kept; None keeps none.
        fingerprint: kept with the profile.
    """

    def __init__(
        self,
        unembedding: Unembedding,
        groups: Sequence[str],
        keep: FeaturePrecision | None = None,
        fingerprint: str = "",
    ) -> None:
        if not groups or len(set(groups)) != len(groups):
            raise ValueError(f"Expected distinct group names, at least one; got {list(groups)}.")
        self._unembedding = unembedding
        self._index = {name: number for number, name in enumerate(groups)}
        self._counts = [0] * len(groups)
        self._keep = keep
        self._fingerprint = fingerprint
        self._features: list[TokenFeatures] = []
        self._rows: list[int] = []
        self._statistics: dict[str, list[float]] = {name: [] for name in FORWARD_STATISTICS}
        self._tokens = 0
        self._gradients: Tensor | None = None
        self._errors: Tensor | None = None
        width, device = unembedding.width, unembedding.weight.device
        self._hidden_sum = torch.zeros(width, dtype=torch.float64, device=device)
        self._hidden_square = torch.zeros(width, width, dtype=torch.float64, device=device)

    @torch.inference_mode()
    def add(
        self, positions: ResponsePositions, groups: Sequence[str], rows: Sequence[int]
    ) -> list[bool]:
        """Add rows, each to its group; a row with a non-finite statistic is left out.

        Args:
            positions: the response positions of the rows.
            groups: the group of each row.
            rows: what each row is known by.

        Returns:
            For each row whether it was taken.
        """
        taken: list[bool] = []
        limit = workspace_positions(self._unembedding, positions.hidden)
        for place, chunk in positions.chunks(limit):
            span = slice(place.start, place.stop)
            taken += self._add_chunk(chunk, groups[span], rows[span])
        return taken

    def _add_chunk(
        self, chunk: ResponsePositions, groups: Sequence[str], rows: Sequence[int]
    ) -> list[bool]:
        errors = PredictionErrors(self._unembedding, chunk)
        taken = errors.finite_rows()
        if not all(taken):
            if any(taken):
                chosen = list(compress(groups, taken)), list(compress(rows, taken))
                self._add_chunk(chunk.select(taken), *chosen)
            return taken
        if self._gradients is None or self._errors is None:
            shape = (len(self._index), self._unembedding.vocabulary_size, self._unembedding.width)
            self._gradients = chunk.hidden.new_zeros(shape)
            self._errors = chunk.hidden.new_zeros(shape[:2])
        members = [
            (self._index[group], chunk.positions_of([g == group for g in groups]))
            for group in set(groups)
        ]
        for block, error in errors.blocks():
            for index, member in members:
                own = error[member]
                self._gradients[index, block].addmm_(own.T, chunk.hidden[member])
                self._errors[index, block] += own.sum(dim=0)
        for group in groups:
            self._counts[self._index[group]] += 1
        for statistics in summarise_rows(errors.tokens, chunk):
            for name, value in statistics.items():
                self._statistics[name].append(value)
        if self._keep is not None:
            self._features.append(token_features(errors, chunk, self._keep))
        self._rows += rows
        hidden = chunk.hidden.double()
        self._tokens += len(hidden)
        self._hidden_sum += hidden.sum(dim=0)
        self._hidden_square.addmm_(hidden.T, hidden)
        return taken

    def build(self) -> ValidationProfile:
        """Return the profile.

        Raises:
            ValueError: if a group has no row.
        """
        empty = [name for name, index in self._index.items() if self._counts[index] == 0]
        if empty or self._gradients is None or self._errors is None:
            raise ValueError(
                f"No validation row of group {', '.join(map(repr, empty))} could be used; each "
                "needs at least one row with a finite, non-empty response."
            )
        counts = torch.tensor(self._counts, device=self._gradients.device)
        return ValidationProfile(
            groups=tuple(self._index),
            counts=tuple(self._counts),
            gradients=self._gradients / counts[:, None, None],
            errors=self._errors / counts[:, None],
            hidden_mean=self._hidden_sum / self._tokens,
            hidden_second_moment=self._hidden_square / self._tokens,
            rows=torch.tensor(self._rows),
            statistics={
                name: torch.tensor(values, dtype=torch.float64)
                for name, values in self._statistics.items()
            },
            features=TokenFeatures.concatenate(self._features) if self._features else None,
            fingerprint=self._fingerprint,
        )

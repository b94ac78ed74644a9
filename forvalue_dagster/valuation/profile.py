"""The validation profile: what is kept of the trusted rows, and the direction values look along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress

import torch
from torch import Tensor

from forvalue_dagster.valuation.columns import FORWARD_STATISTICS
from forvalue_dagster.valuation.preconditioner import Preconditioner
from forvalue_dagster.valuation.prediction_error import (
    PredictionErrors,
    ResponsePositions,
    workspace_positions,
)
from forvalue_dagster.valuation.statistics import summarise_rows
from forvalue_dagster.valuation.unembedding import Unembedding


@dataclass(frozen=True)
class ValueDirection:
    """Ḡ of every group, in the metric of the preconditioner.

    Attributes:
        groups: names, in the order of `gradients`.
        weights: share of the validation rows in each group [G], float64; sums to 1.
        gradients: Ḡ_g L [G, V, D].
        whitening: L [D, D] in the same dtype, or None.
        norm: ‖Ḡ‖ of the mean over all validation rows.
    """

    groups: tuple[str, ...]
    weights: Tensor
    gradients: Tensor
    whitening: Tensor | None
    norm: float

    def whiten(self, hidden: Tensor) -> Tensor:
        """Return h̃ = Lᵀ h for hidden states [P, D]."""
        return hidden if self.whitening is None else hidden @ self.whitening


@dataclass(frozen=True)
class ValidationProfile:
    """The trusted rows in closed form.

    Attributes:
        groups: names of the validation groups.
        counts: validation rows in each group.
        gradients: Ḡ_g = mean over the group's rows of G_v [G, V, D], float32 (float64 if the
            model is).
        hidden_mean: mean of h over all response tokens [D], float64.
        hidden_second_moment: A = mean of h hᵀ over the same [D, D], float64.
        statistics: forward statistics of each validation row, name → [M] float64.
    """

    groups: tuple[str, ...]
    counts: tuple[int, ...]
    gradients: Tensor
    hidden_mean: Tensor
    hidden_second_moment: Tensor
    statistics: dict[str, Tensor]

    def direction(self, preconditioner: Preconditioner) -> ValueDirection:
        """Return the direction that values are measured along."""
        whitening = preconditioner.whitening(self.hidden_second_moment)
        if whitening is not None:
            whitening = whitening.to(self.gradients.dtype)
        gradients = self.gradients if whitening is None else self.gradients @ whitening
        counts = torch.tensor(self.counts, dtype=torch.float64)
        weights = counts / counts.sum()
        mean = sum(
            weight * gradient for weight, gradient in zip(weights.tolist(), gradients, strict=True)
        )
        assert isinstance(mean, Tensor)  # at least one group
        norm = float(torch.linalg.vector_norm(mean, dtype=torch.float64))
        if not norm > 0:
            raise ValueError(f"The validation rows' mean gradient has norm {norm}; no direction.")
        return ValueDirection(self.groups, weights, gradients, whitening, norm)

    def to(self, device: torch.device) -> ValidationProfile:
        """Return the profile with what scoring needs on a device."""
        return replace(
            self,
            gradients=self.gradients.to(device),
            hidden_second_moment=self.hidden_second_moment.to(device),
        )

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, list[str] | list[int]]]:
        """Return (tensors, plain metadata) to be stored; `from_tensors` is the inverse."""
        tensors = {
            "gradients": self.gradients,
            "hidden_mean": self.hidden_mean,
            "hidden_second_moment": self.hidden_second_moment,
        } | {f"statistics.{name}": values for name, values in self.statistics.items()}
        return tensors, {"groups": list(self.groups), "counts": list(self.counts)}

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, Tensor], metadata: dict[str, list[str] | list[int]]
    ) -> ValidationProfile:
        """Rebuild a stored profile."""
        return cls(
            groups=tuple(str(name) for name in metadata["groups"]),
            counts=tuple(int(count) for count in metadata["counts"]),
            gradients=tensors["gradients"],
            hidden_mean=tensors["hidden_mean"],
            hidden_second_moment=tensors["hidden_second_moment"],
            statistics={name: tensors[f"statistics.{name}"] for name in FORWARD_STATISTICS},
        )


class ProfileBuilder:
    """Accumulates a `ValidationProfile` batch by batch; memory does not grow with the rows.

    Args:
        unembedding: the model's.
        groups: names of all the groups that will occur.
    """

    def __init__(self, unembedding: Unembedding, groups: Sequence[str]) -> None:
        if not groups or len(set(groups)) != len(groups):
            raise ValueError(f"Expected distinct group names, at least one; got {list(groups)}.")
        self._unembedding = unembedding
        self._index = {name: number for number, name in enumerate(groups)}
        self._counts = [0] * len(groups)
        self._statistics: dict[str, list[float]] = {name: [] for name in FORWARD_STATISTICS}
        self._tokens = 0
        self._gradients: Tensor | None = None
        width, device = unembedding.width, unembedding.weight.device
        self._hidden_sum = torch.zeros(width, dtype=torch.float64, device=device)
        self._hidden_square = torch.zeros(width, width, dtype=torch.float64, device=device)

    @torch.inference_mode()
    def add(self, positions: ResponsePositions, groups: Sequence[str]) -> list[bool]:
        """Add rows, each to its group; a row with a non-finite statistic is left out.

        Args:
            positions: the response positions of the rows.
            groups: the group of each row.

        Returns:
            For each row whether it was taken.
        """
        taken: list[bool] = []
        limit = workspace_positions(self._unembedding, positions.hidden)
        for rows, chunk in positions.chunks(limit):
            taken += self._add_chunk(chunk, [groups[row] for row in rows])
        return taken

    def _add_chunk(self, chunk: ResponsePositions, groups: Sequence[str]) -> list[bool]:
        errors = PredictionErrors(self._unembedding, chunk)
        rows = chunk.row_slices()
        finite = torch.isfinite(errors.tokens.nll) & torch.isfinite(errors.tokens.entropy)
        taken = [bool(finite[row].all()) for row in rows]
        if not all(taken):
            if any(taken):
                self._add_chunk(chunk.select(taken), list(compress(groups, taken)))
            return taken
        if self._gradients is None:
            shape = (len(self._index), self._unembedding.vocabulary_size, self._unembedding.width)
            self._gradients = chunk.hidden.new_zeros(shape)
        members = [
            (self._index[group], chunk.positions_of([g == group for g in groups]))
            for group in set(groups)
        ]
        for block, error in errors.blocks():
            for index, member in members:
                self._gradients[index, block].addmm_(error[member].T, chunk.hidden[member])
        for group in groups:
            self._counts[self._index[group]] += 1
        for statistics in summarise_rows(errors.tokens, chunk):
            for name, value in statistics.items():
                self._statistics[name].append(value)
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
        if empty or self._gradients is None:
            raise ValueError(
                f"No validation row of group {', '.join(map(repr, empty))} could be used; each "
                "needs at least one row with a finite, non-empty response."
            )
        counts = torch.tensor(self._counts, device=self._gradients.device)
        return ValidationProfile(
            groups=tuple(self._index),
            counts=tuple(self._counts),
            gradients=self._gradients / counts[:, None, None],
            hidden_mean=self._hidden_sum / self._tokens,
            hidden_second_moment=self._hidden_square / self._tokens,
            statistics={
                name: torch.tensor(values, dtype=torch.float64)
                for name, values in self._statistics.items()
            },
        )

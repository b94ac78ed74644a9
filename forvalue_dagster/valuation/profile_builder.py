"""Building a validation profile batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

import torch
from torch import Tensor

from forvalue_dagster.options.valuation import FeaturePrecision
from forvalue_dagster.valuation.columns import FORWARD_STATISTICS
from forvalue_dagster.valuation.features import TokenFeatures, token_features
from forvalue_dagster.valuation.positions import ResponsePositions
from forvalue_dagster.valuation.prediction_error import PredictionErrors, positions_at_once
from forvalue_dagster.valuation.profile import ValidationProfile
from forvalue_dagster.valuation.statistics import summarise_rows
from forvalue_dagster.valuation.unembedding import Unembedding


class ProfileBuilder:
    """Accumulates a `ValidationProfile` batch by batch; memory does not grow with the rows.

    Args:
        unembedding: the model's unembedding.
        groups: names of all the groups that will occur.
        keep: precision of the rows' token features to keep; None keeps none.
        fingerprint: fingerprint to store with the profile.
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
            rows: index of each row.

        Returns:
            Whether each row was added.
        """
        taken: list[bool] = []
        limit = positions_at_once(self._unembedding, positions)
        for place, chunk in positions.chunks(limit):
            span = slice(place.start, place.stop)
            taken += self._add_chunk(chunk, groups[span], rows[span])
        return taken

    def _add_chunk(
        self, chunk: ResponsePositions, groups: Sequence[str], rows: Sequence[int]
    ) -> list[bool]:
        top = 0 if self._keep is None else self._keep.top_errors
        errors = PredictionErrors(self._unembedding, chunk, top=top, keep=True)
        taken = errors.finite_rows()
        if not all(taken):
            if any(taken):
                chosen = list(compress(groups, taken)), list(compress(rows, taken))
                self._add_chunk(chunk.select(taken), *chosen)
            return taken
        if self._gradients is None or self._errors is None:
            shape = (len(self._index), self._unembedding.vocabulary_size, self._unembedding.width)
            self._gradients = chunk.states.new_zeros(shape)
            self._errors = chunk.states.new_zeros(shape[:2])
        members = [
            (self._index[group], chunk.positions_of([g == group for g in groups]))
            for group in set(groups)
        ]
        for block, error in errors.blocks():
            for index, member in members:
                own = error[member]
                self._gradients[index, block].addmm_(own.T, chunk.states[member])
                self._errors[index, block] += own.sum(dim=0)
        for group in groups:
            self._counts[self._index[group]] += 1
        for name, values in zip(
            FORWARD_STATISTICS, summarise_rows(errors.tokens, chunk).T.tolist(), strict=True
        ):
            self._statistics[name] += values
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

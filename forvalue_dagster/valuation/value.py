"""The exact value of rows against a validation direction, with norms and statistics.

    value_g(i) = ⟨G_i, Ḡ_g⟩,   alignment(i) = ⟨G_i, Ḡ⟩ / (‖G_i‖ ‖Ḡ‖)

(For-Value, arXiv 2508.10180, Eq. 1, with the full vocabulary.) Positive means that a gradient
step on row i raises the likelihood of the validation rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forvalue_dagster.valuation.prediction_error import (
    PredictionErrors,
    ResponsePositions,
    TokenStatistics,
    workspace_positions,
)
from forvalue_dagster.valuation.profile import ValueDirection
from forvalue_dagster.valuation.unembedding import Unembedding


@dataclass(frozen=True)
class RowValues:
    """The values of R rows along a direction, however they were computed.

    Attributes:
        groups: value of each row for each group [R, G], float64.
        value: against the mean of all validation rows [R], float64.
        norm: ‖G_i‖ in the direction's metric [R], float64.
        alignment: cosine form of `value` [R], float64 in [−1, 1].
    """

    groups: Tensor
    value: Tensor
    norm: Tensor
    alignment: Tensor

    @classmethod
    def measure(cls, direction: ValueDirection, groups: Tensor, squared_norms: Tensor) -> RowValues:
        """Derive everything from ⟨G_i, Ḡ_g⟩ [R, G] and ‖G_i‖² [R], float64."""
        value = groups @ direction.weights
        norm = squared_norms.sqrt()
        # A row without gradient points nowhere: its cosine is zero, not 0/0.
        alignment = torch.where(norm > 0, value / (norm * direction.norm), 0.0)
        return cls(groups, value, norm, alignment)


@dataclass(frozen=True)
class ExactValues:
    """The exact outcome for R rows with P response tokens.

    Attributes:
        rows: their values.
        tokens: statistics of every response token [P].
    """

    rows: RowValues
    tokens: TokenStatistics


@torch.inference_mode()
def exact_values(
    unembedding: Unembedding, positions: ResponsePositions, direction: ValueDirection
) -> ExactValues:
    """Score rows, block by block of their gradients: groups and norms cost almost nothing.

    Args:
        unembedding: the model's.
        positions: the rows' response positions.
        direction: from `ValidationProfile.direction`, on the same device and dtype.
    """
    groups, squared_norms, tokens = [], [], []
    limit = workspace_positions(unembedding, positions.hidden)
    for _, chunk in positions.chunks(limit):
        errors = PredictionErrors(unembedding, chunk)
        rows = chunk.row_slices()
        whitened = direction.metric.apply(chunk.hidden)
        inner = torch.zeros(len(rows), len(direction.groups) + 1, dtype=torch.float64)
        for block, error in errors.blocks():
            against = direction.gradients[:, block]
            inner += torch.stack(
                [_inner_products(error[row].T @ whitened[row], against) for row in rows]
            ).to("cpu", torch.float64)
        groups.append(inner[:, :-1])
        squared_norms.append(inner[:, -1])
        tokens.append(errors.tokens)
    return ExactValues(
        RowValues.measure(direction, torch.cat(groups), torch.cat(squared_norms)),
        TokenStatistics.concatenate(tokens),
    )


def _inner_products(gradient: Tensor, against: Tensor) -> Tensor:
    """Return ⟨G, Ḡ_g⟩ for every group, then ‖G‖², all of one block [G + 1]."""
    flat = gradient.flatten()
    return torch.stack([torch.dot(flat, g.flatten()) for g in against] + [torch.dot(flat, flat)])

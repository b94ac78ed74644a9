"""The value of a validation row, or of a copy of it, for all the other validation rows.

A validation row points along Ḡ partly because it is in Ḡ. With the row v left out of M rows, for a
copy v′ of it (v′ = v for the row itself), exactly:

    ⟨G_v′, Ḡ₋ᵥ⟩ = (M ⟨G_v′, Ḡ⟩ − ⟨G_v′, G_v⟩) / (M − 1)
    ‖Ḡ₋ᵥ‖²      = (M² ‖Ḡ‖² − 2 M ⟨G_v, Ḡ⟩ + ‖G_v‖²) / (M − 1)²
"""

from __future__ import annotations

import torch
from torch import Tensor

from forvalue_dagster.valuation.value import RowValues


def leave_one_out(
    values: RowValues,
    owners: RowValues,
    own_pairs: Tensor,
    groups: Tensor,
    counts: Tensor,
    norm: float,
) -> RowValues:
    """Return the values of validation rows, or of copies of them, for the other rows.

    Args:
        values: values of R rows v′, against all validation rows.
        owners: values of the rows v that each is a copy of [R].
        own_pairs: ⟨G_v′, G_v⟩ [R], float64.
        groups: index of v's group [R], int64.
        counts: validation rows in each group [G].
        norm: ‖Ḡ‖.

    Returns:
        The same for Ḡ without v; NaN for the value for a group whose only row is v.

    Raises:
        ValueError: if there is only one validation row, so that none is left.
    """
    rows = int(counts.sum())
    if rows < 2:
        raise ValueError("A single validation row cannot be left out; expected at least two.")
    value = (rows * values.value - own_pairs) / (rows - 1)
    own_counts = counts[groups].to(torch.float64)
    place = groups[:, None]
    within = values.groups.gather(1, place)[:, 0]
    left = torch.where(
        own_counts > 1, (own_counts * within - own_pairs) / (own_counts - 1), torch.nan
    )
    squared = (rows**2 * norm**2 - 2 * rows * owners.value + owners.norm**2) / (rows - 1) ** 2
    length = squared.clamp(min=0).sqrt() * values.norm
    return RowValues(
        groups=values.groups.scatter(1, place, left[:, None]),
        value=value,
        norm=values.norm,
        alignment=torch.where(length > 0, value / length, 0.0),
    )

"""A validation row and its copies, valued against all other rows, as if it had never been there."""

from __future__ import annotations

import pytest
import torch

from forvalue_dagster.valuation.leave_one_out import leave_one_out
from forvalue_dagster.valuation.value import RowValues

GROUPS = torch.tensor([0, 0, 0, 1, 1, 2])
COUNTS = torch.tensor([3, 2, 1])


def values(gradients: torch.Tensor, validation: torch.Tensor, groups: torch.Tensor) -> RowValues:
    """Value gradients [R, D] against validation gradients [M, D], straight from the definition."""
    means = torch.stack([validation[groups == g].mean(dim=0) for g in range(3)])
    mean = validation.mean(dim=0)
    norm = gradients.norm(dim=1)
    value = gradients @ mean
    return RowValues(gradients @ means.T, value, norm, value / (norm * mean.norm()))


@pytest.mark.parametrize("copies", [False, True])
def test_equals_a_profile_that_never_had_the_row(copies: bool) -> None:
    torch.manual_seed(0)
    validation = torch.randn(6, 9, dtype=torch.float64)
    rows = validation + (torch.randn(6, 9, dtype=torch.float64) if copies else 0)
    told = leave_one_out(
        values(rows, validation, GROUPS),
        values(validation, validation, GROUPS),
        (rows * validation).sum(dim=1),
        GROUPS,
        COUNTS,
        float(validation.mean(dim=0).norm()),
    )
    for row in range(6):
        rest = torch.arange(6) != row
        expected = values(rows[[row]], validation[rest], GROUPS[rest])
        torch.testing.assert_close(told.value[[row]], expected.value)
        torch.testing.assert_close(told.alignment[[row]], expected.alignment)
        torch.testing.assert_close(told.groups[[row]], expected.groups, equal_nan=True)
    # The only row of its group: nothing is left to be valued against.
    assert told.groups.isnan().sum() == 1
    assert told.groups[5, 2].isnan()


def test_a_single_row_cannot_be_left_out() -> None:
    one = RowValues(*(torch.ones(1, 1, dtype=torch.float64), *(torch.ones(1),) * 3))
    with pytest.raises(ValueError, match="single validation row"):
        leave_one_out(one, one, torch.ones(1), torch.tensor([0]), torch.tensor([1]), 1.0)

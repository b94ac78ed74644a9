"""Prompts of one origin cannot be told apart; others can, however they differ."""

from __future__ import annotations

import numpy as np
import pytest

from forvalue_dagster.valuation.prompt_space import (
    PromptSpace,
    fit_prompt_space,
    measure_shift,
)

WIDTH = 64
# A few directions hold most of the variance, as in last hidden states.
SCALES = np.geomspace(5, 0.05, WIDTH)


def prompts(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.standard_normal((rows, WIDTH)) * SCALES + 3


def moved(rng: np.random.Generator, rows: int) -> np.ndarray:
    return prompts(rng, rows) + 2 * SCALES[0] * np.eye(WIDTH)[0]


def inside(rng: np.random.Generator, rows: int) -> np.ndarray:
    """A tight cluster amid the others: no row of it is far from any."""
    return 3 + 0.1 * SCALES * rng.standard_normal((rows, WIDTH)) + 1.2 * SCALES


def outside(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Displaced where the others hardly vary."""
    return prompts(rng, rows) + 200 * SCALES[-1] * np.eye(WIDTH)[-1]


@pytest.mark.parametrize("rows", [20, 200])
@pytest.mark.parametrize(
    ("draw", "shifted"), [(prompts, False), (moved, True), (inside, True), (outside, True)]
)
def test_shift(draw, shifted: bool, rows: int) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        space = fit_prompt_space(prompts(rng, 100))
        assert space is not None
        shift = measure_shift(space.coordinates, space.project(draw(rng, rows)))
        assert shift is not None
        assert shift.rows == rows
        assert (shift.lower > 0.7) == shifted, shift


def test_where_nothing_can_be_told() -> None:
    rng = np.random.default_rng(0)
    assert fit_prompt_space(prompts(rng, 9)) is None
    assert fit_prompt_space(np.ones((50, WIDTH))) is None
    space = fit_prompt_space(prompts(rng, 50))
    assert space is not None
    assert measure_shift(space.coordinates, space.project(prompts(rng, 4))) is None


def test_coordinates_of_a_row_depend_on_the_row_alone() -> None:
    rng = np.random.default_rng(0)
    space = fit_prompt_space(prompts(rng, 50))
    assert space is not None
    rows = prompts(rng, 8)
    np.testing.assert_allclose(space.project(rows)[3], space.project(rows[3:4])[0])
    again = PromptSpace.from_arrays(space.to_arrays())
    assert (again.project(rows) == space.project(rows)).all()
    np.testing.assert_allclose(space.coordinates[:, :-1].std(axis=0), 1, rtol=1e-6)

"""Attribution: the strongest pairs, whatever the windows; exact where candidates are computed."""

from __future__ import annotations

from itertools import pairwise as neighbours

import numpy as np
import polars as pl
import pytest
import torch

import forvalue_dagster as fv
from forvalue_dagster.engine.attribution import (
    attribute,
    pairs_from_features,
    pairwise,
    refine_attribution,
)
from forvalue_dagster.engine.scoring import build_profile
from forvalue_dagster.options.selection import Attribution
from forvalue_dagster.options.valuation import FeaturePrecision, ValuationOptions
from tests.engine.test_functions import TRAIN, VALIDATION
from tests.tiny import tiny_loaded

N, M = 30, 7


def places() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "shard": ["a" if i < 20 else "b" for i in range(N)],
            "row": [i if i < 20 else i - 20 for i in range(N)],
            "sample_id": [f"t{i:02d}" for i in range(N)],
        }
    )


def trusted() -> pl.DataFrame:
    return pl.DataFrame({"shard": "v", "row": range(M), "sample_id": [f"v{i}" for i in range(M)]})


@pytest.mark.parametrize("cuts", [[N], [10, 20], [1] * N])
@pytest.mark.parametrize("top", [1, 3, 100])
def test_the_strongest_pairs_of_both_sides(cuts: list[int], top: int) -> None:
    values = torch.randn(N, M, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bounds = np.cumsum([0, *cuts])
    windows = [(places()[a:b], values[a:b]) for a, b in neighbours(bounds.tolist())]
    by_validation = attribute(windows, trusted(), top, "validation")
    for column in range(M):
        order = values[:, column].argsort(descending=True).tolist()
        for effect, expected in (("helps", order), ("hurts", order[::-1])):
            mine = by_validation.filter(validation_row=column, effect=effect)
            assert mine["sample_id"].to_list() == [f"t{i:02d}" for i in expected[:top]]
            assert mine["rank"].to_list() == list(range(1, min(top, N) + 1))
            assert mine["value"].to_list() == values[expected[:top], column].tolist()
    by_training = attribute(windows, trusted(), top, "training")
    for row, place in enumerate(places().iter_rows(named=True)):
        order = values[row].argsort(descending=True).tolist()
        mine = by_training.filter(shard=place["shard"], row=place["row"], effect="helps")
        assert mine["validation_row"].to_list() == order[:top]


def test_pairs_from_features_are_near_the_exact_ones_and_candidates_become_exact() -> None:
    loaded = tiny_loaded("qwen2", max_length=128)
    options = ValuationOptions(window_rows=5, features=FeaturePrecision(64, "float16"))
    train, validation = fv.read_rows(TRAIN), fv.read_rows(VALIDATION)
    profile, _ = build_profile(loaded, validation, options)
    table = fv.sample_features(TRAIN, model=loaded, features=options.features)
    exact = pairwise(loaded, train, validation, options)
    windows = list(pairs_from_features(table.lazy(), profile, options))
    assert [len(lines) for lines, _ in windows] == [5, 5, 5, 2]
    pairs = torch.cat([values for _, values in windows])
    # The profile keeps its rows in the order of the pass.
    torch.testing.assert_close(
        pairs, exact[:, profile.rows], rtol=0, atol=0.02 * float(exact.abs().max())
    )
    ordered = validation[profile.rows.tolist()]
    candidates = attribute(windows, ordered, 8, "validation")

    def rescore(chosen: pl.DataFrame) -> torch.Tensor:
        rows = chosen.join(train, on=["shard", "row"], how="left", maintain_order="left")
        return pairwise(loaded, rows, ordered, options)

    refined = refine_attribution(candidates, rescore, ordered, 4)
    truth = attribute([(train, exact[:, profile.rows])], ordered, 4, "validation")
    assert refined.drop("value").equals(truth.drop("value"))
    np.testing.assert_allclose(refined["value"], truth["value"], rtol=1e-5)


def test_meaningless_options() -> None:
    with pytest.raises(ValueError, match=r"top\n.*greater than or equal to 1"):
        Attribution(top=0)
    with pytest.raises(ValueError, match="No training row is scored"):
        attribute([], trusted(), 3, "validation")

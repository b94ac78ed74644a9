"""Refining never changes a verdict wrongly, and says when it cannot settle one."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forvalue_dagster.engine.fidelity import measure_fidelity, seeded_sample
from forvalue_dagster.engine.refine import refine_scores
from forvalue_dagster.engine.selection import select_rows
from forvalue_dagster.options.selection import Refine, Selection


def tables(rows: int, noise: float, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Scores from features and exact ones that differ by `noise` of the gradient norm."""
    generator = np.random.default_rng(seed)
    norm = generator.uniform(0.5, 20, rows)
    exact = norm * generator.normal(0, 0.3, rows)
    tokens = generator.integers(1, 50, rows)
    frames = []
    for value, source in (
        (exact + norm * noise * generator.uniform(-1, 1, rows), "features"),
        (exact, "exact"),
    ):
        frames.append(
            pl.DataFrame(
                {
                    "sample_id": [f"{i:04d}" for i in range(rows)],
                    "shard": ["one" if i % 2 else "two" for i in range(rows)],
                    "row": range(rows),
                    "value": value,
                    "value_a": value * 2,
                    "value_b": value - norm * 0.01,
                    "alignment": value / norm,
                    "value_per_token": value / tokens,
                    "gradient_norm": norm,
                    "response_tokens": tokens,
                    "status": ["skipped" if i % 11 == 3 else "scored" for i in range(rows)],
                    "reason": ["no_response" if i % 11 == 3 else None for i in range(rows)],
                    "value_source": source,
                }
            )
        )
    return frames[0], frames[1]


def kept(scores: pl.DataFrame, selection: Selection) -> list[int]:
    decided = select_rows(scores, selection)
    return decided.filter(pl.col("drop_reason").is_null())["row"].to_list()


class Model:
    """Computes exact scores, and counts for how many rows it was asked."""

    def __init__(self, exact: pl.DataFrame) -> None:
        self.exact, self.asked = exact, []

    def __call__(self, lines: pl.DataFrame) -> pl.DataFrame:
        self.asked += lines["row"].to_list()
        return lines.select("shard", "row").join(
            self.exact, on=["shard", "row"], how="left", maintain_order="left"
        )


def policy(**limits: Any) -> Selection:
    """Ranks by value and, unless a limit is given, keeps everything."""
    return Selection(
        **{"by": "value", "keep_fraction": None, "max_noise_probability": None} | limits
    )


POLICIES = {
    "fraction": policy(keep_fraction=0.2),
    "count and threshold": policy(keep_count=40, min_value=0.5),
    "threshold": policy(min_value=0.5),
    "per token": policy(by="value_per_token", keep_fraction=0.3),
    "alignment": policy(by="alignment", keep_fraction=0.1),
    "tokens": policy(keep_fraction=0.5, token_budget=900),
    "mean": policy(across_groups="mean", keep_fraction=0.1),
    "maximum": policy(across_groups="maximum", keep_fraction=0.1),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("seed", range(5))
def test_the_kept_set_is_the_exact_one(name: str, seed: int) -> None:
    near, exact = tables(400, 0.005, seed)
    model = Model(exact)
    scores, outcome = refine_scores(near, POLICIES[name], model, Refine())
    assert outcome.resolved
    assert outcome.boundary == "resolved"
    assert kept(scores, POLICIES[name]) == kept(exact, POLICIES[name])
    assert outcome.refined == len(model.asked) == len(set(model.asked)) < 100
    refined = scores.filter(pl.col("value_source") == "refined")
    assert sorted(refined["row"]) == sorted(model.asked)
    values = exact.filter(pl.col("row").is_in(model.asked))["value"]
    assert refined["value"].to_list() == values.to_list()
    assert scores.schema == near.schema
    assert scores["row"].equals(near["row"])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 120),
    noise=st.floats(0, 0.5),
    keep=st.floats(0.01, 1),
    share=st.floats(0.05, 1),
    seed=st.integers(0, 1000),
)
def test_whatever_comes_a_resolved_boundary_is_right(
    rows: int, noise: float, keep: float, share: float, seed: int
) -> None:
    near, exact = tables(rows, noise, seed)
    selection, model = policy(keep_fraction=keep), Model(exact)
    # The band covers every error there is, as it does when the errors seen are typical.
    scores, outcome = refine_scores(near, selection, model, Refine(share, 8, safety=1000))
    assert len(model.asked) == len(set(model.asked)) == outcome.refined
    assert outcome.refined <= share * rows
    if outcome.resolved and (outcome.band >= noise or outcome.refined == outcome.rows):
        assert kept(scores, selection) == kept(exact, selection)


def test_a_budget_that_is_too_small_is_unresolved() -> None:
    near, exact = tables(400, 0.05, 0)
    _, outcome = refine_scores(near, policy(keep_fraction=0.2), Model(exact), Refine(0.02))
    assert outcome.refined == 7
    assert outcome.boundary == "unresolved"


def test_nothing_to_decide_needs_no_pass() -> None:
    near, exact = tables(50, 0.05, 0)
    model = Model(exact)
    _, outcome = refine_scores(near, policy(), model, Refine())
    assert (outcome.refined, outcome.resolved, model.asked) == (0, True, [])


def test_turns_have_no_boundary() -> None:
    near, exact = tables(50, 0.05, 0)
    with pytest.raises(ValueError, match="taken by turns, so no boundary"):
        refine_scores(near, policy(across_groups="balanced"), Model(exact), Refine())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_share": 0.0}, "max_share\\n.*greater than 0"),
        ({"first_rows": 0}, "first_rows\\n.*greater than or equal to 1"),
        ({"safety": 0.5}, "safety\\n.*greater than or equal to 1"),
    ],
)
def test_meaningless_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Refine(**options)


def test_fidelity_of_equal_reversed_and_constant_scores() -> None:
    near, exact = tables(40, 0.0, 1)
    same = measure_fidelity(near, exact)
    assert (same.spearman, same.top_overlap, same.largest_error) == (1.0, 1.0, 0.0)
    reverse = measure_fidelity(near.with_columns(value=-pl.col("value")), exact)
    assert reverse.spearman == pytest.approx(-1.0)
    assert reverse.top_overlap == 0
    constant = near.with_columns(value=pl.lit(1.0))
    assert measure_fidelity(constant, exact).spearman == 0.0


def test_the_sample_does_not_depend_on_the_order() -> None:
    near, _ = tables(60, 0.0, 1)
    sample = seeded_sample(near, 10)
    assert len(sample) == 10
    assert seeded_sample(near.reverse(), 10).equals(sample)
    assert not seeded_sample(near, 10, seed=1)["row"].equals(sample["row"])

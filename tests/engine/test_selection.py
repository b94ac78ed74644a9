from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forvalue_dagster.engine.selection import select_rows
from forvalue_dagster.options.selection import Selection


def scores(values: list[float | None], ids: str | None = None, tokens: int = 10) -> pl.DataFrame:
    count = len(values)
    return pl.DataFrame(
        {
            "sample_id": list(ids or "abcdefghijklmnop"[:count]),
            "shard": ["s"] * count,
            "row": list(range(count)),
            "value": values,
            "value_per_token": [None if v is None else v / tokens for v in values],
            "alignment": [None if v is None else -v for v in values],
            "noise_probability": [None] * count,
            "response_tokens": [tokens] * count,
            "status": ["skipped" if v is None else "scored" for v in values],
            "reason": ["no_response" if v is None else None for v in values],
        },
        schema_overrides={"noise_probability": pl.Float64, "value": pl.Float64},
    )


# Ranks by value and, unless a limit is given, keeps everything.
EVERYTHING = {"by": "value", "keep_fraction": None, "max_noise_probability": None}


def kept(frame: pl.DataFrame, **policy) -> list[int]:
    decided = select_rows(frame, Selection(**EVERYTHING | policy))
    assert decided.drop("drop_reason").equals(frame)
    return decided.filter(pl.col("drop_reason").is_null())["row"].to_list()


def test_without_limits_everything_scored_is_kept() -> None:
    assert kept(scores([1.0, None, -3.0])) == [0, 2]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"keep_fraction": 0.5}, [1, 3]),
        ({"keep_fraction": 0.51}, [1, 3, 4]),
        ({"keep_fraction": 0.001}, [3]),
        ({"keep_count": 1}, [3]),
        ({"token_budget": 29}, [1, 3]),
        ({"token_budget": 9}, []),
        ({"min_value": 2.5}, [1, 3]),
        ({"keep_fraction": 1.0, "keep_count": 3, "token_budget": 20}, [1, 3]),
        ({"by": "alignment", "keep_count": 1}, [0]),
    ],
)
def test_limits(policy: dict, expected: list[int]) -> None:
    assert kept(scores([-1.0, 3.0, None, 4.0, 2.0]), **policy) == expected


def test_by_default_the_better_half_by_alignment_is_kept_among_rows_that_are_not_noisy() -> None:
    noise = pl.Series([0.9, 0.1, 0.1, 0.1, 0.1])
    frame = scores([-9.0, 4.0, 3.0, 2.0, 1.0]).with_columns(noise_probability=noise)
    decided = select_rows(frame, Selection())  # alignment is minus the value here
    assert decided.filter(pl.col("drop_reason").is_null())["row"].to_list() == [2, 3, 4]
    assert decided["drop_reason"][0] == "above max_noise_probability"


def test_one_of_several_duplicates_is_kept() -> None:
    frame = scores([1.0, 1.0, 2.0], ids="aab")
    decided = select_rows(frame, Selection(**EVERYTHING))
    assert decided["drop_reason"].to_list() == [None, "duplicate", None]
    assert kept(frame, drop_duplicates=False) == [0, 1, 2]


def test_unreadable_rows_are_no_duplicates_of_each_other() -> None:
    frame = scores([None, None, 2.0]).with_columns(sample_id=pl.Series([None, None, "a"]))
    decided = select_rows(frame, Selection(**EVERYTHING))
    assert decided["drop_reason"].to_list() == ["skipped: no_response"] * 2 + [None]


def test_a_skipped_duplicate_does_not_displace_the_scored_row() -> None:
    frame = scores([None, 2.0], ids="aa")
    assert kept(frame) == [1]


def test_noise_probabilities_must_exist() -> None:
    with pytest.raises(ValueError, match=r"is 0\.5, but .* no noise probe .* Set it to None"):
        select_rows(scores([1.0]), Selection(max_noise_probability=0.5))
    noisy = scores([1.0, 2.0]).with_columns(noise_probability=pl.Series([0.2, 0.9]))
    assert kept(noisy, max_noise_probability=0.5) == [0]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.randoms())
def test_order_of_rows_decides_nothing(values: list[float], random) -> None:
    frame = scores([round(v) * 1.0 for v in values])  # many ties
    shuffled = frame.with_columns(pl.col("row")).sample(
        fraction=1, shuffle=True, seed=random.randint(0, 99)
    )
    policy = {"keep_count": 3}
    assert sorted(kept(shuffled, **policy)) == kept(frame, **policy)


@pytest.mark.parametrize(
    "policy",
    [{"keep_fraction": 0.0}, {"keep_fraction": 1.1}, {"keep_count": 0}, {"token_budget": 0}],
)
def test_meaningless_policies(policy: dict) -> None:
    ((name, value),) = policy.items()
    with pytest.raises(ValueError, match=rf"{name}\n.* should be .*input_value={value}"):
        Selection(**policy)


def grouped() -> pl.DataFrame:
    """Group a is large in scale; rows 0 and 1 serve a, 2 and 3 serve b, 4 a little of both."""
    a, b = [90.0, 80.0, -9.0, -9.0, 30.0], [-1.0, -1.0, 3.0, 2.0, 1.5]
    pooled = [(4 * x + y) / 5 for x, y in zip(a, b, strict=True)]
    return scores(pooled).with_columns(value_a=pl.Series(a), value_b=pl.Series(b))


@pytest.mark.parametrize(
    ("across", "expected"),
    [("pooled", [0, 1]), ("mean", [0, 1]), ("maximum", [0, 1]), ("balanced", [0, 2])],
)
def test_groups_share_the_kept_rows_as_asked(across: str, expected: list[int]) -> None:
    assert kept(grouped(), across_groups=across, keep_count=2) == expected


def test_groups_choose_in_turn_from_the_rows_that_are_left() -> None:
    assert kept(grouped(), across_groups="balanced", keep_count=4) == [0, 1, 2, 3]
    # Row 0 is gone: group a takes its next best.
    duplicate = grouped().with_columns(sample_id=pl.Series(list("xabcd")))
    gone = duplicate.with_columns(
        status=pl.Series(["skipped"] + ["scored"] * 4),
        reason=pl.Series(["non_finite"] + [None] * 4),
    )
    assert kept(gone, across_groups="balanced", keep_count=2) == [1, 2]


def test_every_group_counts_alike_in_the_mean_whatever_its_size() -> None:
    frame = grouped().with_columns(
        value_a=pl.Series([1.0, 0.0, 0.0, 0.0, 0.0]), value_b=pl.Series([0.0, 5.0, 0.0, 0.0, 0.0])
    )
    assert kept(frame, across_groups="mean", keep_count=1) == [1]
    assert kept(frame, across_groups="pooled", keep_count=1) == [0]


def test_groups_per_token() -> None:
    frame = grouped().with_columns(response_tokens=pl.Series([1000, 1, 10, 10, 10]))
    policy = {"by": "value_per_token", "across_groups": "maximum", "keep_count": 1}
    assert kept(frame, **policy) == [1]


def test_one_group_is_all_there_is() -> None:
    for across in ("mean", "maximum", "balanced"):
        assert kept(scores([1.0, 3.0, 2.0]), across_groups=across, keep_count=1) == [1]


def test_alignment_has_no_groups() -> None:
    with pytest.raises(ValueError, match="one alignment, not one for each group"):
        Selection(by="alignment", across_groups="mean")

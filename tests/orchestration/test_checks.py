"""Each check fails for the fault that it is there for."""

from __future__ import annotations

import dagster as dg
import polars as pl
import pytest

from forvalue_dagster.orchestration.checks import check_conservation, check_noise
from forvalue_dagster.orchestration.filtering import certify
from forvalue_dagster.quality.verdicts import judge_shard, mark_atypical

KEY = dg.AssetKey("value_scores")
PLACES = pl.DataFrame({"shard": ["s"] * 3, "row": [0, 1, 2]})
SCORES = PLACES.with_columns(
    value=pl.Series([1.0, None, -1.0]),
    status=pl.Series(["scored", "skipped", "scored"]),
    reason=pl.Series([None, "no_response", None]),
    nll=pl.Series([1.0, None, 2.0]),
    atypical_nll=pl.Series([False, None, True]),
)


def test_conservation_holds() -> None:
    result = check_conservation(KEY, SCORES, PLACES)
    assert result.passed
    assert result.description == "3 rows in = 2 scored + 1 skipped."


@pytest.mark.parametrize(
    ("scores", "problem"),
    [
        (SCORES.head(2), "1 rows without a score"),
        (pl.concat([SCORES, SCORES.tail(1)]), "1 rows scored twice"),
        (SCORES.with_columns(row=pl.col("row") + 1), "1 scores without a row"),
        (SCORES.with_columns(reason=pl.lit(None, pl.String)), "1 rows skipped without a reason"),
        (SCORES.with_columns(value=pl.lit(float("nan"))), "2 scored rows without a finite value"),
        (SCORES.with_columns(value=pl.lit(None, pl.Float64)), "2 scored rows without a finite"),
    ],
)
def test_conservation_names_what_was_lost(scores: pl.DataFrame, problem: str) -> None:
    result = check_conservation(KEY, scores, PLACES)
    assert not result.passed
    assert problem in result.description


@pytest.mark.parametrize(
    ("atypical", "noise"),
    [(0, 0.0), (5, 0.0), (24, 0.2), (100, 1.0)],
)
def test_noise_share_is_corrected_for_what_is_expected(atypical: int, noise: float) -> None:
    scores = pl.DataFrame(
        {"status": ["scored"] * 100, "atypical_nll": [i < atypical for i in range(100)]}
    )
    assert judge_shard("s", scores, 0.15).noise_share == pytest.approx(noise)


def test_the_threshold_itself_passes() -> None:
    scores = pl.DataFrame({"status": ["scored"] * 20, "atypical_nll": [True] * 4 + [False] * 16})
    noise = judge_shard("s", scores, 0.0).noise_share
    assert judge_shard("s", scores, noise).passed
    assert not judge_shard("s", scores, noise - 1e-9).passed


def test_a_shard_without_a_scored_row_does_not_pass() -> None:
    assert not judge_shard("s", SCORES.filter(pl.col("status") == "skipped"), 1.0).passed


def test_atypical_rows_exceed_the_95th_percentile() -> None:
    validation = pl.Series([float(i) for i in range(101)])
    marked = mark_atypical(pl.DataFrame({"nll": [94.9, 95.0, 95.1, None]}), validation)
    assert marked["atypical_nll"].to_list() == [False, False, True, None]


def test_the_gate_tells_its_figure() -> None:
    result = check_noise(KEY, "s", SCORES, 0.15)
    assert not result.passed
    assert result.severity == dg.AssetCheckSeverity.ERROR
    assert result.description.startswith("Shard 's': estimated noise 47.4% of 2 scored rows")
    assert result.metadata["noise_share"].value == 0.4737


@pytest.mark.parametrize(
    ("change", "passed"),
    [
        ({}, True),
        ({"rows": {"kept": 0}}, False),
        ({"missing_shards": ["b"]}, False),
        ({"missing_shards": ["b"], "on_blocked_shard": "exclude"}, True),
        ({"shards": [{"shard": "a", "passed": False}], "on_blocked_shard": "exclude"}, False),
        ({"shards": [{"shard": "a", "passed": True}, {"shard": "b", "passed": False}]}, False),
    ],
)
def test_certified_follows_from_the_manifest(change: dict, passed: bool) -> None:
    manifest = {
        "shards": [{"shard": "a", "passed": True}],
        "missing_shards": [],
        "on_blocked_shard": "fail",
        "rows": {"kept": 3},
    }
    assert certify(KEY, manifest | change).passed == passed

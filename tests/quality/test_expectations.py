"""The bridge to Great Expectations: severities, places of failing rows, no text."""

import dagster as dg
import polars as pl
import pytest

from forvalue_dagster.data.read import read_rows
from forvalue_dagster.quality.expectations import checked_columns, default_suite, validate

GOOD = [{"prompt": f"question {i}?", "response": f"answer {i}"} for i in range(200)]


def check(rows: list[dict]) -> dg.AssetCheckResult:
    return validate(checked_columns(read_rows(rows, on_bad_row="skip")), default_suite())


def test_good_rows() -> None:
    result = check(GOOD)
    assert result.passed
    assert result.description == "All 5 expectations hold for 200 rows."


@pytest.mark.parametrize(
    ("bad", "critical", "message"),
    [
        ([{"text": "secret"}] * 3, True, "problem) failed: 3 of 203 rows (rows 200, 201, 202)"),
        (
            [{"prompt": f"secret {i}", "response": ""} for i in range(3)],
            True,
            "response_characters) failed: 3 of 203 rows",
        ),
        (GOOD[:1], False, "sample_id) failed: 2 of 201 rows (rows 0, 200)"),
    ],
    ids=["unreadable", "empty", "duplicate"],
)
def test_faults(bad: list[dict], critical: bool, message: str) -> None:
    result = check([*GOOD, *bad])
    assert not result.passed
    severity = dg.AssetCheckSeverity.ERROR if critical else dg.AssetCheckSeverity.WARN
    assert result.severity == severity
    assert message in result.description
    assert "secret" not in str(result)


def test_no_rows_at_all() -> None:
    result = check([])
    assert not result.passed
    assert result.severity == dg.AssetCheckSeverity.ERROR


def test_a_long_list_of_rows_is_cut() -> None:
    result = check([*GOOD, *[{"text": 1}] * 30])
    assert "and 10 more)" in result.description


def test_an_expectation_on_a_missing_column_fails_and_says_so() -> None:
    rows = checked_columns(read_rows(GOOD)).drop("sample_id")
    result = validate(rows, default_suite())
    assert not result.passed
    assert "could not be evaluated" in result.description


def test_characters_are_counted_over_assistant_turns_only() -> None:
    turns = [("user", "12345"), ("assistant", "ab"), ("user", "1"), ("assistant", "ü🙂c")]
    frame = read_rows([{"messages": [{"role": r, "content": c} for r, c in turns]}])
    assert checked_columns(frame)["response_characters"].to_list() == [5]
    assert "messages" not in checked_columns(frame).columns
    assert isinstance(checked_columns(frame), pl.DataFrame)

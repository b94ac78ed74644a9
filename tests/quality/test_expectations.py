"""The bridge to Great Expectations: severities, places of failing rows, no text."""

import json
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from upath import UPath

from forvalue_dagster.data.read import read_rows
from forvalue_dagster.quality.expectations import critical_result, validate, warning_result
from forvalue_dagster.quality.row_facts import row_facts
from forvalue_dagster.quality.suites import default_suite, read_suite

GOOD = [{"prompt": f"question {i}?", "response": f"answer {i}"} for i in range(200)]


def check(rows: list[dict], critical: bool = True, *suites) -> dg.AssetCheckResult:
    facts = row_facts(read_rows(rows, on_bad_row="skip"))
    records = validate(facts, [default_suite(), *suites])
    return (critical_result if critical else warning_result)(records, len(facts))


def test_good_rows() -> None:
    assert check(GOOD).passed
    warnings = check(GOOD, False)
    assert warnings.passed
    assert warnings.description == "All 11 expectations hold for 200 rows."


@pytest.mark.parametrize(
    ("bad", "critical", "message"),
    [
        ([{"text": "hushhush"}] * 3, True, "problem) failed: 3 of 203 rows (rows 200, 201, 202)"),
        (
            [{"prompt": f"hushhush {i}", "response": ""} for i in range(3)],
            True,
            "response_characters) failed: 3 of 203 rows",
        ),
        (GOOD[:1], False, "sample_id) failed: 2 of 201 rows (rows 0, 200)"),
        (
            [{"prompt": "", "response": f"hushhush {i}"} for i in range(3)],
            False,
            "prompt_characters",
        ),
        (
            [
                {
                    "messages": [
                        {"role": "assistant", "content": f"hushhush {i}"},
                        {"role": "user", "content": "x"},
                        {"role": "assistant", "content": "y"},
                    ]
                }
                for i in range(3)
            ],
            False,
            "roles) failed: 3 of 203",
        ),
        (
            [{"prompt": "hushhush", "response": f"bad \ufffd {i}"} for i in range(3)],
            False,
            "broken_characters) failed: 3",
        ),
        (
            [{"prompt": f"{i}", "response": f"hushhush{i}@example.org"} for i in range(3)],
            False,
            "has_email) failed: 3 of 203 rows (rows 200, 201, 202)",
        ),
        (
            [{"prompt": f"{i}", "response": f"call 555-123-400{i}"} for i in range(3)],
            False,
            "has_phone",
        ),
    ],
    ids=["unreadable", "empty", "duplicate", "no prompt", "roles", "broken", "email", "phone"],
)
def test_faults(bad: list[dict], critical: bool, message: str) -> None:
    result = check([*GOOD, *bad], critical)
    assert not result.passed
    severity = dg.AssetCheckSeverity.ERROR if critical else dg.AssetCheckSeverity.WARN
    assert result.severity == severity
    assert message in result.description
    assert "hushhush" not in str(result)
    assert critical or check([*GOOD, *bad], True).passed


def test_no_rows_at_all() -> None:
    result = check([])
    assert not result.passed
    assert result.severity == dg.AssetCheckSeverity.ERROR


def test_a_long_list_of_rows_is_cut() -> None:
    assert "and 10 more)" in check([*GOOD, *[{"text": 1}] * 30]).description


def test_an_expectation_on_a_missing_column_fails_and_says_so() -> None:
    records = validate(row_facts(read_rows(GOOD)).drop("sample_id"), [default_suite()])
    result = critical_result(records, 200)
    assert not result.passed
    assert "could not be evaluated" in result.description


def own_suite(severity: str):
    import great_expectations as gx
    import great_expectations.expectations as gxe

    return gx.ExpectationSuite(
        name="ours",
        expectations=[
            gxe.ExpectColumnValuesToBeInSet(column="licence", value_set=["MIT"], severity=severity)
        ],
    )


@pytest.mark.parametrize("severity", ["critical", "warning"])
@pytest.mark.parametrize("as_file", [False, True])
def test_a_suite_of_the_users_own(severity: str, as_file: bool, tmp_path: Path) -> None:
    suite = own_suite(severity)
    if as_file:
        path = tmp_path / "suite.json"
        path.write_text(json.dumps(suite.to_json_dict()))
        suite = read_suite(path)
    rows = [row | {"licence": "MIT"} for row in GOOD[:-1]] + [GOOD[-1] | {"licence": "stolen"}]
    result = check(rows, severity == "critical", suite)
    assert not result.passed
    assert "expect_column_values_to_be_in_set(licence) failed: 1 of 200 rows (rows 199)" in (
        result.description
    )
    assert "stolen" not in str(result)
    assert check(rows, severity != "critical", suite).passed


@pytest.mark.parametrize("content", ["not json", "{}", '{"name": "x", "expectations": [{"a": 1}]}'])
def test_a_file_that_is_no_suite_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "suite.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"suite\.json is no suite"):
        read_suite(path)


def test_pages_are_written_without_any_text_and_replaced(tmp_path: Path) -> None:
    rows = [
        *GOOD,
        {"prompt": "hushhush", "response": "hushhush@example.org", "note": "hushhush"},
    ] * 2
    facts = row_facts(read_rows(rows))
    pages = UPath(tmp_path)
    for _ in range(2):
        validate(facts, [default_suite()], pages, "shard")
    page = tmp_path / "validations" / "forvalue_rows" / "shard" / "latest" / "rows-rows.html"
    assert "has_email" in page.read_text()
    assert len(list(tmp_path.glob("validations/**/*.html"))) == 1
    for file in tmp_path.rglob("*.html"):
        assert "hushhush" not in file.read_text()
    # Pages find their styles: as deep as the links in them say.
    assert (page.parents[4] / "static" / "styles" / "data_docs_default_styles.css").exists()


def test_facts_of_a_row() -> None:
    turns = [("user", "12345"), ("assistant", "ab"), ("user", "1"), ("assistant", "ü🙂c")]
    frame = read_rows([{"messages": [{"role": r, "content": c} for r, c in turns]}])
    (facts,) = row_facts(frame).to_dicts()
    assert facts["response_characters"] == 5
    assert facts["prompt_characters"] == 6
    assert facts["roles"] == "user,assistant,user,assistant"
    assert facts["letters_share"] == 0.8
    assert "messages" not in facts


def test_integers_beside_a_null_stay_integers() -> None:
    from great_expectations import ExpectationSuite
    from great_expectations import expectations as gxe

    facts = pl.DataFrame({"row": [0, 1, 2], "id": [2**53, 2**53 + 1, None]})
    unique = gxe.ExpectColumnValuesToBeUnique(column="id")
    small = gxe.ExpectColumnValuesToBeBetween(column="id", max_value=2**53)
    records = validate(facts, [ExpectationSuite("ids", expectations=[unique, small])])
    assert [record["passed"] for record in records] == [True, False]
    assert "(rows 1)" in str(records[1]["observed"])

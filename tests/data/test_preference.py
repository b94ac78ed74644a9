"""Preference data: the chosen answer is the response, the rejected one is kept."""

from __future__ import annotations

import json
from typing import Any

import pytest

from forvalue_dagster.data.columns import Columns
from forvalue_dagster.data.form_examples import outline
from forvalue_dagster.data.problems import RowError
from forvalue_dagster.data.read import read_rows
from forvalue_dagster.data.rows import canonical_row

USER = {"role": "user", "content": "2+2?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in "45")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
        {"question": "2+2?", "chosen": "4", "rejected": "5"},
        {"instruction": "2+2?", "input": "", "chosen_response": "4", "rejected_response": "5"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "2+2?", "chosen": GOOD, "rejected": BAD},
        {"prompt": "2+2?", "chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 9.0},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"messages": [USER, GOOD], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"messages": [USER, GOOD], "chosen": "4", "rejected": "5"},
        {"messages": [USER], "chosen": json.dumps(GOOD), "rejected": json.dumps([BAD])},
        {"messages": [USER, GOOD], "rejected_response": "5"},
        {"messages": [USER, GOOD], "rejected_messages": [USER, BAD]},
        {"chosen_messages": [USER, GOOD], "rejected_messages": [USER, BAD]},
        {"query": "2+2?", "response": "4", "rejected_response": ["5"]},
        {
            "conversations": [{"from": "human", "value": "2+2?"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
        {
            "chosen": "\n\nHuman: 2+2?\n\nAssistant: 4",
            "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5",
        },
        {
            "input": {"messages": [USER]},
            "preferred_output": [GOOD],
            "non_preferred_output": [BAD],
        },
    ],
)
def test_every_form_is_one_conversation(row: dict[str, Any]) -> None:
    known = canonical_row(row, Columns())
    assert json.loads(known.messages) == [USER, GOOD]
    assert json.loads(known.rejected or "") == [BAD]
    # The rejected answer is not content: what is valued is the chosen one.
    plain = canonical_row({"messages": [USER, GOOD]}, Columns())
    assert known.sample_id == plain.sample_id
    assert plain.rejected is None


def test_earlier_turns_are_part_of_the_prompt() -> None:
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    expected = "user: Hi · assistant (not scored): Hello · user: 2+2? · assistant: 4"
    for row in (
        {"messages": [*earlier, USER], "chosen": "4", "rejected": "5"},
        {"messages": [*earlier, USER, GOOD], "rejected_response": "5"},
        {"chosen": [*earlier, USER, GOOD], "rejected": [*earlier, USER, BAD]},
        {"prompt": "2+2?", "chosen": "4", "rejected": "5", "history": [["Hi", "Hello"]]},
    ):
        known = canonical_row(row, Columns())
        assert outline(json.loads(known.messages)) == expected
        assert json.loads(known.rejected or "") == [BAD]


def test_named_columns() -> None:
    row = {"prompt": "2+2?", "better": "4", "worse": "5"}
    known = canonical_row(row, Columns(chosen="better", rejected="worse"))
    assert json.loads(known.messages) == [USER, GOOD]
    assert json.loads(known.rejected or "") == [BAD]
    row = {"asked": [USER], "better": "4"}
    assert (
        json.loads(canonical_row(row, Columns(messages="asked", chosen="better")).messages)
        == json.loads(canonical_row(row, Columns(prompt="asked", chosen="better")).messages)
        == [USER, GOOD]
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "4", "rejected": "5"}, "holds an answer and the row no prompt"),
        ({"messages": [USER, BAD], "chosen": "4", "rejected": "5"}, "ends with an answer other"),
        (
            {"prompt": "3+3?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            "does not hold the row's prompt",
        ),
        (
            {"prompt": "a", "response_a": "4", "response_b": "5", "chosen": "B"},
            r"column 'chosen' names another column \('response_b'\)",
        ),
        ({"prompt": "a", "chosen": "4", "rejected": [1]}, r"rejected\[0\] is a int"),
    ],
)
def test_what_is_no_preference(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        canonical_row(row, Columns())


def test_the_rejected_answer_is_a_column() -> None:
    row = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    table = read_rows([row, row | {"rejected": None}])
    assert [text and json.loads(text) for text in table["rejected"]] == [[BAD], None]
    assert table["source.rejected"].to_list() == ["5", None]
    # A table that was stored before there was the column is what it is.
    stored = table.drop("rejected")
    assert read_rows(stored) is stored

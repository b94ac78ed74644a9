"""Columns as a person names them, and as LLaMA-Factory's dataset_info.json does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from forvalue_dagster.data.columns import Columns
from forvalue_dagster.data.form_examples import outline
from forvalue_dagster.data.problems import RowError
from forvalue_dagster.data.rows import canonical_row


def told(row: dict[str, Any], columns: Columns) -> str:
    return outline(json.loads(canonical_row(row, columns).messages))


def test_every_role_can_be_named() -> None:
    row = {
        "q": "Sum.",
        "about": "1 2",
        "a": "3",
        "s": "Be brief.",
        "before": [["Hi", "Hello"]],
        "functions": 7,
        "defs": [{"name": "add"}],
        "worse": "4",
        "good": True,
        "system": "not this one",
    }
    columns = Columns(
        prompt=["q", "about"],
        response="a",
        system="s",
        history="before",
        tools="defs",
        rejected="worse",
        label="good",
    )
    known = canonical_row(row, columns)
    assert outline(json.loads(known.messages)) == (
        "system: Be brief. · user: Hi · assistant (not scored): Hello · user: Sum.⏎⏎1 2 · "
        "assistant: 3"
    )
    assert json.loads(known.tools or "") == [{"name": "add"}]
    assert json.loads(known.rejected or "") == [{"role": "assistant", "content": "4"}]


def test_columns_beside_named_ones_are_found_by_their_names() -> None:
    row = {"q": "Hi", "a": "Hello", "system": "S", "context": "C"}
    assert told(row, Columns(prompt="q", response="a")) == (
        "system: S · user: Hi · assistant: Hello"
    )
    ignoring = Columns(prompt="q", response="a", ignore=["system"])
    assert told(row, ignoring) == "user: Hi · assistant: Hello"


def test_all_but_the_first_column_of_a_prompt_may_be_null() -> None:
    columns = Columns(prompt=("q", "about"), response="a", separator="\n")
    assert told({"q": "Sum.", "about": "1", "a": "3"}, columns) == "user: Sum.⏎1 · assistant: 3"
    assert told({"q": "Sum.", "about": None, "a": "3"}, columns) == "user: Sum. · assistant: 3"
    with pytest.raises(RowError, match="column 'q' is null"):
        told({"q": None, "about": "1", "a": "3"}, columns)
    with pytest.raises(RowError, match="column 'about' is missing; the row has"):
        told({"q": "Sum.", "a": "3"}, columns)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": "p"},
        {"response": "r"},
        {"messages": "m", "response": "r"},
        {"messages": "m", "prompt": "p", "response": "r"},
        {"prompt": "p", "response": "r", "chosen": "c"},
        {"text": "t", "messages": "m"},
        {"response_marker": "A:", "chosen": "c"},
    ],
)
def test_contradictions(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"go together|not both"):
        Columns(**wrong)


ALPACA = {
    "instruction": "Sum.",
    "input": "1 2",
    "output": "3",
    "system": "S",
    "history": [["a", "b"]],
}
SHAREGPT = {
    "chat": [
        {"who": "me", "says": "Hi"},
        {"who": "you", "says": "Hello"},
        {"who": "me", "says": "Time?"},
        {"who": "calls", "says": '{"name": "now", "arguments": {}}'},
        {"who": "world", "says": "9"},
        {"who": "you", "says": "Nine."},
    ],
    "persona": "S",
}
TAGS = {
    "role_tag": "who",
    "content_tag": "says",
    "user_tag": "me",
    "assistant_tag": "you",
    "observation_tag": "world",
    "function_tag": "calls",
}


@pytest.mark.parametrize(
    ("entry", "row", "expected"),
    [
        # What an entry leaves out is not read there, and so not here.
        ({"file_name": "a.json"}, ALPACA, "user: Sum.⏎1 2 · assistant: 3"),
        (
            {
                "columns": {
                    "prompt": "instruction",
                    "response": "output",
                    "system": "system",
                    "history": "history",
                }
            },
            ALPACA,
            "system: S · user: a · assistant: b · user: Sum. · assistant: 3",
        ),
        (
            {
                "formatting": "sharegpt",
                "columns": {"messages": "chat", "system": "persona"},
                "tags": TAGS,
            },
            SHAREGPT,
            "system: S · user: Hi · assistant: Hello · user: Time? · assistant: calls now · "
            "tool: 9 · assistant: Nine.",
        ),
        (
            {"formatting": "sharegpt"},
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "user: a · assistant: b",
        ),
        (
            {"formatting": "openai"},
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "user: a · assistant: b",
        ),
        (
            {"ranking": True, "columns": {"prompt": "q", "chosen": "yes", "rejected": "no"}},
            {"q": "a", "yes": "b", "no": "c"},
            "user: a · assistant: b",
        ),
        (
            {"ranking": True, "formatting": "sharegpt"},
            {
                "conversations": [{"from": "human", "value": "a"}],
                "chosen": {"from": "gpt", "value": "b"},
                "rejected": {"from": "gpt", "value": "c"},
            },
            "user: a · assistant: b",
        ),
        (
            {"columns": {"prompt": "instruction", "response": "output", "kto_tag": "liked"}},
            {"instruction": "a", "output": "b", "liked": False},
            "user: a · assistant (labelled bad): b",
        ),
        ({"columns": {"prompt": "body"}}, {"body": "x"}, "assistant (text as it is): x"),
    ],
)
def test_an_entry_of_llamafactory(
    entry: dict[str, Any], row: dict[str, Any], expected: str
) -> None:
    assert told(row, Columns.from_llamafactory(entry)) == expected


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"formatting": "xml"}, "formatting 'xml' is unknown; expected one of alpaca"),
        ({"columns": {"promt": "q"}}, r"columns or tags \['promt'\] are unknown"),
        ({"formatting": "sharegpt", "tags": {"role": "who"}}, r"\['role'\] are unknown"),
    ],
)
def test_an_entry_with_something_unknown(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Columns.from_llamafactory(entry)

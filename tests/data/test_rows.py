"""Every form of finetuning data becomes the same conversation, or an error that says what came."""

from __future__ import annotations

import json

import pytest

from forvalue_dagster.data.columns import Columns
from forvalue_dagster.data.problems import RowError
from forvalue_dagster.data.rows import canonical_row

CHAT = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]


def messages(source: dict, columns: Columns | None = None) -> list[dict]:
    return json.loads(canonical_row(source, columns or Columns()).messages)


@pytest.mark.parametrize(
    "source",
    [
        {"prompt": "Hi?", "response": "Hello."},
        {"prompt": "Hi?", "completion": "Hello."},
        {"Question": "Hi?", "Answer": "Hello."},
        {"input": "Hi?", "output": "Hello."},
        {"instruction": "Hi?", "output": "Hello."},
        {"instruction": "Hi?", "input": "", "output": "Hello."},
        {"messages": CHAT},
        {"messages": json.dumps(CHAT)},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi?"}]}, CHAT[1]]},
        {"messages": [m | {"tool_calls": None, "name": None} for m in CHAT]},
        {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]},
        {"prompt": [CHAT[0]], "completion": [CHAT[1]]},
    ],
)
def test_forms_of_one_conversation_share_their_identity(source: dict) -> None:
    assert messages(source) == CHAT
    expected = canonical_row({"messages": CHAT, "extra": 1}, Columns()).sample_id
    assert canonical_row(source, Columns()).sample_id == expected


def test_alpaca_input_follows_the_instruction() -> None:
    row = messages({"instruction": "Add.", "input": "1 2", "output": "3"})
    assert row[0] == {"role": "user", "content": "Add.\n\n1 2"}


def test_configured_columns_win_over_detected_ones() -> None:
    source = {"prompt": "no", "response": "no", "q": "Hi?", "a": "Hello.", "s": "Be kind.", "g": 7}
    columns = Columns(prompt="q", response="a", system="s", group="g")
    assert messages(source, columns) == [{"role": "system", "content": "Be kind."}, *CHAT]
    assert canonical_row(source, columns).group == "7"


def test_tool_calls_and_tools_are_kept_and_count_as_content() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    chat = [CHAT[0], {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "3"}]
    row = canonical_row({"messages": chat, "tools": [{"name": "add"}]}, Columns())
    assert json.loads(row.messages)[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert json.loads(row.tools) == [{"name": "add"}]
    assert row.sample_id != canonical_row({"messages": chat}, Columns()).sample_id


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, r"no conversation found among the columns \[\]"),
        ({"body": "x"}, r"no conversation found among the columns \['body'\]"),
        ({"prompt": 3, "response": "x"}, "prompt is a int; expected text"),
        ({"messages": "not json"}, "not JSON"),
        ({"messages": []}, "an empty list; expected a list of messages"),
        ({"messages": {"role": "user"}}, "a dict; expected a list of messages"),
        ({"messages": ["hi"]}, r"messages\[0\] is a str; expected role and content"),
        (
            {"messages": [{"role": "wizard", "content": "x"}]},
            "unknown role of 6 characters; expected one of",
        ),
        ({"messages": [{"content": "x"}]}, "has no role"),
        ({"messages": [{"role": "user", "content": 5}]}, r"content is a int; expected text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
            "part of type 'video'; expected text and image parts",
        ),
        ({"prompt": "\ud800", "response": "x"}, "surrogate"),
    ],
)
def test_unreadable_rows(source: dict, message: str) -> None:
    with pytest.raises(RowError, match=message):
        canonical_row(source, Columns())


def test_missing_configured_column() -> None:
    with pytest.raises(RowError, match=r"column 'q' is missing; the row has \['prompt'\]"):
        canonical_row({"prompt": "x"}, Columns(prompt="q", response="a"))


def test_errors_never_quote_the_text() -> None:
    secret = "the patient's name"
    for source in ({"prompt": [secret], "response": 1}, {"messages": secret}, {"body": secret}):
        with pytest.raises(RowError) as caught:
            canonical_row(source, Columns())
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [{"prompt": "p"}, {"response": "r"}, {"messages": "m", "prompt": "p", "response": "r"}],
)
def test_contradictory_columns(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"go together|not both"):
        Columns(**arguments)

"""Messages of any form: who speaks, what is said, what is called, what training leaves out."""

from __future__ import annotations

import json
import re
from typing import Any

import polars as pl
import pytest

from forvalue_dagster.data.canonical_json import content_id
from forvalue_dagster.data.columns import Columns
from forvalue_dagster.data.problems import RowError
from forvalue_dagster.data.read import read_rows
from forvalue_dagster.data.rows import CanonicalRow, canonical_row

USER = {"role": "user", "content": "Hi"}


def row_of(messages: Any, **others: Any) -> CanonicalRow:
    return canonical_row({"messages": messages, **others}, Columns())


def read(messages: Any, **others: Any) -> list[dict[str, Any]]:
    known: list[dict[str, Any]] = json.loads(row_of(messages, **others).messages)
    return known


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("speaker", "role"),
    [
        *((name, "user") for name in ("human", "Human", "USER", " user ", "prompter")),
        *((name, "assistant") for name in ("gpt", "ChatGPT", "bard", "assistant", "Bot", "model")),
        *((name, "tool") for name in ("tool", "observation", "function", "tool_response")),
        *((name, name) for name in ("system", "developer")),
    ],
)
@pytest.mark.parametrize("speaker_key", ["role", "from", "speaker"])
@pytest.mark.parametrize("text_key", ["content", "value", "text"])
def test_speakers_and_keys(speaker: str, role: str, speaker_key: str, text_key: str) -> None:
    assert read([{speaker_key: speaker, text_key: "x"}]) == [{"role": role, "content": "x"}]


def test_pairs_are_turns() -> None:
    expected = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    for asked, said in (("human", "assistant"), ("input", "output"), ("question", "response")):
        assert read([{asked: "a", said: "b", "system": "S"}, {said: "d", asked: "c"}]) == expected
    assert read([{"system": "S"}, {"user": "a"}, {"assistant": "b"}]) == expected[:3]
    # As columns keep it.
    lists = {"from": ["system", "human", "gpt"], "value": ["S", "a", "b"]}
    assert read(lists) == expected[:3]


def test_an_absent_text_is_not_the_empty_text() -> None:
    for nowhere in ({"message": "x"}, {"parts": [{"text": "x"}]}, {"content": None}, {}):
        keys = sorted(key for key, value in nowhere.items() if value is not None)
        with pytest.raises(RowError, match=r"messages\[1\] has no text; its keys are") as caught:
            read([USER, {"role": "assistant", **nowhere}])
        assert str(keys) in str(caught.value)
        assert caught.value.kind == "absent text"
    for content in ([], [{"type": "text"}], [{"type": "text", "text": None}]):
        with pytest.raises(RowError, match=r"without text|has no text"):
            read([USER | {"content": content}])
    assert read([USER, {"role": "assistant", "content": ""}])[1]["content"] == ""


def test_two_texts_of_one_message_must_agree() -> None:
    assert read([{"from": "human", "value": "a", "text": "a"}]) == [
        {"role": "user", "content": "a"}
    ]
    with pytest.raises(RowError, match="different texts under"):
        read([{"role": "user", "content": "a", "value": "b"}])


def test_parts_of_every_spelling() -> None:
    parts = [{"type": "text", key: "x"} for key in ("text", "value", "content")]
    assert read([USER | {"content": parts}])[0]["content"] == "xxx"
    # OpenAI's responses, and a part that does not say what it is.
    parts = [{"type": "input_text", "text": "x"}, {"type": None, "text": "y", "image": None}]
    assert read([USER | {"content": parts}])[0]["content"] == "xy"
    answer = {"role": "assistant", "content": "So.", "reasoning_content": "Hm."}
    hm: Any
    for hm in (
        {"type": "reasoning", "value": "Hm."},
        {"type": "thinking", "thinking": "Hm."},
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
    ):
        said = [hm, {"type": "output_text", "text": "So."}]
        assert read([USER, {"role": "assistant", "content": said}])[1] == answer
    with pytest.raises(RowError, match="a part of type None; expected text and image"):
        read([USER | {"content": [{"text": "x", "tag": "y"}]}])


def test_media_beside_a_text_are_not_passed_over() -> None:
    for name in ("images", "image", "audio", "Video"):
        with pytest.raises(RowError, match=rf"messages\[0\]\.{name} holds media beside") as caught:
            read([USER | {name: ["a.png"]}])
        assert caught.value.kind == "media"
    assert read([USER | {"images": []}])[0]["content"] == USER["content"]


def test_reasoning_is_kept() -> None:
    for key in ("reasoning_content", "thinking"):
        answer = {"role": "assistant", "content": "So.", key: "Hm."}
        assert read([USER, answer])[1] == answer


OUT = [
    *({name: 0} for name in ("weight", "loss_weight", "loss_mask", "loss_scale")),
    *({name: False} for name in ("train", "training", "trainable", "loss")),
    *({name: False} for name in ("Train", "learn", "is_trainable", "include_in_loss")),
    *({name: True} for name in ("no_loss", "skip_loss", "exclude_from_training")),
    *({"masked": True}, {"masked": 1}, {"weight": 0.0}, {"train": False, "weight": 1}),
]


@pytest.mark.parametrize("flags", OUT, ids=str)
def test_turns_that_training_leaves_out(flags: dict[str, Any]) -> None:
    turns = [USER, {"role": "assistant", "content": "a", **flags}, USER]
    last = {"role": "assistant", "content": "b"}
    assert read([*turns, last])[1] == {"role": "assistant", "content": "a", "train": False}
    sharegpt = [{"from": m["role"], "value": m["content"], **flags} for m in turns]
    assert row_of([*sharegpt, last]).sample_id == row_of([*turns, last]).sample_id


@pytest.mark.parametrize(
    "flags", [{"weight": 1}, {"train": True}, {"loss_weight": 1.0}, {"masked": False}], ids=str
)
def test_turns_that_are_trained_are_ordinary_ones(flags: dict[str, Any]) -> None:
    plain = [USER, {"role": "assistant", "content": "a"}]
    flagged = [message | flags for message in plain]
    assert read(flagged) == plain
    assert row_of(flagged).sample_id == row_of(plain).sample_id


@pytest.mark.parametrize("weight", [0.5, 2, -1, "0", [0]])
def test_weights_that_cannot_be_honoured(weight: Any) -> None:
    with pytest.raises(RowError, match=r"messages\[1\]\.weight is .*; expected 0 or 1") as caught:
        read([USER, {"role": "assistant", "content": "a", "weight": weight}])
    assert caught.value.kind == "weight"
    # Of others it is not known which way round they are meant.
    for flag in ({"mask": 1}, {"mask": False}, {"loss_factor": 0.0}, {"token_weights": [0, 1]}):
        with pytest.raises(RowError, match="may say that the turn is trained, or") as caught:
            read([USER, {"role": "assistant", "content": "a", **flag}])
        assert caught.value.kind == "weight"
        assert read([USER | flag, {"role": "assistant", "content": "a"}])
    with pytest.raises(RowError, match="trains parts of a turn"):
        read([USER, {"role": "assistant", "content": "a", "train_detail": [{"train": False}]}])


@pytest.mark.parametrize(
    "answer",
    [
        {"content": None, "tool_calls": [call("add", {"a": 1})]},
        {"tool_calls": [call("add", '{"a": 1}')]},
        {"content": "", "tool_calls": json.dumps([call("add", {"a": 1})])},
        {"tool_calls": [json.dumps(call("add", '{"a":1}'))], "function_call": None},
        {"content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}},
        {"function_call": {"name": "add", "arguments": {"a": 1, "b": None}}, "tool_calls": []},
        {"content": [{"type": "tool_call", "value": '{"name": "add", "arguments": {"a": 1}}'}]},
        {"function_call": {"name": "add", "parameters": {"a": 1}}},
        {"tool_calls": [{"type": "function", "function": {"name": "add", "args": '{"a": 1}'}}]},
    ],
)
def test_a_call_has_one_form(answer: dict[str, Any]) -> None:
    plain = [USER, {"role": "assistant", "content": "", "tool_calls": [call("add", {"a": 1})]}]
    assert read([USER, {"role": "assistant", **answer}]) == plain
    assert row_of([USER, {"role": "assistant", **answer}]).sample_id == row_of(plain).sample_id


@pytest.mark.parametrize("speaker", ["function_call", "tool_call"])
def test_turns_that_are_calls(speaker: str) -> None:
    one = {"from": speaker, "value": '{"name": "add", "arguments": "{\\"a\\": 1}"}'}
    two = {"from": speaker, "value": '[{"name": "now", "arguments": {}}]'}
    result = {"from": "observation", "value": "3"}
    calls = [call("add", {"a": 1}), call("now", {})]
    answer = {"role": "assistant", "content": "", "tool_calls": calls}
    tool = {"role": "tool", "content": "3"}
    assert read([USER, one, two, result]) == [USER, answer, tool]
    # The assistant's words before a call are of the same turn.
    said = {"from": "gpt", "value": "I look."}
    assert read([USER, said, one, two, result]) == [USER, answer | {"content": "I look."}, tool]
    apart = read([USER, one, result, two, result])
    assert [len(message.get("tool_calls", [])) for message in apart] == [0, 1, 0, 1, 0]
    with pytest.raises(RowError, match="holds no calls") as caught:
        read([USER, {"from": speaker, "value": "add(1)"}])
    assert caught.value.kind == "tool calls"


def test_only_the_assistant_calls() -> None:
    with pytest.raises(RowError, match="has tool calls and the role 'user'; expected calls in an"):
        read([USER | {"tool_calls": [call("add", {"a": 1})]}])
    assert read([USER | {"tool_calls": []}]) == [USER]


def test_arguments_that_are_no_object_stay_text() -> None:
    for text in ("add 1", "[1]", "3"):
        message = {"role": "assistant", "tool_calls": [call("add", text)]}
        assert read([USER, message])[1]["tool_calls"] == [call("add", text)]


def test_nulls_in_the_arguments_of_a_call_that_is_text_are_meant() -> None:
    arguments = {"a": None, "b": {"c": None}}
    text = json.dumps({"name": "add", "arguments": arguments, "id": None})
    for turn in (
        {"from": "function_call", "value": text},
        {"role": "assistant", "tool_calls": f"[{json.dumps(call('add', arguments))}]"},
        {"role": "assistant", "tool_calls": [call("add", json.dumps(arguments))]},
    ):
        assert read([USER, turn])[1]["tool_calls"] == [call("add", arguments)]
    # Of an object, a table may have put them there.
    (found,) = read([{"role": "assistant", "tool_calls": [call("add", arguments)]}])
    assert found["tool_calls"] == [call("add", {"b": {}})]


def test_tools_have_one_form() -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"x": [1, None]}}}
    padded = {"type": "function", "function": tool["function"] | {"strict": None}}
    chat = [USER, {"role": "assistant", "content": "a"}]
    rows = [
        row_of(chat, tools=[tool]),
        row_of(chat, tools=[padded]),
        row_of(chat, tools=tool),
        row_of(chat, tools=json.dumps([tool])),
        row_of(chat, tools=[json.dumps(tool)]),
        row_of(chat, functions=[tool["function"]]),
    ]
    assert {row.tools for row in rows} == {json.dumps([tool], separators=(",", ":"))}
    assert len({row.sample_id for row in rows}) == 1
    for none in (None, "", "[]", []):
        assert row_of(chat, tools=none).tools is None


def test_the_order_of_keys_is_rendered_and_not_hashed() -> None:
    def row(arguments: dict[str, Any], tool: dict[str, Any]) -> CanonicalRow:
        return row_of(
            [USER, {"role": "assistant", "tool_calls": [call("f", arguments)]}], tools=[tool]
        )

    one = row({"b": 1, "a": 2}, {"name": "f", "description": "d"})
    other = row({"a": 2, "b": 1}, {"description": "d", "name": "f"})
    assert one.sample_id == other.sample_id
    assert '"arguments":{"b":1,"a":2}' in one.messages
    assert one.tools == '[{"name":"f","description":"d"}]'
    assert other.tools == '[{"description":"d","name":"f"}]'
    assert content_id(one.messages, one.tools) == one.sample_id


def test_nulls_of_a_table_are_no_content(tmp_path: Any) -> None:
    """Arrow gives each call the arguments of all, and each tool the parameters of all."""
    rows = [
        {
            "messages": [
                USER,
                {"role": "assistant", "content": "", "tool_calls": [call(name, arguments)]},
            ],
            "tools": [{"name": name, "parameters": {"properties": parameters}}],
        }
        for name, arguments, parameters in (
            ("weather", {"city": "Oslo"}, {"city": {"type": "string", "enum": ["Oslo", None]}}),
            ("add", {"a": 1, "b": {"c": [2]}}, {"a": {"type": "integer"}}),
            ("now", {}, {}),
        )
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pl.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")
    lines, table = (read_rows(tmp_path / f"rows.{suffix}") for suffix in ("jsonl", "parquet"))
    columns = ["sample_id", "messages", "tools"]
    assert lines.select(columns).equals(table.select(columns))
    assert [json.loads(text) for text in table["tools"]] == [row["tools"] for row in rows]


def test_nulls_in_json_text_are_meant() -> None:
    messages = [USER, {"role": "assistant", "tool_calls": [call("f", '{"a": null}')]}]
    assert read(messages)[1]["tool_calls"] == [call("f", {"a": None})]
    tools = [{"name": "f", "parameters": {"default": None}}]
    for text in (json.dumps(tools), [json.dumps(tools[0])]):
        row = canonical_row({"messages": [USER, *messages[1:]], "tools": text}, Columns())
        assert json.loads(row.tools or "") == tools


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "patient", "content": "x"}, "has an unknown role of 7 characters; expected one"),
        ({"role": ["patient"], "content": "x"}, "has a role that is a list; expected one of"),
        ({"role": "user", "patient": "x"}, "has no text; its keys are ['…'], expected one of"),
        (
            {"role": "user", "content": [{"type": "patient", "text": "x"}]},
            "has a part of an unknown type of 7 characters; expected text and image parts",
        ),
        ({"role": "user", "content": [{"type": ["patient"]}]}, "a type that is a list; expected"),
    ],
)
def test_a_problem_quotes_no_word_of_the_row(message: dict[str, Any], expected: str) -> None:
    with pytest.raises(RowError, match=re.escape(expected)) as caught:
        read([message])
    assert "patient" not in str(caught.value)

"""Which columns are the conversation: on a row, and on a file."""

from __future__ import annotations

import json
from typing import Any

import pytest

from forvalue_dagster.data.columns import Columns
from forvalue_dagster.data.files import DataFileError
from forvalue_dagster.data.form_examples import FORM_EXAMPLES, FormExample, outline
from forvalue_dagster.data.problems import RowError
from forvalue_dagster.data.read import read_rows, read_rows_with_reading
from forvalue_dagster.data.reading import RowReading
from forvalue_dagster.data.rows import canonical_row

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
ASKED = {"role": "user", "content": "And blue?"}
EARLIER = [["Name a tree.", "An oak."], ["Another.", "A fir."]]


def told(row: dict[str, Any], columns: Columns | None = None) -> str:
    return outline(json.loads(canonical_row(row, columns or Columns()).messages))


def readings(rows: list[dict[str, Any]], **columns: Any) -> tuple[list[str | None], RowReading]:
    table, read = read_rows_with_reading(rows, columns=Columns(**columns), on_bad_row="skip")
    known = [None if text is None else outline(json.loads(text)) for text in table["messages"]]
    return known, read["the list"]


@pytest.mark.parametrize("example", FORM_EXAMPLES, ids=lambda example: example.form[:30])
def test_every_form_of_the_table(example: FormExample) -> None:
    assert told(dict(example.row), example.columns) == example.read_as


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # Nothing that is part of the prompt is dropped.
        ({"question": "Why?", "context": "It rained.", "answer": "Rain."}, "Why?⏎⏎It rained."),
        ({"prompt": "Sum.", "input": "1 2", "completion": "3"}, "Sum.⏎⏎1 2"),
        ({"prompt": "Sum.", "context": "1 2", "response": "3"}, "Sum.⏎⏎1 2"),
        ({"instruction": "Sum.", "input": "1 2", "answer": "3"}, "Sum.⏎⏎1 2"),
        ({"instruction": "Sum.", "query": "1 2", "response": "3"}, "Sum.⏎⏎1 2"),
        ({"instruction": "Reply.", "question": "Why?", "answer": "So."}, "Reply.⏎⏎Why?"),
        ({"instruction": "", "input": "1 2", "output": "3"}, "1 2"),
        ({"instruction": "Sum.", "input": None, "context": "1 2", "output": "3"}, "Sum.⏎⏎1 2"),
        ({"question": "Why?", "context": ["One.", "Two."], "answer": "So."}, "Why?⏎⏎One.⏎⏎Two."),
        ({"question": "Why?", "context": "C.", "answers": {"text": ["So."]}}, "Why?⏎⏎C."),
        ({"Instruction": "Sum.", "Input": "1 2", "Response": "3"}, "Sum.⏎⏎1 2"),
    ],
)
def test_a_prompt_is_joined_of_all_its_columns(row: dict[str, Any], expected: str) -> None:
    assert told(row).startswith(f"user: {expected} · assistant: ")


@pytest.mark.parametrize(
    "row",
    [
        {"query": "Hi", "response": "Hello"},
        {"messages": CHAT},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"instruction": "Hi", "output": "Hello"},
        {"prompt": [CHAT[0]], "completion": [CHAT[1]]},
        {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
        {"user": "Hi", "assistant": "Hello"},
    ],
)
def test_system_and_history_stand_beside_every_form(row: dict[str, Any]) -> None:
    plain = "user: Hi · assistant: Hello"
    assert told(row) == plain
    for system in ("system", "system_prompt"):
        assert told(row | {system: "Rhyme."}) == f"system: Rhyme. · {plain}"
    for absent in (None, ""):
        assert told(row | {"system": absent, "history": absent}) == plain
    unscored = " (not scored)" if "chosen" in row else ""
    earlier = (
        f"user: Name a tree. · assistant{unscored}: An oak. · user: Another. · "
        f"assistant{unscored}: A fir."
    )
    assert told(row | {"history": EARLIER}) == f"{earlier} · {plain}"
    assert told(row | {"history": json.dumps(EARLIER), "system": "Rhyme."}) == (
        f"system: Rhyme. · {earlier} · {plain}"
    )


def test_history_goes_behind_a_system_message() -> None:
    row = {"messages": [{"role": "system", "content": "S"}, *CHAT], "history": [["a", "b"]]}
    whole = "system: S · user: a · assistant: b · user: Hi · assistant: Hello"
    assert told(row) == whole
    assert told(row | {"system": "S"}) == whole
    row["messages"][0]["role"] = "developer"
    assert told(row) == whole.replace("system", "developer", 1)


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ({"prompt": "Hi", "response": None}, "form", "no conversation found"),
        ({"prompt": "a", "response": "b", "history": [["a"]]}, "type", r"history\[0\] is no pair"),
        ({"prompt": "a", "response": "b", "history": [["a", None]]}, "type", "no pair of texts"),
        ({"prompt": "a", "response": "b", "history": "[["}, "JSON", "not JSON"),
        ({"prompt": "a", "response": "b", "history": {"a": "b"}}, "type", "expected a list of"),
        ({"prompt": "a", "response": "b", "system": ["x", 1]}, "type", "system is a list"),
        ({"question": "a", "context": {"t": ["x"]}, "answer": "b"}, "type", "context is a dict"),
        ({"question": "a", "answers": {"text": []}}, "absent text", "holds no answer"),
        ({"prompt": "a", "response": "b", "tools": 3.5}, "", ""),
        ({"prompt": "a", "response": "b", "functions": ["f"]}, "tool calls", "without a name"),
        (
            {"system": "One.", "messages": [{"role": "system", "content": "Two."}, *CHAT]},
            "text",
            "own system prompt differ",
        ),
        ({"query": "a", "answers": '[{"name": "f"}]'}, "form", "no conversation found"),
    ],
)
def test_what_cannot_be_read_is_a_problem(row: dict[str, Any], kind: str, message: str) -> None:
    if not message:  # a number is a mark of the user's own, and named as unused
        assert told(row) == "user: a · assistant: b"
        return
    with pytest.raises(RowError, match=message) as caught:
        canonical_row(row, Columns())
    assert caught.value.kind == kind


def test_one_form_a_file() -> None:
    rows = [
        {"instruction": "Sum.", "input": "1 2", "output": "3"},
        {"instruction": None, "input": "1 2", "output": "3"},
        {"instruction": "Sum.", "input": None, "output": "0"},
        {"instruction": "Sum.", "input": "1 2", "response": "3"},
        {"text": "Sum. 3"},
    ]
    known, reading = readings(rows)
    assert known == [
        "user: Sum.⏎⏎1 2 · assistant: 3",
        None,
        "user: Sum. · assistant: 0",
        None,
        None,
    ]
    assert reading.form == "prompt and response (instruction, output)"
    assert reading.problems == {"form": 3}
    with pytest.raises(DataFileError, match=r"row 1 .*column 'instruction' is null, and the file"):
        read_rows(rows)


def test_a_row_that_lacks_its_answer_is_no_other_form() -> None:
    rows = [{"question": "Q", "answer": "7", "sql": "s"}, {"question": "Q", "sql": "s"}]
    known, reading = readings(rows)
    assert known == ["user: Q · assistant: 7", None]
    assert reading.unused == ("sql",)
    with pytest.raises(DataFileError, match="column 'answer' is missing, and the file's form is"):
        read_rows(rows)


def test_forms_that_share_no_column_may_share_a_file() -> None:
    known, reading = readings(
        [{"prompt": "a", "response": "b", "n": 1}, {"messages": CHAT, "n": 2}, {"messages": CHAT}]
    )
    assert known == ["user: a · assistant: b", *["user: Hi · assistant: Hello"] * 2]
    assert reading.form == "chat (messages); prompt and response (prompt, response)"
    # A log that has input and output beside its messages: without messages a row is none.
    log = [{"messages": CHAT, "input": "x", "output": "y"}] * 2
    known, reading = readings([*log, {"messages": None, "input": "x", "output": "y"}])
    assert known[2] is None
    assert reading.suspicious == ("input", "output")


def test_what_was_used_and_what_was_not_is_said() -> None:
    _, reading = readings(
        [{"question": "Q", "answer": "A", "response": "B", "id": 7, "score": 0.5, "label": 2}]
    )
    assert reading.used == {"question": "prompt", "answer": "response"}
    assert reading.unused == ("response", "id", "score", "label")
    assert reading.suspicious == ("response", "score", "label")
    # What only repeats the conversation is not suspicious.
    _, reading = readings([{"prompt": "Hi", "messages": CHAT, "prompt_id": "x", "chosen": None}])
    assert (reading.unused, reading.suspicious) == (("prompt", "prompt_id", "chosen"), ())
    rendered = {"instruction": "Sum.", "output": "3", "text": "### Do:\nSum.\n### Answer:\n3"}
    assert readings([rendered])[1].suspicious == ()
    assert readings([rendered | {"text": "Something else."}])[1].suspicious == ("text",)
    _, reading = readings([{"prompt": "Bye", "messages": CHAT}])
    assert reading.suspicious == ("prompt",)
    _, reading = readings([{"prompt": "Bye", "messages": CHAT}], ignore=["prompt"])
    assert reading.suspicious == ()


def test_names_of_every_spelling_and_keys_of_messages_are_told() -> None:
    names = ("systemPrompt", "chat-history", "Response_B", "answer2", "kto tag", "loss_mask")
    _, reading = readings([{"messages": CHAT, **dict.fromkeys(names, "x"), "prompt_id": "x"}])
    assert reading.suspicious == names
    _, reading = readings([{"messages": [CHAT[0] | {"context": "At 9."}, *CHAT[1:]]}])
    assert reading.unused == reading.suspicious == ("messages[].context",)
    # In a text the same letters are no key; a short word stands in many texts by chance.
    said = {"role": "user", "content": '{"context":1}'}
    _, reading = readings([{"messages": [said, *CHAT[1:]], "context": "o"}])
    assert reading.suspicious == ("context",)


def test_messages_that_are_kept_as_text_are_messages() -> None:
    asked = [{"from": "system", "value": "S"}, {"from": "human", "value": "Hi"}]
    answer = {"role": "assistant", "content": "Yo"}
    told_as = "system: S · user: Hi · assistant: Yo"
    for response in ("Yo", json.dumps(answer), json.dumps([answer])):
        known, _ = readings([{"prompt": json.dumps(asked), "completion": response}])
        assert known == [told_as]
    # Other JSON is what it says.
    for text in ('[{"role": "cook", "content": "x"}]', '{"role": "user"}', "[]", "[1]"):
        known, _ = readings([{"prompt": text, "completion": text}])
        assert known == [f"user: {text} · assistant: {text}"]


def test_marks_named_like_a_conversation_are_none() -> None:
    row = {"prompt": "a", "response": "b", "system": 3, "history": 1, "chosen": False}
    known, reading = readings([row | {"rejected": True}])
    assert known == ["user: a · assistant: b"]
    assert reading.suspicious == ("system", "history", "chosen", "rejected")


def test_a_label_counts_if_it_is_true_or_false() -> None:
    row = {"prompt": "a", "completion": "b"}
    known, reading = readings([row | {"label": True}, row | {"label": False}, row])
    plain, bad = "user: a · assistant: b", "user: a · assistant (labelled bad): b"
    assert known == [plain, bad, plain]
    assert reading.used["label"] == "label"
    known, reading = readings([row | {"label": 0}, row | {"label": 1}])
    assert known == [plain, plain]
    assert reading.suspicious == ("label",)
    known, _ = readings([row | {"label": "False"}, row | {"label": "True"}])  # as CSV has it
    assert known == [bad, plain]
    known, reading = readings([row | {"label": "false"}, row | {"label": "unknown"}])
    assert known == [plain, plain]
    assert reading.suspicious == ("label",)
    for name in ("kto_tag", "desirable"):  # LLaMA-Factory's own name for it
        assert readings([row | {name: False}])[0] == [bad]
    known, _ = readings([row | {"good": "False"}, row | {"good": "true"}], label="good")
    assert known == [bad, plain]
    good = canonical_row(row | {"label": True}, Columns())
    assert good.sample_id == canonical_row(row, Columns()).sample_id
    assert good.sample_id != canonical_row(row | {"label": False}, Columns()).sample_id
    with pytest.raises(RowError, match="neither true nor false"):
        canonical_row(row | {"good": 3}, Columns(label="good"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": CHAT, "videos": ["a.mp4"]}, "column 'videos' holds video or sound"),
        ({"prompt": "a", "response": "b", "audio": {"bytes": b"x"}}, "column 'audio' holds"),
        (
            {"prompt": "Find <ref-object>.", "response": "<bbox>", "objects": {"bbox": [[1, 2]]}},
            "column 'objects' holds objects to be grounded",
        ),
        ({"prompt": "<video>What?", "response": "b"}, "tag <video>"),
        ({"prompt": "What?\n<audio>", "response": "b"}, "tag <audio>"),
        ({"prompt": "Look: <image>", "response": "b"}, "tag <image>"),
        ({"prompt": "Is <image> red?", "response": "b", "images": []}, "tag <image>"),
        ({"prompt": "<img>https://example.org/a.png</img>What?", "response": "b"}, "tag <img>"),
        ({"prompt": "a", "response": "<image>", "images": [b"x"]}, "an assistant's turn holds"),
    ],
)
def test_media_that_are_not_read_are_problems(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message) as caught:
        canonical_row(row, Columns())
    assert caught.value.kind in ("media", "image")


@pytest.mark.parametrize(
    "prompt",
    [
        "How is a <video> tag written?",
        "Mend this:\n<video>\n<source src='a.mp4'>\n</video>",
        "What does <image> mean in HTML?",
    ],
)
def test_words_of_html_are_text(prompt: str) -> None:
    row = canonical_row({"prompt": prompt, "response": "So."}, Columns())
    assert json.loads(row.messages)[0]["content"] == prompt


def test_columns_that_only_sound_like_media_can_be_ignored() -> None:
    row = {"prompt": "Is <video> HTML?", "response": "b", "video": "dQw4"}
    assert told(row, Columns(ignore=["video"])) == "user: Is <video> HTML? · assistant: b"

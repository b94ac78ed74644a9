"""Text that is rendered already: as it stands, scored whole or behind its marker."""

from __future__ import annotations

from typing import Any

import pytest

from forvalue_dagster.data.chat import ConversationEncoder, EncodedRow, Encoding, SkippedRow
from forvalue_dagster.data.columns import Columns
from forvalue_dagster.data.problems import RowError
from forvalue_dagster.data.rows import canonical_row
from tests.tiny import byte_tokenizer

TEXT = "Question: 2+2?\nAnswer: 4"


def encoded(row: dict[str, Any], tokens: Any, **columns: Any) -> EncodedRow | SkippedRow:
    known = canonical_row(row, Columns(**columns))
    return ConversationEncoder(byte_tokenizer(), Encoding(tokens)).encode(known.messages)


def scored(row: EncodedRow | SkippedRow) -> str:
    assert isinstance(row, EncodedRow)
    return str(byte_tokenizer().decode(row.input_ids[1:][row.mask[:-1]]))


def test_text_alone_is_scored_with_all_tokens() -> None:
    row = encoded({"text": TEXT}, "all")
    assert isinstance(row, EncodedRow)
    assert byte_tokenizer().decode(row.input_ids) == TEXT
    assert scored(row) == TEXT[1:]


def test_text_alone_is_no_response() -> None:
    assert encoded({"text": TEXT}, "response") == SkippedRow("text_without_response")
    assert encoded({"text": " \n"}, "all") == SkippedRow("no_response")


def test_the_response_stands_behind_the_last_marker() -> None:
    text = f"{TEXT}\nAnswer: 5"
    row = encoded({"body": text}, "response", text="body", response_marker="Answer:")
    assert scored(row) == " 5"
    assert isinstance(row, EncodedRow)
    assert row.prompt_tokens == len(text) - 2
    assert scored(encoded({"text": TEXT}, "all", response_marker="Answer:")) == TEXT[1:]
    assert encoded({"text": "Answer:"}, "response", response_marker="Answer:") == SkippedRow(
        "no_response"
    )
    with pytest.raises(RowError, match="column 'text' does not hold the response marker"):
        canonical_row({"text": TEXT}, Columns(response_marker="### Answer"))


def test_an_answer_that_is_labelled_bad_is_skipped() -> None:
    for tokens in ("response", "all"):
        assert encoded({"prompt": "a", "completion": "b", "label": False}, tokens) == SkippedRow(
            "labelled_bad"
        )
    assert scored(encoded({"prompt": "a", "completion": "b", "label": True}, "response")) == (
        "b<|im_end|>"
    )

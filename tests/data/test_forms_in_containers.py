"""Every form in every container that can hold it: one conversation, one identity, one mask."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings

from forvalue_dagster.data.chat import ConversationEncoder, EncodedRow, Encoding
from forvalue_dagster.data.read import read_rows
from tests.data.conversation_forms import WRITERS, Conversation
from tests.data.test_one_conversation import CONVERSATIONS
from tests.tiny import byte_tokenizer


def contained(rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """The rows in each container, as `read_rows` takes it."""
    lines, array = folder / "rows.jsonl", folder / "rows.json"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    array.write_text(json.dumps(rows), "utf-8")
    frame = pl.DataFrame(rows, infer_schema_length=None)
    frame.write_parquet(folder / "rows.parquet")
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(str(folder / "saved"))
    return {
        "list": rows,
        "JSON Lines": lines,
        "JSON": array,
        "frame": frame,
        "Parquet": folder / "rows.parquet",
        "dataset": table,
        "saved dataset": folder / "saved",
    }


@pytest.mark.parametrize("form", WRITERS)
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(conversation=CONVERSATIONS)
def test_one_conversation(form: str, conversation: Conversation) -> None:
    rows = [WRITERS[form](conversation)]
    encoder = ConversationEncoder(byte_tokenizer(), Encoding(max_length=4096))
    with TemporaryDirectory() as folder:
        found = {}
        for name, container in contained(rows, Path(folder)).items():
            table = read_rows(container)
            encoded = encoder.encode(table["messages"][0], table["tools"][0])
            mask = (
                (encoded.input_ids.tolist(), encoded.mask.tolist())
                if isinstance(encoded, EncodedRow)
                else encoded
            )
            found[name] = table["sample_id"][0], json.loads(table["messages"][0]), mask
    assert [name for name, one in found.items() if one != found["list"]] == []
    assert found["list"][1] == conversation.messages

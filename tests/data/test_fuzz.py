"""Readers against anything: no crash, no row lost, an error that names the row.

`make slow` runs 60,000 inputs; the quick run some hundred.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forvalue_dagster.data.files import DataFileError
from forvalue_dagster.data.read import read_rows

NAMES = st.sampled_from(
    [
        *("messages", "conversations", "prompt", "response", "instruction", "input", "output"),
        *("image", "images", "tools", "question", "answer", "role", "content", "from", "value"),
        *("type", "text", "shard", "row", "sample_id", "group", "problem", "source"),
        *("system", "history", "context", "chosen", "rejected", "label", "functions", "videos"),
        *("human", "assistant", "tool_calls", "function_call", "weight", "name", "arguments"),
    ]
)
WORDS = st.sampled_from(["user", "assistant", "gpt", "human", "image", "<image>"])
TEXT = st.text(max_size=12) | WORDS
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | TEXT, inner, max_size=4),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]) | JSON},
    optional={
        **{"content": TEXT | JSON, "tool_calls": JSON, "name": JSON, "weight": JSON},
        "function_call": st.fixed_dictionaries({"name": JSON}, optional={"arguments": JSON}) | JSON,
    },
)
# Rows that are nearly right, and rows that are anything.
ROW = (
    st.dictionaries(NAMES | TEXT, JSON, max_size=5)
    | st.fixed_dictionaries(
        {"messages": st.lists(MESSAGE, max_size=4) | JSON}, optional={"images": JSON}
    )
    | st.fixed_dictionaries(
        {"prompt": TEXT | JSON, "response": TEXT | JSON},
        optional={
            **{"image": JSON, "tools": JSON, "system": JSON, "history": JSON, "functions": JSON},
            **{"chosen": JSON, "rejected": JSON, "label": JSON, "context": JSON},
        },
    )
)
LINE = ROW.map(lambda row: json.dumps(row).encode()) | st.binary(max_size=60).map(
    lambda data: data.replace(b"\n", b" ").replace(b"\r", b" ")
)


def rows_in_memory(rows: list[dict[str, Any]]) -> None:
    table = read_rows(rows, on_bad_row="skip")
    every_row_is_there(table, len(rows))
    bad = table["problem"].is_not_null().arg_true().to_list()
    if not bad:
        assert read_rows(rows).equals(table)
        return
    with pytest.raises(DataFileError, match=rf"row {bad[0]} \(line {bad[0] + 1}\)"):
        read_rows(rows)


def every_row_is_there(table: pl.DataFrame, rows: int) -> None:
    assert len(table) == rows
    assert (table["messages"].is_null() == table["problem"].is_not_null()).all()
    assert (table["sample_id"].is_null() == table["problem"].is_not_null()).all()
    for messages in table["messages"].drop_nulls():
        assert all(isinstance(message["role"], str) for message in json.loads(messages))


def lines_in_a_file(lines: list[bytes], compressed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("rows.jsonl.gz" if compressed else "rows.jsonl")
        data = b"\n".join(lines)
        path.write_bytes(gzip.compress(data) if compressed else data)
        table = read_rows(path, on_bad_row="skip")
    every_row_is_there(table, sum(bool(line.strip()) for line in lines))


def bytes_as_a_file(data: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            read_rows(path, on_bad_row="skip")
        except DataFileError as error:
            said = str(error)
        else:
            said = name
    assert name in said


DAMAGED = st.binary(max_size=80) | st.builds(
    lambda rows, cut: gzip.compress(json.dumps(rows).encode())[:cut], JSON, st.integers(0, 60)
)
CASES: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "rows": (rows_in_memory, {"rows": st.lists(ROW, max_size=4)}),
    "lines": (lines_in_a_file, {"lines": st.lists(LINE, max_size=5), "compressed": st.booleans()}),
    "files": (
        bytes_as_a_file,
        {
            "data": DAMAGED,
            "name": st.sampled_from(["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"]),
        },
    ),
}


def fuzz(case: str, examples: int) -> None:
    check, arguments = CASES[case]
    limits = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    limits(given(**arguments)(check))()


@pytest.mark.parametrize("case", CASES)
def test_readers_take_anything(case: str) -> None:
    fuzz(case, 150)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_readers_take_anything_twenty_thousand_times(case: str) -> None:
    fuzz(case, 20_000)

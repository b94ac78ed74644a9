"""Files in, canonical rows out: formats, bad input, and nothing lost on the way."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forvalue_dagster.data.files import DataFileError
from forvalue_dagster.data.read import CANONICAL_SCHEMA, read_rows, source_lines

ROWS = [
    {"prompt": "a?", "response": "b.", "kind": "x", "score": 1},
    {"prompt": "c?", "response": "ü🙂", "kind": None, "score": 2.5},
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def written(folder: Path, form: str) -> Path:
    text = LINES.encode()
    if form == "jsonl":
        return write(folder / "rows.jsonl", text)
    if form == "jsonl with a byte order mark":
        return write(folder / "rows.jsonl", b"\xef\xbb\xbf" + text)
    if form == "jsonl with Windows line ends and blank lines":
        return write(folder / "rows.jsonl", text.replace(b"\n", b"\r\n") + b"\r\n  \n")
    if form == "gz":
        return write(folder / "rows.jsonl.gz", gzip.compress(text))
    if form == "zst":
        return write(folder / "rows.jsonl.zst", zstandard.compress(text))
    if form == "parquet":
        pl.DataFrame(ROWS, strict=False).write_parquet(folder / "rows.parquet")
        return folder / "rows.parquet"
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "rows")
    return folder / "rows"


@pytest.mark.parametrize(
    "form",
    [
        "jsonl",
        "jsonl with a byte order mark",
        "jsonl with Windows line ends and blank lines",
        "gz",
        "zst",
        "parquet",
        "arrow",
    ],
)
def test_formats(form: str, tmp_path: Path) -> None:
    frame = read_rows(written(tmp_path, form))
    expected = read_rows(ROWS, shard="rows")
    assert frame["sample_id"].to_list() == expected["sample_id"].to_list()
    assert frame["shard"].to_list() == ["rows", "rows"]
    assert frame["row"].to_list() == [0, 1]
    assert frame["kind"].to_list() == ["x", None]
    assert frame["score"].to_list() == [1, 2.5]
    assert [json.loads(line) for line in source_lines(frame)] == ROWS


def test_json_lines_come_back_verbatim(tmp_path: Path) -> None:
    odd = '{"response" : "b",  "prompt":"\\u0061", "deep": {"x": [1, null]}, "mixed": 1}\n'
    other = '{"prompt":"c","response":"d","mixed":"text"}\n'
    frame = read_rows(write(tmp_path / "odd.jsonl", (odd + other).encode()))
    assert "".join(f"{line}\n" for line in source_lines(frame)) == odd + other
    assert "deep" not in frame.columns
    assert "mixed" not in frame.columns


@pytest.mark.parametrize("value", ["9223372036854775808", "1e400", '"\\ud800"', "NaN", "-1"])
def test_values_that_fit_no_column_stay_in_the_line(value: str, tmp_path: Path) -> None:
    text = "".join(
        f'{{"prompt": "a", "response": "b", "x": {x}}}\n' for x in (value, "1.5", value, "null")
    )
    frame = read_rows(write(tmp_path / "rows.jsonl", text.encode()))
    assert "".join(f"{line}\n" for line in source_lines(frame)) == text


def test_columns_named_like_ours_are_kept(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "response": "b", "row": 7, "source": "web", "group": "x"}]
    frame = read_rows(rows)
    assert frame["row"].to_list() == [0]
    assert frame["source.row"].to_list() == [7]
    assert frame["source.source"].to_list() == ["web"]
    pl.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")
    table = read_rows(tmp_path / "rows.parquet")
    assert [json.loads(line) for line in source_lines(table)] == rows


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", LINES.encode())
    write(
        tmp_path / "a.jsonl.gz", gzip.compress(b'{"prompt": "x", "response": "y", "score": "n/a"}')
    )
    write(tmp_path / "notes.txt", b"ignored")
    with pytest.warns(UserWarning, match=r"notes\.txt is passed over: a format that is not read"):
        frame = read_rows(tmp_path)
    (tmp_path / "notes.txt").unlink()
    assert frame["shard"].to_list() == ["a", "b", "b"]
    assert frame["row"].to_list() == [0, 0, 1]
    one_shard = read_rows(tmp_path, shard="all")
    assert one_shard.select("shard", "row").rows() == [("all", 0), ("all", 1), ("all", 2)]


BAD_LINES = {
    b'{"prompt": "a"': r"not JSON .*expected one object a line",
    b"[1, 2]": "a JSON list; expected an object",
    b'{"prompt": "\xff"}': "byte 12 is not UTF-8",
    b'{"text": "x"}': "no conversation found",
    b'{"prompt": "\\ud800", "response": "x"}': "surrogate",
    b"[" * 100_000: "not JSON",
}


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_bad_line_is_named_or_kept_unscored(bad: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", LINES.encode() + bad + b"\n" + LINES.encode())
    with pytest.raises(DataFileError, match=rf"rows\.jsonl, row 2 \(line 3\): .*{BAD_LINES[bad]}"):
        read_rows(path)
    frame = read_rows(path, on_bad_row="skip")
    assert frame["problem"].is_not_null().to_list() == [False, False, True, False, False]
    assert frame["row"].to_list() == [0, 1, 2, 3, 4]
    assert frame["sample_id"][2] is None
    assert frame["messages"][2] is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.jsonl.gz", gzip.compress(LINES.encode() * 50)[:-20], "damaged after line"),
        ("not.jsonl.gz", b"plain", "damaged after line 0"),
        ("not.jsonl.zst", b"plain", "damaged after line 0"),
        ("cut.parquet", b"PAR1 nothing", "not readable as Parquet"),
        ("rows.xlsx", b"a,b", "is no data file; expected one of"),
    ],
)
def test_damaged_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=message) as caught:
        read_rows(write(tmp_path / name, content))
    assert name in str(caught.value)


def test_absent_and_empty(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="does not exist"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(DataFileError, match=r"holds no data file .* It holds nothing"):
        read_rows(tmp_path)
    write(tmp_path / "rows.xlsx", b"")
    with pytest.raises(DataFileError, match=r"It holds rows\.xlsx: a spreadsheet; save it as CSV"):
        read_rows(tmp_path)
    empty = read_rows(write(tmp_path / "empty.jsonl", b""))
    assert empty.schema == CANONICAL_SCHEMA
    assert len(empty) == 0


def test_a_dataset_dict_names_its_splits(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "d")
    with pytest.raises(DataFileError, match="is a DatasetDict; expected one dataset"):
        read_rows(tmp_path / "d")
    assert len(read_rows(tmp_path / "d" / "train")) == 2


def test_an_arrow_dataset_may_not_point_outside_its_folder(tmp_path: Path) -> None:
    path = written(tmp_path, "arrow")
    state = json.loads((path / "state.json").read_text())
    state["_data_files"] = [{"filename": "../outside.arrow"}]
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataFileError, match="outside the dataset"):
        read_rows(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "type"]), inner)
    ),
    max_leaves=8,
)
SOURCE = st.dictionaries(
    st.sampled_from(
        ["messages", "conversations", "prompt", "response", "instruction", "output", "tools", "row"]
    ),
    JSON,
)


@settings(max_examples=300, suppress_health_check=list(HealthCheck), deadline=None)
@given(rows=st.lists(SOURCE, max_size=5))
def test_wild_rows_are_read_or_kept_with_their_problem(rows: list[dict], tmp_path: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    frame = read_rows(write(tmp_path / "wild.jsonl", text.encode()), on_bad_row="skip")
    assert frame["row"].to_list() == list(range(len(rows)))
    good = frame["problem"].is_null()
    assert (good == frame["messages"].is_not_null()).all()
    assert (good == frame["sample_id"].is_not_null()).all()
    assert "".join(f"{line}\n" for line in source_lines(frame)) == text
    table = read_rows(rows, on_bad_row="skip")
    assert table["sample_id"].to_list() == frame["sample_id"].to_list()


@settings(max_examples=200, suppress_health_check=list(HealthCheck), deadline=None)
@given(content=st.binary(max_size=400))
def test_wild_bytes_never_crash_the_reader(content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "wild.jsonl", content)
    frame = read_rows(path, on_bad_row="skip")
    lines = [line for line in content.split(b"\n") if line.strip()]
    assert len(frame) == len(lines)

"""Every container that docs/data.md names holds the same rows, as a property and one by one."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from docs.render_containers import PAGE, main
from forvalue_dagster.data.containers import CONTAINERS
from forvalue_dagster.data.files import DataFileError, ReadLimits
from forvalue_dagster.data.formats import FORMATS
from forvalue_dagster.data.read import read_rows, source_lines
from forvalue_dagster.orchestration.options.sources import RowSource, UpstreamRows

ROWS = [
    {"prompt": "a?", "response": "b."},
    {"prompt": 'c, "d"\ne?', "response": "ü🙂"},
    {"prompt": "f?", "response": "[1]"},
]


def _delimited(rows: list[dict], separator: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _content(name: str, rows: list[dict]) -> bytes:
    """The bytes of a file of a format, by its name."""
    if name.endswith(".gz"):
        return gzip.compress(_content(name.removesuffix(".gz"), rows))
    if name.endswith(".zst"):
        return zstandard.compress(_content(name.removesuffix(".zst"), rows))
    stream = io.BytesIO()
    if name.endswith(".parquet"):
        pl.DataFrame(rows).write_parquet(stream)
    elif name.endswith((".arrow", ".feather")):
        pl.DataFrame(rows).write_ipc(stream)
    elif name.endswith((".csv", ".tsv")):
        return _delimited(rows, "," if name.endswith(".csv") else "\t")
    elif name.endswith(".json"):
        return json.dumps(rows, indent=1).encode()
    else:
        return _lines(rows)
    return stream.getvalue()


def _file(folder: Path, name: str, rows: list[dict] = ROWS) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_content(name, rows))
    return path


def _saved(folder: Path) -> Any:
    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "rows")
    return folder / "rows"


def _split(folder: Path) -> Any:
    _file(folder, "hub/data/train-00000-of-00001.parquet")
    return RowSource(path=str(folder / "hub"), split="train").read()


def _parts(folder: Path) -> Any:
    _file(folder, "rows.parquet/part-0000.parquet", ROWS[:1])
    _file(folder, "rows.parquet/part-0001.parquet", ROWS[1:])
    _file(folder, "rows.parquet/_SUCCESS", [])
    return folder / "rows.parquet"


def _hive(folder: Path) -> Any:
    _file(folder, "rows/lang=de/0.parquet", ROWS[:1])
    _file(folder, "rows/lang=en%20GB/0.parquet", ROWS[1:])
    return folder / "rows"


# Container → what `read_rows` is given, or its rows.
MADE: dict[str, Callable[[Path], Any]] = {
    "Hugging Face dataset": _saved,
    "split of a repository": _split,
    "folder of parts": _parts,
    "hive partitions": _hive,
    "polars": lambda _: pl.DataFrame(ROWS).lazy(),
    "pandas": lambda _: pl.DataFrame(ROWS).to_pandas().set_index(pl.Series([7, 8, 9]).to_pandas()),
    "PyArrow": lambda _: pl.DataFrame(ROWS).to_arrow(),
    "datasets": lambda _: datasets.Dataset.from_list(ROWS[::-1]).select([2, 1, 0]),
    "records": lambda _: iter(ROWS),
}


def test_the_table_of_the_page_is_rendered_and_each_row_of_it_is_tried(tmp_path: Path) -> None:
    page = tmp_path / "data.md"
    page.write_text(PAGE.read_text("utf-8"), "utf-8")
    main(page)
    assert page.read_text("utf-8") == PAGE.read_text("utf-8")
    tried = {known.name for known in FORMATS} | MADE.keys()
    assert {container.name for container in CONTAINERS} == tried


EXPECTED = read_rows(ROWS)["sample_id"].to_list()


@pytest.mark.parametrize("suffix", [s.upper() for f in FORMATS for s in f.suffixes])
def test_every_file(suffix: str, tmp_path: Path) -> None:
    rows = read_rows(_file(tmp_path, f"rows{suffix.lower()}").rename(tmp_path / f"Rows{suffix}"))
    assert rows["sample_id"].to_list() == EXPECTED
    assert rows["row"].to_list() == [0, 1, 2]
    assert rows["shard"].unique().to_list() == ["Rows"]
    assert [json.loads(line) for line in source_lines(rows)] == ROWS


@pytest.mark.parametrize("name", MADE)
def test_every_other_container(name: str, tmp_path: Path) -> None:
    made = MADE[name](tmp_path)
    rows = made if isinstance(made, pl.DataFrame) else read_rows(made, shard="x")
    assert rows["sample_id"].to_list() == EXPECTED
    assert rows["row"].to_list() == [0, 1, 2]
    columns = {"prompt", "response"} | ({"lang"} if name == "hive partitions" else set())
    assert set(rows.columns) >= columns
    assert "__index_level_0__" not in rows.columns
    if name == "hive partitions":
        assert rows["lang"].to_list() == ["de", "en GB", "en GB"]
    if not isinstance(made, pl.DataFrame | Path):
        upstream = UpstreamRows(asset="rows").rows_of(MADE[name](tmp_path), "x")
        assert upstream["sample_id"].to_list() == EXPECTED


@pytest.mark.parametrize("make", [lambda t: t.to_reader(), lambda t: t.to_batches()[0]])
def test_other_arrow_tables(make: Callable[[pa.Table], Any]) -> None:
    assert read_rows(make(pl.DataFrame(ROWS).to_arrow()))["sample_id"].to_list() == EXPECTED


def test_pandas_columns_of_one_name() -> None:
    import pandas as pd

    rows = pd.DataFrame([["a?", "b", "c"]], columns=["prompt", "response", "response"])
    with pytest.raises(
        DataFileError, match=r"has columns \['response'\] twice; expected each once"
    ):
        read_rows(rows)


def test_pandas_columns_of_several_types_and_absent_values() -> None:
    import pandas as pd

    rows = pd.DataFrame(
        {"prompt": ["a?", "b?"], "response": ["c", None], "n": [1, "x"], "score": [0.5, None]}
    )
    read = read_rows(rows, on_bad_row="skip")
    assert read["problem"].is_null().to_list() == [True, False]
    lines = [json.loads(line) for line in source_lines(read)]
    assert lines[0] == {"prompt": "a?", "response": "c", "n": 1, "score": 0.5}
    assert lines[1] == {"prompt": "b?", "response": None, "n": "x", "score": None}


def test_a_dataset_is_what_its_own_format_makes_of_it() -> None:
    rows = datasets.Dataset.from_list([{"prompt": "a?", "response": "c", "system": "S"}])
    shouted = rows.with_transform(lambda batch: {k: [v[0].upper()] for k, v in batch.items()})
    assert read_rows(shouted)["messages"].str.contains('"content":"C"').all()
    some = rows.with_format("numpy", columns=["prompt", "response"])
    assert read_rows(some)["sample_id"].equals(
        read_rows([{"prompt": "a?", "response": "c"}])["sample_id"]
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (5, "an? builtins int holds no rows; expected a path, a frame"),
        ({"prompt": ["a"], "response": ["b", "c"]}, "a dict that is no table"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}), "the splits train"),
        (["hush"], r"row 0 \(line 1\): a str; expected a dict with named columns"),
    ],
)
def test_what_holds_no_rows(rows: Any, message: str) -> None:
    with pytest.raises(DataFileError, match=message) as caught:
        read_rows(rows)
    assert "hush" not in str(caught.value)


JSON_LAYOUTS = {
    "array": lambda rows: json.dumps(rows),
    "array over lines": lambda rows: json.dumps(rows, indent=2),
    "array with a mark": lambda rows: "\ufeff" + json.dumps(rows),
    "array with Windows line ends": lambda rows: json.dumps(rows, indent=1).replace("\n", "\r\n"),
    "objects over lines": lambda rows: "\n".join(json.dumps(row, indent=2) for row in rows),
    "lines": lambda rows: "\n\n".join(json.dumps(row) for row in rows),
}
WRAPPED = {
    "under data": lambda rows: json.dumps({"version": 1, "data": rows, "made by": ["us"]}),
    "under a key of its own": lambda rows: json.dumps({"conversations of May": rows}, indent=1),
}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        *((f"rows{s}", layout) for s in (".json", ".jsonl") for layout in JSON_LAYOUTS),
        *(("rows.json", layout) for layout in WRAPPED),
    ],
)
def test_json_is_what_it_is_not_what_it_is_called(name: str, layout: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes((JSON_LAYOUTS | WRAPPED)[layout](ROWS).encode())
    rows = read_rows(path)
    assert rows["sample_id"].to_list() == EXPECTED
    assert [json.loads(line) for line in source_lines(rows)] == ROWS
    assert not any("\n" in line for line in source_lines(rows))


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("indent", [None, 1])
def test_one_row_alone_is_a_row(name: str, indent: int | None, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}]
    path = tmp_path / name
    for row in ({"messages": chat}, ROWS[0] | {"tags": [{"x": 1}]}):
        path.write_text(json.dumps(row, indent=indent))
        assert read_rows(path)["sample_id"].to_list() == EXPECTED[:1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[{"prompt": "a", "response": "b"},\n{"prompt": "c"',
            "begins with a JSON array that does",
        ),
        ('[{"prompt": "a", "response": "b"}] and more', "begins with a JSON array that does"),
        (
            '{"train": [{"prompt": "a"}], "test": [{"prompt": "b"}]}',
            "several lists of rows, 'train'",
        ),
    ],
)
def test_json_that_is_not_one_file_of_rows(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(DataFileError, match=rf"rows\.json .*{message}"):
        read_rows(tmp_path / "rows.json", on_bad_row="skip")


GOOD = b'{"prompt": "a", "response": "b"}'
BAD_ELEMENTS = {
    b"[1, [2]]": "a JSON list",
    b'{"prompt": "]}", "response": "\xff"}': "is not UTF-8",
    b'{"prompt": "a", "response": tru}': "not JSON",
    b'{"prompt": "a", "response": "b", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}": "not JSON",
    b'{"prompt": "a", "prompt": "z", "response": "b"}': "one key twice",
    b'{"messages": [{"role": "user", "role": "assistant", "content": "a"}]}': "one key twice",
    b'{"prompt": "a", "response": "b", "n": ' + b"9" * 5000 + b"}": "not JSON",
    b'{"prompt": "' + b"a" * 3000 + b'", "response": "b"}': "longer than 2,000 bytes",
    b'{"prompt": "a\x00", "response": "b"}': "control character",
}


@pytest.mark.parametrize("layout", ["array", "lines"])
@pytest.mark.parametrize("bad", BAD_ELEMENTS)
def test_a_bad_row_of_any_layout_is_one_problem(bad: bytes, layout: str, tmp_path: Path) -> None:
    message = BAD_ELEMENTS[bad]
    if b"5000" in bad or len(bad) > 4000:
        limits = ReadLimits(line_bytes=100_000)
    else:
        limits = ReadLimits(line_bytes=2000)
    rows = [GOOD, bad, GOOD]
    text = b"[" + b", ".join(rows) + b"]" if layout == "array" else b"\n".join(rows)
    path = tmp_path / "rows.json"
    path.write_bytes(text)
    frame = read_rows(path, on_bad_row="skip", limits=limits)
    assert frame["problem"].is_null().to_list() == [True, False, True]
    assert message in frame["problem"][1]
    place = "object 2" if layout == "array" else "line 2"
    with pytest.raises(DataFileError, match=rf"rows\.json, row 1 \({place}\): .*{message}"):
        read_rows(path, limits=limits)


def test_delimited_text_with_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(
        b'\xef\xbb\xbfprompt,response,kind\r\na?,b.,x\r\n\r\n"c\nd",e,\r\nf,g\r\nh,i,j,k\r\n'
        b'"l"m,n,o\r\np,\xff,q\r\nr,s,t\r\n'
    )
    frame = read_rows(path, on_bad_row="skip")
    good = [True, True, False, False, False, False, True]
    assert frame["problem"].is_null().to_list() == good
    assert frame["kind"].to_list() == ["x", None, None, None, None, None, "t"]
    problems = frame["problem"].drop_nulls().to_list()
    for problem, said in zip(
        problems, ["2 cells; expected 3", "4 cells", "not delimited", "not UTF-8"], strict=True
    ):
        assert said in problem
    with pytest.raises(DataFileError, match=r"row 2 \(line 6\): 2 cells"):
        read_rows(path)
    for text, message in {
        'prompt,response\na,b\nc,"d\n': "ends inside quoted text",
        "prompt,prompt\na,b\n": "two of one name",
        "prompt,\na,b\n": "a column without a name",
    }.items():
        path.write_text(text)
        with pytest.raises(DataFileError, match=rf"rows\.csv .*{message}"):
            read_rows(path, on_bad_row="skip")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_wide_text_is_refused(name: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(_content(name, ROWS).decode(), encoding=encoding)
    with pytest.raises(DataFileError, match="is UTF-16 or UTF-32; expected UTF-8"):
        read_rows(tmp_path / name)


@pytest.mark.parametrize("name", ["rows.jsonl.zst", "rows.jsonl.gz", "rows.csv.zst"])
def test_a_compressed_file_that_is_cut_off_is_no_shorter_file(name: str, tmp_path: Path) -> None:
    content = _content(name, ROWS * 50_000)
    (tmp_path / name).write_bytes(content[:-20])
    with pytest.raises(DataFileError, match="compressed stream is damaged after line"):
        read_rows(tmp_path / name)
    (tmp_path / name).write_bytes(_content(name, ROWS) + _content(name, ROWS))
    again = 1 if "csv" in name else 0  # of CSV the second one's names are a row
    assert len(read_rows(tmp_path / name)) == 2 * len(ROWS) + again


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json.zst", "rows.csv.gz", "rows.parquet"])
def test_what_unpacks_to_more_than_the_limit_is_refused(name: str, tmp_path: Path) -> None:
    path = _file(tmp_path, name, [{"prompt": "a" * 5000, "response": "b"}] * 400)
    assert path.stat().st_size < 20_000
    with pytest.raises(DataFileError, match=r"holds more than 1,000,000 bytes .*file_bytes"):
        read_rows(path, limits=ReadLimits(file_bytes=1_000_000))
    with pytest.raises(DataFileError, match=r"holds more than 1,000,000 bytes"):
        RowSource(path=str(path), file_bytes=1_000_000).read()
    assert len(read_rows(path)) == 400


def test_a_dictionary_that_repeats_one_text_counts_as_often_as_it_is_repeated(
    tmp_path: Path,
) -> None:
    frame = pl.DataFrame({"prompt": ["a" * 5000] * 400, "response": ["b"] * 400})
    path = tmp_path / "rows.parquet"
    frame.cast({"prompt": pl.Categorical}).write_parquet(path)
    with pytest.raises(DataFileError, match="holds more than"):
        read_rows(path, limits=ReadLimits(file_bytes=1_000_000))


def test_a_saved_dataset_of_which_rows_were_selected(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS * 2).select([3, 1, 2]).save_to_disk(tmp_path / "rows")
    assert read_rows(tmp_path / "rows")["sample_id"].to_list() == EXPECTED


text = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=8)
turn = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": text})
conversation = st.lists(turn, min_size=1, max_size=4)


@settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None)
@given(conversations=st.lists(conversation, min_size=1, max_size=3), pairs=st.booleans())
def test_a_conversation_has_one_identity_in_every_container(
    conversations: list[list[dict]], pairs: bool, tmp_path: Path
) -> None:
    rows: list[dict] = [{"messages": turns} for turns in conversations]
    if pairs:
        rows = [{"prompt": t[0]["content"], "response": t[-1]["content"]} for t in conversations]
    expected = read_rows(rows, on_bad_row="skip")
    held = [json.loads(json.dumps(row)) for row in rows]
    as_text = [
        {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in row.items()
        }
        for row in rows
    ]
    ways: list[Any] = [pl.DataFrame(held), pl.DataFrame(held).to_arrow(), iter(held)]
    for known in FORMATS:
        name = f"rows{known.suffixes[0]}"
        ways.append(_file(tmp_path, name, as_text if known.name in ("CSV", "TSV") else rows))
    for layout, write in JSON_LAYOUTS.items():
        path = tmp_path / f"{layout}.json"
        path.write_bytes(write(rows).encode())
        ways.append(path)
    for way in ways:
        read = read_rows(way, on_bad_row="skip")
        for column in ("sample_id", "messages", "problem"):
            assert read[column].to_list() == expected[column].to_list(), way

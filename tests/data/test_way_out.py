"""What comes out is what went in: values of tables as JSON, images, files that do not agree."""

from __future__ import annotations

import datetime
import io
import json
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from forvalue_dagster.data.own_columns import MOST_COLUMNS
from forvalue_dagster.data.read import CANONICAL_SCHEMA, read_rows, source_lines
from forvalue_dagster.orchestration.options.sources import RowSource

PAIR = {"prompt": "a?", "response": "b."}


def _out(rows: pl.DataFrame) -> list[dict]:
    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=no_constant) for line in source_lines(rows)]


def _picture(colour: str, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(stream, form)
    return stream.getvalue()


def test_values_of_a_table(tmp_path: Path) -> None:
    zone = datetime.UTC
    held = {
        "nan": float("nan"),
        "infinite": float("-inf"),
        "nested": [{"x": float("nan"), "y": [1.5]}],
        "large": 2**53 + 1,
        "money": Decimal("12.340"),
        "day": datetime.date(2026, 2, 3),
        "time": datetime.datetime(2026, 2, 3, 4, 5, 6, tzinfo=zone),
        "took": datetime.timedelta(minutes=1, milliseconds=500),
        "raw": b"\x00\x01",
        "absent": None,
    }
    frame = pl.DataFrame([PAIR | held])
    frame.write_parquet(tmp_path / "rows.parquet")
    expected = PAIR | {
        "nan": None,
        "infinite": None,
        "nested": [{"x": None, "y": [1.5]}],
        "large": 2**53 + 1,
        "money": "12.340",
        "day": "2026-02-03",
        "time": "2026-02-03T04:05:06+00:00",
        "took": 60.5,
        "raw": "data:application/octet-stream;base64,AAE=",
        "absent": None,
    }
    assert _out(read_rows(tmp_path / "rows.parquet")) == [expected]
    assert _out(read_rows(frame.to_dicts())) == [expected]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    "shape", ["bytes", "list of bytes", "struct", "list of structs", "records", "in messages"]
)
def test_images_come_out_and_are_read_again(shape: str, form: str, tmp_path: Path) -> None:
    red, blue = _picture("red", form), _picture("blue", form)
    pair = {"prompt": "<image>Which?", "response": "Red."}
    rows: list[dict] = {
        "bytes": [pair | {"image": red}, pair | {"image": blue}],
        "list of bytes": [pair | {"images": [red]}, pair | {"images": [blue]}],
        "struct": [pair | {"image": {"bytes": image, "path": "x"}} for image in (red, blue)],
        "list of structs": [pair | {"images": [{"bytes": i, "path": None}]} for i in (red, blue)],
        "records": [pair | {"image": red}, pair | {"image": blue, "more": {"deep": [1]}}],
        "in messages": [
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "image": image}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
                ]
            }
            for image in (red, blue)
        ],
    }[shape]
    if shape in ("records", "in messages"):
        read = read_rows(rows)
    else:
        pl.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")
        read = read_rows(tmp_path / "rows.parquet")
        # Their bytes lie in the table once.
        assert not any(
            "Binary" in str(t)
            for n, t in read.schema.items()
            if n != "images" and n != "source.images"
        )
    assert read["images"].to_list() == [[red], [blue]]
    lines = tmp_path / "out.jsonl"
    lines.write_text("".join(f"{line}\n" for line in source_lines(read)))
    again = read_rows(lines)
    assert again["sample_id"].to_list() == read["sample_id"].to_list()
    assert again["images"].to_list() == [[red], [blue]]
    assert f"data:image/{form.lower()};base64" in lines.read_text()


def test_columns_named_like_ours_and_like_what_ours_become() -> None:
    odd = {"row": 7, "source.row": 8, "source.source.row": 9, "source.url": "x", "value": 1}
    odd |= {"source.value": 2, "problem": "p", "images": None, "sample_id": "s"}
    for rows in ([PAIR | odd], pl.DataFrame([PAIR | odd])):
        read = read_rows(rows)
        assert read["row"].item() == 0
        assert read["problem"].item() is None
        assert read["source.row"].item() == 7
        assert read["source.source.row"].item() == 8
        assert read["source.url"].item() == "x"
        assert (
            _out(read.with_columns(source=pl.lit(None, pl.String)))[0].items()
            >= {k: v for k, v in (PAIR | odd).items() if k != "images"}.items()
        )


DISAGREEING = {
    "text and list": (["x"], [["x", "y"]]),
    "number and text": ([1], ["1"]),
    "struct and number": ([{"a": 1}], [2]),
    "structs of other fields": ([{"a": 1}], [{"b": [1.5]}]),
    "zoned and unzoned": (
        [datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)],
        [datetime.datetime(2026, 1, 1)],
    ),
    "truth and number": ([True], [1]),
    "large number and fraction": ([2**53 + 1], [0.5]),
}


@pytest.mark.parametrize("kind", DISAGREEING)
def test_columns_of_several_types_become_json_text(kind: str, tmp_path: Path) -> None:
    one, other = DISAGREEING[kind]
    for name, values in (("a", one), ("b", other)):
        rows = pl.DataFrame({"prompt": ["a?"], "response": ["b."], "own": values})
        rows.write_parquet(tmp_path / f"{name}.parquet")
    for read in (read_rows(tmp_path), RowSource(path=str(tmp_path)).read()):
        assert read.schema["own"] == pl.String
        told = [json.loads(text) for text in read["own"]]
        alone = [_out(read_rows(tmp_path / f"{n}.parquet"))[0] for n in ("a", "b")]
        assert told == [row["own"] for row in alone]
        assert _out(read) == alone


@pytest.mark.parametrize(
    ("one", "other", "dtype"),
    [
        ([1], [0.5], pl.Float64()),
        ([1], [2**40], pl.Int64()),
        ([None], ["x"], pl.String()),
        ([None], [[1]], pl.List(pl.Int64())),
    ],
)
def test_columns_that_one_type_holds_exactly_keep_one(
    one: list, other: list, dtype: pl.DataType, tmp_path: Path
) -> None:
    for name, values in (("a", one), ("b", other)):
        rows = pl.DataFrame({"prompt": ["a?"], "response": ["b."], "own": values})
        if dtype == pl.Int64 and name == "a":
            rows = rows.cast({"own": pl.Int16})
        rows.write_parquet(tmp_path / f"{name}.parquet")
    read = read_rows(tmp_path)
    assert read.schema["own"] == dtype
    assert read["own"].to_list() == [*one, *other]


def test_rare_keys_among_very_many_stay_in_the_line() -> None:
    rows = [PAIR | {f"k{i}_{j}": 1 for j in range(5)} for i in range(1000)]
    read = read_rows(rows)
    assert set(read.columns) == {*CANONICAL_SCHEMA, "prompt", "response"}
    assert _out(read)[999]["k999_4"] == 1
    few = read_rows([PAIR | {"rare": 1}, *([PAIR] * 500)])
    assert few["rare"].null_count() == 500
    wide = read_rows([PAIR | {f"k{i}": 1 for i in range(5000)}])
    assert len(wide.columns) == MOST_COLUMNS + len(CANONICAL_SCHEMA)


def test_what_unicode_is_not_stays_with_its_row() -> None:
    half = "\ud800"
    rows = [PAIR, PAIR | {"note": half}, PAIR | {half: 1}, PAIR | {"lang": half}]
    read = read_rows(rows, on_bad_row="skip")
    assert _out(read) == rows
    from forvalue_dagster.data.columns import Columns

    grouped = read_rows(rows, on_bad_row="skip", columns=Columns(group="lang"))
    assert grouped["problem"].is_null().to_list() == [True, True, True, False]
    assert "surrogate" in grouped["problem"][3]
    deep: list = []
    for _ in range(2000):
        deep = [deep]
    nested = read_rows([PAIR, {"messages": deep}, PAIR | {"x": deep}, PAIR], on_bad_row="skip")
    assert nested["problem"].is_null().to_list() == [True, False, False, True]
    assert "nests too deeply" in nested["problem"][2]

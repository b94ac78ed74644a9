"""A table's digest changes with its content, and only then."""

from __future__ import annotations

import math

import polars as pl
import pytest

from forvalue_dagster.data.digest import digest


@pytest.mark.parametrize(
    "other",
    [
        pl.DataFrame({"a": [1.0, None]}),
        pl.DataFrame({"a": [1.0, math.inf]}),
        pl.DataFrame({"a": [math.nan, 1.0]}),
        pl.DataFrame({"a": [1.0, math.nan], "b": [1, 2]}),
        pl.DataFrame({"a": [b"1", b"2"]}),
        pl.DataFrame({"a": [{"bytes": b"1"}, {"bytes": b"2"}]}),
        pl.DataFrame({"a": [{"bytes": b"1"}, {"bytes": b"3"}]}),
        pl.DataFrame({"a": [["x"], ["y", None]]}),
    ],
)
def test_other_content_is_another_digest(other: pl.DataFrame) -> None:
    assert digest(other) != digest(pl.DataFrame({"a": [1.0, math.nan]}))
    assert digest(other) == digest(other.clone())


def test_bytes_inside_count() -> None:
    images = [
        pl.DataFrame({"image": [{"bytes": content}]}) for content in (b"\xff\x01", b"\xff\x02")
    ]
    assert digest(images[0]) != digest(images[1])

"""Rows that were seen before do not go through the model again, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from upath import UPath

import forvalue_dagster as fv
from forvalue_dagster.engine.features import feature_parts
from forvalue_dagster.engine.reuse import FeaturePass
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.storage.feature_store import FeatureStore
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.storage.parquet import write_table
from forvalue_dagster.storage.parts import StoredParts
from tests.tiny import tiny_loaded

OPTIONS = ValuationOptions(window_rows=4, batch_tokens=128)
LARGE = ValuationOptions(window_rows=512, batch_tokens=4096)
ROWS = [{"prompt": f"question {i}", "response": f"answer {i * i}"} for i in range(10)]


@pytest.fixture(scope="module")
def loaded():
    return tiny_loaded()


def frame(rows: list[dict[str, str]], shard: str = "s") -> pl.DataFrame:
    return fv.read_rows(rows, shard=shard, on_bad_row="skip")


def run(
    loaded, rows: pl.DataFrame, folder: Path, options: ValuationOptions = OPTIONS
) -> tuple[FeaturePass, pl.DataFrame]:
    """One feature step: what it did, and the table that it wrote."""
    storage = Storage(base_dir=str(folder))
    path = storage.path("features", f"{rows['shard'][0]}.parquet")
    store = FeatureStore(storage, path.parent)
    parts = StoredParts(path.parent / ".parts", places=rows.select("shard", "row", "sample_id"))
    done = FeaturePass(loaded, rows, options, store)
    laid_out = pl.concat(done.parts(parts))
    write_table(path, parts)
    table = pl.read_parquet(path)
    assert table.equals(laid_out)
    assert not (path.parent / ".parts" / "attempt").exists()
    return done, table


def same_features(table: pl.DataFrame, expected: pl.DataFrame) -> None:
    """Compare statistics by place; batches differ, so floats may in their last digits."""
    columns = ["shard", "row", "sample_id", "nll", "response_tokens", "status", "reason"]
    assert_frame_equal(
        table.select(columns).sort("row"), expected.select(columns).sort("row"), abs_tol=1e-9
    )


def test_only_new_rows_pass(loaded, tmp_path: Path) -> None:
    first, _ = run(loaded, frame(ROWS), tmp_path)
    assert (first.reused, first.repeated, first.passed) == (0, 0, 10)
    # One row edited, one appended, one taken away, the others in another order.
    edited = [*ROWS[:4], {"prompt": "question 4", "response": "mended"}, *ROWS[6:][::-1]]
    edited.append({"prompt": "more", "response": "more still"})
    rows = frame(edited)
    second, table = run(loaded, rows, tmp_path)
    assert (second.reused, second.repeated, second.passed) == (8, 0, 2)
    same_features(table, pl.concat(feature_parts(loaded, rows, OPTIONS)))


def test_one_percent_appended_to_two_thousand_rows(loaded, tmp_path: Path) -> None:
    many = [{"prompt": f"question {i}", "response": f"answer {i}"} for i in range(2020)]
    assert run(loaded, frame(many[:2000]), tmp_path, LARGE)[0].passed == 2000
    done, table = run(loaded, frame(many), tmp_path, LARGE)
    assert (done.reused, done.passed) == (2000, 20)
    assert sorted(table["row"]) == list(range(2020))


def test_another_shard_knows_them(loaded, tmp_path: Path) -> None:
    run(loaded, frame(ROWS, "one"), tmp_path)
    rows = frame([ROWS[7], {"prompt": "new", "response": "new"}, ROWS[2]], "two")
    done, table = run(loaded, rows, tmp_path)
    assert (done.reused, done.passed) == (2, 1)
    same_features(table, pl.concat(feature_parts(loaded, rows, OPTIONS)))


def test_repeated_rows_pass_once_and_stay_rows(loaded, tmp_path: Path) -> None:
    rows = frame([ROWS[0], ROWS[1], ROWS[0], {"prompt": 3}, ROWS[0], ROWS[1]] * 3)
    done, table = run(loaded, rows, tmp_path)
    assert (done.repeated, done.passed) == (13, 5)
    same_features(table, pl.concat(feature_parts(loaded, rows, OPTIONS)))
    again, table = run(loaded, rows, tmp_path)
    assert (again.reused, again.passed) == (15, 3)
    same_features(table, pl.concat(feature_parts(loaded, rows, OPTIONS)))


def test_another_model_knows_nothing(loaded, tmp_path: Path) -> None:
    run(loaded, frame(ROWS), tmp_path)
    done, _ = run(tiny_loaded("qwen2"), frame(ROWS), tmp_path)
    assert (done.reused, done.passed) == (0, 10)


def test_rows_that_did_not_fit_are_tried_again(loaded, tmp_path: Path) -> None:
    _, table = run(loaded, frame(ROWS), tmp_path)
    failed = pl.col("row") == 3
    table = table.with_columns(
        status=pl.when(failed).then(pl.lit("skipped")).otherwise("status"),
        reason=pl.when(failed).then(pl.lit("out_of_memory")).otherwise("reason"),
    )
    write_table(UPath(tmp_path / "features" / "s.parquet"), table.lazy())
    done, table = run(loaded, frame(ROWS), tmp_path)
    assert (done.reused, done.passed) == (9, 1)
    assert set(table["status"]) == {"scored"}


def test_a_damaged_table_knows_nothing(
    loaded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(loaded, frame(ROWS[:5], "one"), tmp_path)
    run(loaded, frame(ROWS[5:], "two"), tmp_path)
    damaged = tmp_path / "features" / "one.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    done, _ = run(loaded, frame(ROWS, "three"), tmp_path)
    assert (done.reused, done.passed) == (5, 5)
    assert "one.parquet is not a readable feature table" in caplog.text


def test_two_attempts_at_once_do_not_take_each_others_parts(loaded, tmp_path: Path) -> None:
    rows = frame(ROWS)
    places = rows.select("shard", "row", "sample_id")
    one, two = (StoredParts(UPath(tmp_path), attempt, places) for attempt in ("one", "two"))
    passing = FeaturePass(loaded, rows, OPTIONS).parts(two)
    next(passing)
    list(FeaturePass(loaded, rows, OPTIONS).parts(one))
    # What the second attempt had finished when the first began was copied; it is a window ahead.
    assert one.reused in (1, 2)
    write_table(UPath(tmp_path / "table.parquet"), one)
    list(passing)
    write_table(UPath(tmp_path / "again.parquet"), two)
    assert (tmp_path / "table.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()
    left = StoredParts(UPath(tmp_path), "dead")
    list(FeaturePass(loaded, rows, OPTIONS).parts(left))
    StoredParts(UPath(tmp_path), "three").sweep(lambda attempt: attempt != "dead")
    assert (tmp_path / "dead").exists()
    StoredParts(UPath(tmp_path / "parts"), "three").sweep(lambda attempt: True)


def test_an_empty_shard_has_an_empty_table(loaded, tmp_path: Path) -> None:
    rows = frame(ROWS).clear()
    done = FeaturePass(loaded, rows, OPTIONS, FeatureStore(Storage(base_dir="."), UPath(tmp_path)))
    (table,) = done.parts()
    assert table.is_empty()
    assert "last_hidden" in table.columns

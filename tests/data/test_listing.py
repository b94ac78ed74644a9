"""Which files are shards: by whole names, and nothing passed over in silence."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import datasets
import polars as pl
import pytest

from forvalue_dagster.data.files import DataFileError
from forvalue_dagster.data.listing import MAX_NAME, shards_in, unfit_name
from forvalue_dagster.orchestration.options.sources import RowSource

ROW = {"prompt": "a?", "response": "b."}


def _write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(ROW) + "\n")
    return folder


@pytest.mark.parametrize(
    ("split", "shards"),
    [
        (
            "train",
            [
                "data-train-00000-of-00002",
                "main-train-x",
                "train-00000-of-00001-0123456789abcdef",
                "train",
                "train.1",
            ],
        ),
        ("train_sft", ["train_sft-00000-of-00002"]),
        ("test_sft", ["test_sft-00000-of-00001"]),
        ("1", None),
        ("sft", None),
        ("of", None),
        ("data", ["data-train-00000-of-00002", "data-val"]),
    ],
)
def test_a_split_is_known_by_its_whole_name(split: str, shards: list[str] | None) -> None:
    paths = [
        "data/train-00000-of-00002.parquet",
        "data/val.jsonl",
        "main/train/x.jsonl",
        "train-00000-of-00001-0123456789abcdef.parquet",
        "train.JSONL",
        "train.1.csv",
        "train_sft-00000-of-00002.parquet",
        "test_sft-00000-of-00001.parquet",
        "retrain.jsonl",
        "train/.cache/x.jsonl",
    ]
    if shards is None:
        with pytest.raises(DataFileError, match=f"holds no split '{split}'.*It holds data/train"):
            shards_in(paths, "hub", split)
    else:
        assert sorted(shards_in(paths, "hub", split).shards) == sorted(shards)


def test_a_dataset_dict_by_split(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([ROW])
    datasets.DatasetDict({"train": rows, "train_sft": rows}).save_to_disk(tmp_path / "hub")
    assert RowSource(path=str(tmp_path / "hub"), split="train").read()["shard"].item() == "train"
    with pytest.raises(DataFileError, match=r"is a DatasetDict.*train, train_sft"):
        RowSource(path=str(tmp_path / "hub")).listing()
    with pytest.raises(DataFileError, match="holds no split 'sft'"):
        RowSource(path=str(tmp_path / "hub"), split="sft").listing()


PASSED_OVER = {
    "book.xlsx": "a spreadsheet",
    "notes.txt": "a format that is not read",
    "page.xml": "a format that is not read",
    "rows.jsonl.crdownload": "not complete",
    "rows.parquet.tmp": "not complete",
    "rows.tar.gz": "an archive",
    "rows.zip": "an archive",
    "rows.jsonl.bz2": "an archive",
    "model.pkl": "can run code",
    "rows": "no name of a data file",
    "b.csv": "b.jsonl is the shard 'b' already",
    "three...dots.jsonl": "three dots",
    f"{'n' * (MAX_NAME + 1)}.jsonl": f"has {MAX_NAME + 1} bytes; expected at most {MAX_NAME}",
    "line\nbreak.jsonl": "control characters",
    "deeper/": "a folder with 2 data files",
}
SAID_NOTHING_OF = ["README.md", "LICENSE", "a.png", ".hidden.jsonl", "dataset_info.json", "x.py"]


def test_what_is_passed_over_is_said(tmp_path: Path) -> None:
    _write(tmp_path, "b.jsonl", "A.JSONL", "c.json", "deeper/1.jsonl", "deeper/2.csv")
    _write(tmp_path, *(name for name in PASSED_OVER if name != "deeper/"), *SAID_NOTHING_OF)
    source = RowSource(path=str(tmp_path))
    found = source.survey()
    assert sorted(found.shards) == ["A", "b", "c"]
    assert found.passed_over.keys() == PASSED_OVER.keys()
    for path, reason in PASSED_OVER.items():
        assert reason in found.passed_over[path], path
        assert path in str(found) or "and 5 more" in str(found)
    assert len(source.read()) == 3


def test_a_folder_with_nothing_to_read_says_what_it_holds(tmp_path: Path) -> None:
    assert RowSource(path=str(tmp_path)).listing() == {}
    _write(tmp_path, "rows.xlsx")
    with pytest.raises(DataFileError, match=r"It holds rows\.xlsx: a spreadsheet; save it as CSV"):
        RowSource(path=str(tmp_path)).listing()
    with pytest.raises(DataFileError, match=r"rows\.xlsx is no data file"):
        RowSource(path=str(tmp_path / "rows.xlsx")).listing()


def test_links_lead_no_shard_astray(tmp_path: Path) -> None:
    folder = _write(tmp_path / "rows", "a.jsonl", "real/x.jsonl")
    _write(tmp_path, "outside.jsonl")
    (folder / "loop.jsonl").symlink_to("loop.jsonl")
    (folder / "self").symlink_to(".")
    (folder / "out.jsonl").symlink_to("../outside.jsonl")
    (folder / "gone.jsonl").symlink_to("nowhere.jsonl")
    (folder / "in.jsonl").symlink_to("a.jsonl")
    found = RowSource(path=str(folder)).survey()
    assert sorted(found.shards) == ["a", "in"]
    for name in ("loop", "out", "gone"):
        assert "a link that leads out" in found.passed_over[f"{name}.jsonl"]
    assert len(RowSource(path=str(folder)).read()) == 2


TABLES = {
    "x.parquet/": ["x.parquet/part-0.parquet", "x.parquet/sub/part-1.parquet"],
    "x/ of Spark": ["x/_SUCCESS", "x/part-0.parquet", "x/part-1.parquet"],
    "x/ of hive": ["x/lang=de/year=1/0.parquet", "x/lang=en/year=2/0.parquet"],
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("as_path", [False, True])
def test_a_folder_of_parts_is_one_shard(kind: str, as_path: bool, tmp_path: Path) -> None:
    _write(tmp_path, *([] if as_path else ["other.jsonl"]))
    for number, name in enumerate(TABLES[kind]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frame = pl.DataFrame([ROW | {"n": number}] * (0 if name.endswith("SUCCESS") else 2))
        frame.write_parquet(path) if len(frame) else path.touch()
    folder = tmp_path / kind.partition("/")[0]
    source = RowSource(path=str(folder if as_path else tmp_path))
    assert sorted(source.listing()) == (["x"] if as_path else ["other", "x"])
    rows = source.read("x")
    assert rows["row"].to_list() == [0, 1, 2, 3]
    assert rows["shard"].unique().to_list() == ["x"]
    if kind == "x/ of hive":
        assert rows["lang"].to_list() == ["de", "de", "en", "en"]
    before = source.listing()["x"].state
    os.utime(tmp_path / TABLES[kind][-1], ns=(1, 1))
    assert source.listing()["x"].state != before


def test_a_listing_grows_with_its_files_and_no_faster(tmp_path: Path) -> None:
    def seconds(count: int) -> float:
        _write(tmp_path, *(f"s{i:05d}.jsonl" for i in range(count)))
        times = []
        for _ in range(3):
            start = time.process_time()
            assert len(RowSource(path=str(tmp_path)).listing()) == count
            times.append(time.process_time() - start)
        return min(times)

    few, many = seconds(400), seconds(4000)
    assert many < 30 * few  # ten times as many; quadratic would be a hundred times


@pytest.mark.parametrize("name", ["../escape", "/abs", "a//b", "a/../b", ".", "", " ", "x" * 300])
def test_names_that_are_no_shards(name: str) -> None:
    assert unfit_name(name)


@pytest.mark.parametrize("name", ["rows[1]", "s*", "s?", "{a}", "a/b", "k=v", "a b", "$x$", "ü"])
def test_names_that_are(name: str) -> None:
    assert unfit_name(name) is None

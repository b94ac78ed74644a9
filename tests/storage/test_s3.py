"""Files under s3://, against a real HTTP endpoint: whole, retried, and clear about what fails."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from boto3.s3.transfer import TransferConfig

import forvalue_dagster as fv
from forvalue_dagster.data.files import DataFileError
from forvalue_dagster.storage.atomic import atomic_write
from forvalue_dagster.storage.parquet import scan_table, unchanged, write_table
from tests.s3 import Fault, S3Server, s3_server

ROWS = [{"prompt": f"question {i}", "response": f"answer {i}"} for i in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
# Parts of a multipart upload are at least this large.
PART = 5 * 2**20


@pytest.fixture(scope="module")
def running() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def server(running: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    # The ordinary chain of credentials: here, the environment.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAORDINARYCHAIN")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret that must not show")
    running.faults.clear()
    running.met.clear()
    running.client.create_bucket(Bucket="data")
    for key in running.keys("data"):
        running.client.delete_object(Bucket="data", Key=key)
    return running


def put(server: S3Server, key: str, content: bytes = LINES) -> None:
    server.client.put_object(Bucket="data", Key=key, Body=content)


def source(server: S3Server, path: str = "s3://data/train", **options) -> fv.RowSource:
    return fv.RowSource(path=path, s3=server.resource(), **options)


def storage(server: S3Server, timeout: float = 5, **options) -> fv.Storage:
    """Storage whose client does not wait a minute for a silent server."""
    retries = {"retries": {"max_attempts": options.pop("attempts", 5), "mode": "standard"}}
    return fv.Storage(
        base_dir="s3://data/forvalue",
        s3=server.resource(),
        storage_options={"config_kwargs": {"read_timeout": timeout, **retries}, **options},
    )


def test_a_prefix_is_a_folder_of_shards(server: S3Server) -> None:
    put(server, "train/one.jsonl")
    put(server, "train/two.jsonl.gz", gzip.compress(LINES))
    put(server, "train/deeper/three.jsonl")
    put(server, "training/four.jsonl")
    put(server, "train/notes.txt")
    listing = source(server).listing()
    assert set(listing) == {"one", "two"}
    assert source(server).read("two")["messages"].str.contains("answer 2").to_list()[2]
    assert len(source(server).read()) == 6
    # The same bytes again are the same state; others are another.
    put(server, "train/one.jsonl")
    assert source(server).listing() == listing
    put(server, "train/one.jsonl", LINES[:-10])
    assert source(server).listing()["one"] != listing["one"]


def test_a_saved_dataset_and_a_split(server: S3Server, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    )
    made.save_to_disk(tmp_path / "both")
    for file in (tmp_path / "both").rglob("*"):
        if file.is_file():
            put(server, f"hub/{file.relative_to(tmp_path / 'both')}", file.read_bytes())
    with pytest.raises(DataFileError, match="Set split to one of test, train"):
        source(server, "s3://data/hub").listing()
    train = source(server, "s3://data/hub", split="train")
    assert set(train.listing()) == {"train"}
    assert train.read()["shard"].to_list() == ["train"] * 3
    with pytest.raises(DataFileError, match="no split 'dev'"):
        source(server, "s3://data/hub", split="dev").listing()


def test_objects_that_came_in_parts(server: S3Server, tmp_path: Path) -> None:
    file = tmp_path / "large.jsonl"
    text = "".join(np.random.default_rng(0).choice(list("abcdefgh "), 2000))
    file.write_text(
        "".join(json.dumps({"prompt": "p", "response": f"{i} {text}"}) + "\n" for i in range(6000))
    )
    assert file.stat().st_size > 2 * PART
    config = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART)
    server.client.upload_file(str(file), "data", "train/large.jsonl", Config=config)
    listed = source(server).listing()["large"]
    assert listed.state.endswith("-3")  # an ETag of three parts
    assert source(server).read("large").height == 6000


def test_a_table_appears_whole(server: S3Server) -> None:
    """While a table of several parts is uploaded, readers see the old one, then the new one.

    A scan, which makes several requests, may meet both: then it is refused.
    """
    place = storage(server, default_block_size=PART)
    path = place.path("table.parquet")
    noise = np.random.default_rng(0).bytes(3 * PART)
    old = pl.DataFrame({"n": [0], "content": [noise]})
    new = pl.DataFrame({"n": [1, 1], "content": [noise, noise[::-1]]})
    write_table(path, old)
    seen: set[tuple[int, ...]] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                with unchanged(path):
                    numbers = tuple(scan_table(place, path).select("n").collect()["n"])
            except (OSError, pl.exceptions.PolarsError):
                continue
            seen.add(numbers)

    reader = threading.Thread(target=read)
    reader.start()
    write_table(path, new)
    time.sleep(0.5)
    done.set()
    reader.join()
    assert seen <= {(0,), (1, 1)}
    assert tuple(scan_table(place, path).select("n").collect()["n"]) == (1, 1)
    assert pl.read_parquet(path.read_bytes())["content"][1] == noise[::-1]


def test_an_upload_that_fails_leaves_what_was_there(server: S3Server) -> None:
    path = storage(server, default_block_size=PART).path("file")
    with atomic_write(path) as stream:
        stream.write(b"old")

    def interrupted() -> None:
        with atomic_write(path) as stream:
            stream.write(b"half" * PART)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert path.read_bytes() == b"old"
    assert server.keys("data") == {"forvalue/file"}


@pytest.mark.parametrize(
    "fault",
    [
        Fault(times=2),
        Fault(status="503 SlowDown", times=2),
        Fault(seconds=2.5),
        Fault(method="PUT", times=2),
    ],
    ids=["500", "503", "silence", "500-on-write"],
)
def test_passing_errors_are_tried_again(server: S3Server, fault: Fault) -> None:
    place = storage(server, timeout=1)
    path = place.path("table.parquet")
    put(server, "train/one.jsonl")
    if fault.method == "GET":
        write_table(path, pl.DataFrame({"n": [1]}))
    server.faults.append(fault)
    if fault.method == "PUT":
        write_table(path, pl.DataFrame({"n": [1]}))
    assert pl.read_parquet(path.read_bytes())["n"].to_list() == [1]
    assert server.met
    server.faults.append(Fault(times=1))
    assert scan_table(place, path).collect()["n"].to_list() == [1]
    server.faults.append(Fault(times=1))
    assert source(server).read("one").height == 3


def test_an_error_that_stays_is_clear(server: S3Server) -> None:
    put(server, "train/one.jsonl")
    server.faults.append(Fault(times=10_000))
    rows = fv.RowSource(path="s3://data/train", s3=server.resource(max_attempts=2))
    with pytest.raises(
        DataFileError, match=r"s3://data/train cannot be read: .*InternalError.*Tried 2"
    ):
        rows.listing()
    with pytest.raises(OSError, match="InternalError"):
        storage(server, attempts=2).path("absent").read_bytes()


def test_a_missing_bucket_and_denied_access(server: S3Server) -> None:
    with pytest.raises(DataFileError, match=r"s3://nowhere/ cannot be read: .*NoSuchBucket"):
        source(server, "s3://nowhere").listing()
    put(server, "train/one.jsonl")
    server.faults.append(Fault("403 AccessDenied", times=10_000))
    with pytest.raises(DataFileError, match=r"AccessDenied.*credentials that may list and read"):
        source(server).listing()
    with pytest.raises(PermissionError):
        storage(server).path("absent").read_bytes()
    server.faults[:] = [Fault("403 AccessDenied", method="PUT", times=10_000)]
    with pytest.raises(PermissionError, match=r"table.parquet cannot be written: .*may write"):
        write_table(storage(server).path("table.parquet"), pl.DataFrame({"n": [1]}))
    server.faults.clear()
    with pytest.raises(FileNotFoundError):
        write_table(
            fv.Storage(base_dir="s3://nowhere", s3=server.resource()).path("t.parquet"),
            pl.DataFrame({"n": [1]}),
        )

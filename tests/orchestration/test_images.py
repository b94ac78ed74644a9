"""Rows with images through sources and the graph: where their bytes come from, what is shown."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

import forvalue_dagster as fv
from forvalue_dagster.data.images import decode_picture, image_digest
from tests.s3 import s3_server
from tests.tiny_vision import picture, save_tiny_vision_model

ROWS = [
    {"prompt": "<image>What?", "response": "a cat", "image": "images/one.png"},
    {"prompt": "<image>What?", "response": "a dog", "image": "images/two.png"},
    {"prompt": "What?", "response": "nothing"},
    {"prompt": "<image>What?", "response": "a bird", "image": "images/gone.png"},
]
ONE, TWO = picture(1), picture(2)
NAMES = [[image_digest(ONE)], [image_digest(TWO)], None, [None]]


def lines(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def names(rows: pl.DataFrame) -> list[list[str | None] | None]:
    return [
        images and [None if data is None else image_digest(data) for data in images]
        for images in rows["images"].to_list()
    ]


def test_images_beside_the_shards(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "one.png").write_bytes(ONE)
    (tmp_path / "images" / "two.png").write_bytes(TWO)
    (tmp_path / "shard.jsonl").write_text(lines(ROWS))
    source = fv.RowSource(path=str(tmp_path))
    assert list(source.listing()) == ["shard"]
    assert names(source.read("shard")) == NAMES
    assert names(fv.RowSource(path=str(tmp_path / "shard.jsonl")).read()) == NAMES


def test_images_in_a_folder_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "photos" / "images").mkdir(parents=True)
    (tmp_path / "photos" / "images" / "one.png").write_bytes(ONE)
    (tmp_path / "photos" / "images" / "two.png").write_bytes(TWO)
    (tmp_path / "rows" / "shard.jsonl").write_text(lines(ROWS))
    source = fv.RowSource(path=str(tmp_path / "rows"), image_root=str(tmp_path / "photos"))
    assert names(source.read("shard")) == NAMES


def test_images_on_s3() -> None:
    with s3_server() as server:
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
        s3 = server.resource(**keys)
        client = s3.get_client()
        client.create_bucket(Bucket="bucket")
        by_uri = ROWS[0] | {"image": "s3://bucket/data/images/one.png"}
        body = lines([by_uri, *ROWS[1:]]).encode()
        client.put_object(Bucket="bucket", Key="data/shard.jsonl", Body=body)
        client.put_object(Bucket="bucket", Key="data/images/one.png", Body=ONE)
        client.put_object(Bucket="bucket", Key="data/images/two.png", Body=TWO)
        source = fv.RowSource(path="s3://bucket/data", s3=s3)
        assert list(source.listing()) == ["shard"]
        assert names(source.read("shard")) == NAMES
        elsewhere = ROWS[0] | {"image": "s3://bucket/other/one.png"}
        client.put_object(Bucket="bucket", Key="data/shard.jsonl", Body=lines([elsewhere]))
        with pytest.raises(ValueError, match="outside of s3://bucket/data"):
            source.read("shard")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server over tmp_path / "web"."""
    (tmp_path / "web").mkdir()
    serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_images_from_a_web_server_that_was_named(tmp_path: Path, web: str) -> None:
    (tmp_path / "web" / "images").mkdir()
    (tmp_path / "web" / "images" / "one.png").write_bytes(ONE)
    (tmp_path / "web" / "images" / "two.png").write_bytes(TWO)
    (tmp_path / "shard.jsonl").write_text(lines(ROWS))
    source = fv.RowSource(path=str(tmp_path / "shard.jsonl"), image_root=web)
    assert names(source.read()) == NAMES
    # Nobody named it: nothing is fetched.
    by_uri = ROWS[0] | {"image": f"{web}/images/one.png"}
    (tmp_path / "shard.jsonl").write_text(lines([by_uri]))
    with pytest.raises(ValueError, match="an image is named by a path or URI outside"):
        fv.RowSource(path=str(tmp_path / "shard.jsonl")).read()


@pytest.mark.parametrize("thumbnails", [0, 2])
def test_the_graph_over_images(tmp_path: Path, thumbnails: int) -> None:
    """Every row comes out, the bad ones with their reasons; pictures only if asked for."""
    broken = [
        {"prompt": "<image>What?", "response": "a cat", "image": "images/cut.png"},
    ]
    train = tmp_path / "data" / "train"
    for folder in (train / "images", tmp_path / "data" / "images"):
        folder.mkdir(parents=True)
        (folder / "one.png").write_bytes(ONE)
        (folder / "two.png").write_bytes(TWO)
        (folder / "cut.png").write_bytes(ONE[:60])
    plenty = [{"prompt": f"Say {n}?", "response": f"It is {n}."} for n in range(40)]
    (train / "shard.jsonl").write_text(lines(ROWS + broken + plenty))
    trusted = [row | {"prompt": f"{row['prompt']} {n}"} for n in range(3) for row in ROWS[:3]]
    (tmp_path / "data" / "validation.jsonl").write_text(lines(trusted))
    definitions = fv.valuation_definitions(
        training_rows=fv.RowSource(path=str(train)),
        validation_rows=fv.RowSource(path=str(tmp_path / "data" / "validation.jsonl")),
        storage=fv.Storage(base_dir=str(tmp_path / "storage")),
        valuation=fv.Valuation(
            name=str(save_tiny_vision_model(tmp_path / "model", "llava")),
            local_files_only=True,
            thumbnails=thumbnails,
            fidelity_rows=2,
        ),
    )
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("forvalue_shards", ["shard"])

        runs = [
            definitions.resolve_job_def(job)
            .execute_in_process(instance=instance, partition_key=shard, raise_on_error=False)
            .run_id
            for job, shard in (("forvalue_profile", None), ("forvalue_shard", "shard"))
        ]
        made = instance.get_latest_materialization_event(dg.AssetKey("value_scores"))
        assert made is not None
        assert made.asset_materialization is not None
        metadata = made.asset_materialization.metadata
        events = [entry.to_json() for run_id in runs for entry in instance.all_logs(run_id)]
    scores = pl.read_parquet(tmp_path / "storage" / "value_scores" / "shard.parquet")
    assert scores["status"].to_list() == ["scored"] * 3 + ["skipped"] * 2 + ["scored"] * 40
    assert scores["reason"].to_list()[3:5] == ["image_missing", "image_unreadable"]
    pictures = [name for name in metadata if name.endswith("_images")]
    assert pictures == (["most_valuable_images", "least_valuable_images"] if thumbnails else [])
    shown = decode_picture(ONE)
    stream = io.BytesIO()
    shown.save(stream, "PNG")
    own = base64.b64encode(stream.getvalue()).decode()
    assert any(own in event for event in events) == bool(thumbnails)

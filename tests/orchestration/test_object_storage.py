"""The whole graph under s3://: rows, tables, tensors, pages, sensors; nothing on the local disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster_shared.serdes import serialize_value

import forvalue_dagster as fv
from tests.orchestration.conftest import LIKELY, Project
from tests.orchestration.daemon import Daemon
from tests.s3 import Fault, S3Server, s3_server

SECRET = "a secret that must not show"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAORDINARYCHAIN")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("S3_SECRET", SECRET)
    with s3_server() as server:
        server.client.create_bucket(Bucket="data")
        yield server


@pytest.fixture
def project(tmp_path: Path, model_directory: Path, server: S3Server) -> Iterator[Project]:
    s3 = server.resource(
        aws_access_key_id="AKIAORDINARYCHAIN", aws_secret_access_key=dg.EnvVar("S3_SECRET")
    )
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        made = Project(tmp_path, model_directory, instance)
        made.options = {
            "training_rows": fv.RowSource(path="s3://data/train", s3=s3),
            "validation_rows": fv.RowSource(path="s3://data/validation.jsonl", s3=s3),
            "storage": fv.Storage(base_dir="s3://data/forvalue", s3=s3),
        }
        upload(server, "validation.jsonl", made.rows(40, LIKELY, seed=0))
        upload(server, "train/one.jsonl", made.rows(24, LIKELY, seed=1))
        upload(server, "train/two.jsonl", made.rows(24, LIKELY, seed=2))
        yield made


def upload(server: S3Server, key: str, rows: list[dict[str, str]]) -> None:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    server.client.put_object(Bucket="data", Key=key, Body=content)


def dataset(server: S3Server) -> pl.DataFrame:
    body = server.client.get_object(Bucket="data", Key="forvalue/filtered_dataset.parquet")["Body"]
    return pl.read_parquet(body.read())


def test_the_whole_graph(project: Project, server: S3Server) -> None:
    daemon = Daemon(project)
    ran = daemon.settle()
    assert {shard for asset, shard in ran if asset == "value_scores"} == {"one", "two"}
    assert set(dataset(server)["shard"]) == {"one", "two"}
    keys = server.keys("data")
    assert {key for key in keys if ".parts" in key} == set()
    for name in ("filtered_dataset.jsonl", "filtered_dataset.manifest.json", "data_docs"):
        assert any(name in key for key in keys)
    assert not (project.folder / "files").exists()

    # The same bytes again, then others, then none.
    upload(server, "train/one.jsonl", project.rows(24, LIKELY, seed=1))
    assert daemon.settle() == set()
    upload(server, "train/one.jsonl", project.rows(25, LIKELY, seed=3))
    server.faults += [Fault(times=1), Fault(method="PUT", times=1)]
    assert {(asset, shard) for asset, shard in daemon.settle() if shard} == {
        (asset, "one") for asset in ("raw_finetuning_data", "sample_features", "value_scores")
    }
    assert len(server.met) == 2
    server.client.delete_object(Bucket="data", Key="train/two.jsonl")
    daemon.settle()
    assert set(dataset(server)["shard"]) == {"one"}
    assert not {key for key in server.keys("data") if key.endswith("/two.parquet")}

    # Nothing of all this shows the secret.
    events = [event.to_json() for run in daemon.results for event in logs(project, run.run_id)]
    assert events
    assert not any(SECRET in event for event in events)
    # What the UI is told of the code location.
    shown = serialize_value(RepositorySnap.from_def(project.definitions.get_repository_def()))
    assert "S3_SECRET" in shown
    assert SECRET not in shown


def logs(project: Project, run_id: str) -> list[dg.EventLogEntry]:
    return project.instance.all_logs(run_id)


def test_a_bucket_that_is_away_is_no_reason_to_forget_shards(
    project: Project, server: S3Server
) -> None:
    daemon = Daemon(project)
    daemon.observe()
    server.faults.append(Fault("403 AccessDenied", times=1000))
    daemon.observe()
    assert set(project.instance.get_dynamic_partitions("forvalue_shards")) == {"one", "two"}

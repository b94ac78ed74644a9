"""The feature pass in a process of its own, through Dagster Pipes."""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

import forvalue_dagster as fv
from forvalue_dagster.ray_worker import RayWorker
from forvalue_dagster.worker import OwnLineWriter
from tests.orchestration.conftest import LIKELY, Project
from tests.orchestration.daemon import Daemon
from tests.s3 import s3_server

COMMAND = [sys.executable, "-m", "forvalue_dagster.worker"]


def run_worker(
    context: dg.AssetExecutionContext, job: dict[str, Any]
) -> dg.PipesClientCompletedInvocation:
    return dg.PipesSubprocessClient().run(context=context, command=COMMAND, extras=job)


@pytest.fixture
def project(project: Project) -> Project:
    assert project.run("forvalue_profile").success
    project.instance.add_dynamic_partitions("forvalue_shards", ["good"])
    project.options["compute"] = fv.Compute(worker=run_worker)
    return project


def test_the_graph_with_a_worker(project: Project) -> None:
    result = project.run("forvalue_shard", "good")
    assert result.success
    (made,) = result.asset_materializations_for_node("sample_features")
    assert made.metadata["rows_passed"].value == 30
    assert made.metadata["scored"].value == 30
    columns = {column.name for column in made.metadata["dagster/column_schema"].value.columns}
    assert {"last_hidden", "nll", "fingerprint"} <= columns
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert checks["feature_rows"].passed
    assert checks["feature_rows"].partition == "good"
    logged = [event.user_message for event in project.instance.all_logs(result.run_id)]
    assert any("30 went through the model" in line for line in logged)

    # The same table and data version as the step makes itself.
    there = project.table("sample_features", "good")
    version = made.tags["dagster/data_version"]
    project.options.pop("compute")
    (project.folder / "files" / "sample_features" / "good.parquet").unlink()
    result = project.run("forvalue_shard", "good")
    (made,) = result.asset_materializations_for_node("sample_features")
    assert made.tags["dagster/data_version"] == version
    here = project.table("sample_features", "good")
    assert here.drop("nll").columns == there.drop("nll").columns
    assert here["last_hidden"].equals(there["last_hidden"])


def test_a_worker_that_fails_says_why(project: Project) -> None:
    job = project.definitions.resolve_implicit_global_asset_job_def()
    features = job.get_subset(asset_selection={dg.AssetKey("sample_features")})
    result = features.execute_in_process(
        instance=project.instance, partition_key="good", raise_on_error=False
    )
    assert not result.success  # there are no rows yet
    logged = [event.to_json() for event in project.instance.all_logs(result.run_id)]
    assert any("good.parquet" in line and "Error" in line for line in logged)


@pytest.mark.faults
def test_a_worker_that_is_killed_goes_on_where_it_was(project: Project) -> None:
    """Kill -9 in the middle of the pass; Dagster's retry finishes it, to the same bytes."""
    assert project.run("forvalue_shard", "good").success
    table = project.folder / "files" / "sample_features" / "good.parquet"
    expected = table.read_bytes()
    table.unlink()
    killed = []

    def killed_once(
        context: dg.AssetExecutionContext, job: dict[str, Any]
    ) -> dg.PipesClientCompletedInvocation:
        job["valuation"]["window_rows"] = 2
        if not killed:
            watcher = threading.Thread(target=kill_at_the_second_part)
            watcher.start()
        return run_worker(context, job)

    def kill_at_the_second_part() -> None:
        while len(list(table.parent.glob(".good.parts/*/*.parquet"))) < 2:
            time.sleep(0.01)
        (pid,) = children_running("forvalue_dagster.worker")
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    project.options |= {
        "compute": fv.Compute(worker=killed_once, retry_policy=dg.RetryPolicy(max_retries=1)),
        "valuation": project.valuation(window_rows=2),
    }
    result = project.run("forvalue_shard", "good")
    assert result.success
    assert killed
    (made,) = result.asset_materializations_for_node("sample_features")
    assert made.metadata["parts_reused"].value >= 2
    assert not list(table.parent.glob(".good.parts"))
    now, before = pl.read_parquet(table), pl.read_parquet(expected)
    assert now.height == before.height
    assert now["sample_id"].equals(before["sample_id"])


def test_a_cancelled_run_stops_its_worker(project: Project) -> None:
    """What the UI's "terminate" does to a step: the worker is told, and nothing is half written."""
    seen: list[int] = []

    def slow(
        context: dg.AssetExecutionContext, job: dict[str, Any]
    ) -> dg.PipesClientCompletedInvocation:
        job["valuation"]["window_rows"] = 1
        threading.Thread(target=interrupt).start()
        return run_worker(context, job)

    def interrupt() -> None:
        while not (running := children_running("forvalue_dagster.worker")):
            time.sleep(0.01)
        seen.extend(running)
        time.sleep(3)
        os.kill(os.getpid(), signal.SIGINT)

    project.options["compute"] = fv.Compute(worker=slow)
    project.write("train/good.jsonl", project.rows(20_000, LIKELY, seed=3))
    result = project.run("forvalue_shard", "good")
    (event,) = [event for event in result.all_events if event.is_step_failure]
    assert "Interrupted" in event.step_failure_data.error.to_string()
    assert seen
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() and alive(pid) for pid in seen):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not (project.folder / "files" / "sample_features" / "good.parquet").exists()


@pytest.mark.slow
def test_a_worker_on_s3(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys do not travel with the job: the worker finds its own."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAORDINARYCHAIN")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret that must not show")
    jobs = []

    def recorded(
        context: dg.AssetExecutionContext, job: dict[str, Any]
    ) -> dg.PipesClientCompletedInvocation:
        jobs.append(str(job))
        return run_worker(context, job)

    with s3_server() as server:
        server.client.create_bucket(Bucket="data")
        s3 = server.resource(aws_access_key_id="KEY", aws_secret_access_key="a secret")
        project.options |= {
            "compute": fv.Compute(worker=recorded),
            "storage": fv.Storage(base_dir="s3://data/forvalue", s3=s3),
        }
        assert project.run("forvalue_profile").success
        assert ("value_scores", "good") in Daemon(project).settle()
        assert "forvalue/sample_features/good.parquet" in server.keys("data")
    assert jobs
    assert not any("secret" in job for job in jobs)


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_message_on_a_stream_has_a_line_of_its_own(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where both streams are one log, a progress bar's line is open when a message comes."""
    message: Any = {"method": "log", "params": {"message": "half\nway"}}
    stream = getattr(sys, name)
    with OwnLineWriter().open({"stdio": name}) as channel:
        stream.write("\r 50%|#####     ")
        channel.write_message(message)
        stream.write("\r100%|##########")
        channel.write_message(message)
    written = capsys.readouterr()
    lines = (written.out if name == "stdout" else written.err).split("\n")
    assert lines[0] == "\r 50%|#####     "
    assert [json.loads(line) for line in (lines[1], lines[3])] == [message] * 2


def test_a_ray_worker_without_ray_says_what_to_install(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dagster_ray", None)
    project.options["compute"] = fv.Compute(worker=RayWorker())
    (failure,) = [
        event.step_failure_data.error.to_string()
        for event in project.run("forvalue_shard", "good").all_events
        if event.is_step_failure
    ]
    assert "pip install 'forvalue-dagster[ray]'" in failure


def children_running(module: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = folder.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            command = folder.joinpath("cmdline").read_text()
        except OSError:
            continue
        if int(parent) == os.getpid() and module in command:
            found.append(int(folder.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

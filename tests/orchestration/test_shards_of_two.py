"""Shards belong to their graph: what another project, or a hand, does to the list of partitions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import dagster as dg
import polars as pl
from upath import UPath

from forvalue_dagster.storage.parquet import write_table
from tests.orchestration.conftest import Project

SHARDS = "forvalue_shards"


def tick(project: Project, cursor: str | None) -> dg.SensorResult | dg.SkipReason:
    """A tick of the sensor, and what the daemon makes of it."""
    definitions = project.definitions
    with dg.build_sensor_context(
        instance=project.instance,
        cursor=cursor,
        resources=definitions.resources,
        definitions=definitions,
    ) as context:
        said = definitions.resolve_sensor_def("forvalue_new_shards")(context)
    if isinstance(said, dg.SkipReason):
        return said
    for request in said.dynamic_partitions_requests:
        if isinstance(request, dg.AddDynamicPartitionsRequest):
            project.instance.add_dynamic_partitions(SHARDS, request.partition_keys)
        else:
            for shard in request.partition_keys:
                project.instance.delete_dynamic_partition(SHARDS, shard)
    for event in said.asset_events:
        project.instance.report_runless_asset_event(event)
    return said


def registered(project: Project) -> set[str]:
    return set(project.instance.get_dynamic_partitions(SHARDS))


def neighbour(project: Project) -> Project:
    """Another project in the same deployment, all names as they come."""
    folder = project.folder / "neighbour"
    folder.mkdir()
    made = dataclasses.replace(project, folder=folder, options={})
    made.write("validation.jsonl", made.rows(3, made.likely, seed=0))
    made.write("train/theirs.jsonl", made.rows(3, made.likely, seed=1))
    return made


def test_two_projects_with_the_same_names(project: Project) -> None:
    other = neighbour(project)
    own, theirs = tick(project, None), tick(other, None)
    assert registered(project) == {"good", "bad", "theirs"}
    assert isinstance(tick(project, own.cursor), dg.SkipReason)
    assert isinstance(tick(other, theirs.cursor), dg.SkipReason)
    # Also without a memory, and when a shard of the one goes.
    for lost in (project, other):
        assert not any(
            isinstance(request, dg.DeleteDynamicPartitionsRequest)
            for request in tick(lost, None).dynamic_partitions_requests
        )
    (project.folder / "train" / "bad.jsonl").unlink()
    assert tick(project, None).run_requests
    assert registered(project) == {"good", "theirs"}


def test_a_partition_that_was_deleted_by_hand_comes_back(project: Project) -> None:
    first = tick(project, None)
    project.instance.delete_dynamic_partition(SHARDS, "bad")
    second = tick(project, first.cursor)
    assert registered(project) == {"good", "bad"}
    reports = {event.asset_key.to_user_string() for event in second.asset_events}
    assert reports == {"training_shards"}
    for shard in ("good", "bad"):
        project.instance.delete_dynamic_partition(SHARDS, shard)
    tick(project, second.cursor)
    assert registered(project) == {"good", "bad"}


def tables(project: Project) -> set[str]:
    return {path.name for path in (project.folder / "files").rglob("*.parquet")}


def sweep(project: Project) -> None:
    config = {"ops": {"forvalue_sweep": {"config": {"remove": True}}}}
    job = project.definitions.resolve_job_def("forvalue_retention")
    assert job.execute_in_process(instance=project.instance, run_config=config).success


def test_tables_of_a_file_that_is_there_are_never_removed(project: Project) -> None:
    for shard in ("good", "bad", "old"):
        path = project.folder / "files" / "value_scores" / f"{shard}.parquet"
        Path(path.parent).mkdir(parents=True, exist_ok=True)
        write_table(UPath(path), pl.DataFrame({"x": [1]}))
    # Another project registered its own, and ours are off the list.
    project.instance.add_dynamic_partitions(SHARDS, ["theirs"])
    sweep(project)
    assert tables(project) == {"good.parquet", "bad.parquet"}
    # A folder that is away for a while takes nothing with it.
    (project.folder / "train").rename(project.folder / "away")
    sweep(project)
    assert tables(project) == {"good.parquet", "bad.parquet"}
    (project.folder / "away").rename(project.folder / "train")
    (project.folder / "train" / "bad.jsonl").unlink()
    sweep(project)
    assert tables(project) == {"good.parquet"}

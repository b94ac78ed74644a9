"""The sensors register what is new, report what changed, forget what is gone; and so a schedule."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime

import dagster as dg
import pytest

import forvalue_dagster as fv
from tests.orchestration.conftest import ON_BOTH_STORAGES, Project
from tests.orchestration.daemon import Daemon

pytestmark = ON_BOTH_STORAGES


def tick(project: Project, cursor: str | None, **options) -> dg.SensorResult | dg.SkipReason:
    project.options |= options
    definitions = project.definitions
    with dg.build_sensor_context(
        instance=project.instance,
        cursor=cursor,
        resources=definitions.resources,
        definitions=definitions,
    ) as context:
        return definitions.resolve_sensor_def("forvalue_new_shards")(context)


def reported(result: dg.SensorResult) -> dict[str, str | None]:
    """Shard → state, of the files that a tick reports."""
    return {
        event.partition: event.tags["dagster/data_version"]
        for event in result.asset_events
        if event.asset_key == dg.AssetKey("training_files")
    }


def test_new_unchanged_edited_and_deleted_shards(project: Project) -> None:
    first = tick(project, None)
    assert set(reported(first)) == {"bad", "good"}
    assert first.dynamic_partitions_requests[0].partition_keys == ["bad", "good"]
    assert not first.run_requests
    assert isinstance(tick(project, first.cursor), dg.SkipReason)

    # What lies there and is read by nobody is named, each file with its reason.
    others = {"good.csv": "good.jsonl is the shard 'good' already", "notes.xlsx": "save it as CSV"}
    for name in others:
        (project.folder / "train" / name).write_text("prompt,response\n1,2\n")
    skipped = tick(project, first.cursor)
    assert isinstance(skipped, dg.SkipReason)
    for name, reason in others.items():
        assert f"{name}: " in skipped.skip_message
        assert reason in skipped.skip_message
        (project.folder / "train" / name).unlink()

    project.write("train/good.jsonl", project.rows(3, project.likely, seed=9))
    second = tick(project, first.cursor)
    assert set(reported(second)) == {"good"}
    assert reported(second) != {"good": reported(first)["good"]}

    (project.folder / "train" / "bad.jsonl").unlink()
    third = tick(project, second.cursor)
    assert reported(third) == {"bad": "gone"}
    (deletion,) = third.dynamic_partitions_requests
    assert isinstance(deletion, dg.DeleteDynamicPartitionsRequest)
    assert deletion.partition_keys == ["bad"]
    (purge,) = third.run_requests
    assert purge.run_config["ops"]["forvalue_sweep"]["config"]["remove"] is True
    assert set(json.loads(third.cursor)) == {"good"}

    # An empty folder may be a mount that is away.
    (project.folder / "train" / "good.jsonl").unlink()
    fourth = tick(project, third.cursor)
    assert isinstance(fourth, dg.SkipReason)
    assert "Nothing is removed" in fourth.skip_message


def test_a_cursor_that_was_lost_hides_nothing(project: Project) -> None:
    project.instance.add_dynamic_partitions("forvalue_shards", ["good", "bad", "old"])
    result = tick(project, None)
    assert set(reported(result)) == {"good", "bad", "old"}
    assert reported(result)["old"] == "gone"
    assert result.dynamic_partitions_requests[1].partition_keys == ["old"]


def test_no_more_than_so_many_shards_a_tick(project: Project) -> None:
    for number in range(5):
        project.write(f"train/s{number}.jsonl", project.rows(1, project.likely, seed=number))
    cursor, seen = None, []
    while True:
        result = tick(project, cursor, automation=fv.Automation(shards_per_tick=3))
        if isinstance(result, dg.SkipReason):
            break
        assert len(reported(result)) <= 3
        seen += reported(result)
        cursor = result.cursor
    assert sorted(seen) == ["bad", "good", *(f"s{number}" for number in range(5))]


def test_a_tick_that_dies_is_done_again(project: Project) -> None:
    """Whatever of a tick was applied before its cursor was written: the next one does the same."""
    first = tick(project, None)
    for request in first.dynamic_partitions_requests:
        project.instance.add_dynamic_partitions("forvalue_shards", request.partition_keys)
    for event in first.asset_events[:1]:
        project.instance.report_runless_asset_event(event)
    again = tick(project, None)
    assert reported(again) == reported(first)
    daemon = Daemon(project)
    ran = daemon.settle()
    assert sorted(shard for asset, shard in ran if asset == "value_scores") == ["bad", "good"]
    assert (
        sum(1 for run in daemon.results for made in daemon.made(run) if made.partition == "good")
        == 3
    )


def test_clocks_that_disagree_change_nothing(project: Project) -> None:
    """A state is compared for being the same, never for being later."""
    first = tick(project, None)
    file = project.write("train/good.jsonl", project.rows(3, project.likely, seed=9))
    os.utime(file, (0, 0))  # written by a machine whose clock stands in 1970
    second = tick(project, first.cursor)
    assert set(reported(second)) == {"good"}
    os.utime(file, (2**33, 2**33))
    assert set(reported(tick(project, second.cursor))) == {"good"}


def test_a_folder_that_is_away_is_no_reason_to_forget_shards(project: Project) -> None:
    first = tick(project, None)
    shutil.move(project.folder / "train", project.folder / "away")
    skipped = tick(project, first.cursor)
    assert isinstance(skipped, dg.SkipReason)
    assert "does not exist" in skipped.skip_message
    shutil.move(project.folder / "away", project.folder / "train")
    assert isinstance(tick(project, first.cursor), dg.SkipReason)


def test_a_schedule_in_place_of_the_sensors(project: Project) -> None:
    project.options["automation"] = fv.Automation(schedule="0 3 * * *")
    definitions = project.definitions
    assert {sensor.name for sensor in definitions.sensors} == {
        "forvalue_automation",
        "forvalue_model_changes",
    }

    def turn() -> dg.RunRequest | dg.SkipReason:
        context = dg.build_schedule_context(
            instance=project.instance,
            scheduled_execution_time=datetime.now(UTC),
            resources=definitions.resources,
            repository_def=definitions.get_repository_def(),
        )
        with context:
            return definitions.resolve_schedule_def("forvalue_discovery")(context)

    assert "2 shards new or changed" in turn().skip_message
    daemon = Daemon(project)
    assert {("value_scores", "bad"), ("value_scores", "good")} <= daemon.settle()
    assert "0 shards new or changed" in turn().skip_message
    assert daemon.settle() == set()
    (project.folder / "train" / "bad.jsonl").unlink()
    assert isinstance(turn(), dg.RunRequest)
    assert ("filtered_dataset", None) in daemon.settle()


def test_rows_of_another_asset(project: Project) -> None:
    """Partitions of the asset are the shards; rows it yields again change nothing."""
    teams = dg.StaticPartitionsDefinition(["red", "blue"])
    content = {"red": 1, "blue": 2}

    @dg.asset(partitions_def=teams, io_manager_key="parquet_io_manager")
    def collected(context):
        import polars as pl

        rows = project.rows(24, project.likely, seed=content[context.partition_key])
        return pl.DataFrame(rows)

    project.options |= {
        "training_rows": fv.UpstreamRows(asset="collected"),
        "upstream_shards": teams,
    }
    graph = project.definitions
    together = dg.Definitions.merge(graph, dg.Definitions(assets=[collected]))
    type(project).definitions, kept = property(lambda self: together), type(project).definitions
    try:
        daemon = Daemon(project)

        def collect(team: str) -> None:
            job = together.resolve_implicit_global_asset_job_def()
            assert (
                job.get_subset(asset_selection={collected.key})
                .execute_in_process(instance=project.instance, partition_key=team)
                .success
            )

        collect("red")
        collect("blue")
        ran = daemon.settle()
        assert {shard for asset, shard in ran if asset == "value_scores"} == {"red", "blue"}
        assert ("filtered_dataset", None) in ran
        collect("red")
        assert daemon.settle() == {("raw_finetuning_data", "red")}
        content["red"] = 3
        collect("red")
        assert {("value_scores", "red"), ("filtered_dataset", None)} <= daemon.settle()
    finally:
        type(project).definitions = kept


def test_a_source_that_contradicts_itself(project: Project) -> None:
    project.options["upstream_shards"] = dg.StaticPartitionsDefinition(["a"])
    with pytest.raises(ValueError, match="training_rows are files; see UpstreamRows"):
        _ = project.definitions

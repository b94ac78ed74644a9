"""The sensor registers what is new, revalues what changed, forgets what is gone."""

from __future__ import annotations

import json

import dagster as dg

from tests.orchestration.conftest import Project


def tick(project: Project, cursor: str | None) -> dg.SensorResult | dg.SkipReason:
    definitions = project.definitions
    context = dg.build_sensor_context(
        instance=project.instance,
        cursor=cursor,
        resources=definitions.resources,
        definitions=definitions,
    )
    return definitions.resolve_sensor_def("forvalue_new_shards")(context)


def test_new_unchanged_edited_and_deleted_shards(project: Project) -> None:
    first = tick(project, None)
    assert [request.partition_key for request in first.run_requests] == ["bad", "good"]
    assert first.dynamic_partitions_requests[0].partition_keys == ["bad", "good"]
    assert isinstance(tick(project, first.cursor), dg.SkipReason)

    project.write("train/good.jsonl", project.rows(3, project.likely, seed=9))
    second = tick(project, first.cursor)
    (request,) = second.run_requests
    assert request.partition_key == "good"
    assert request.run_key not in {r.run_key for r in first.run_requests}

    (project.folder / "train" / "bad.jsonl").unlink()
    third = tick(project, second.cursor)
    assert not third.run_requests
    (deletion,) = third.dynamic_partitions_requests
    assert isinstance(deletion, dg.DeleteDynamicPartitionsRequest)
    assert deletion.partition_keys == ["bad"]
    assert set(json.loads(third.cursor)) == {"good"}

    (project.folder / "train" / "good.jsonl").unlink()
    fourth = tick(project, third.cursor)
    assert json.loads(fourth.cursor) == {}
    assert isinstance(tick(project, fourth.cursor), dg.SkipReason)

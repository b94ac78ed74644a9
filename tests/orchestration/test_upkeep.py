"""What nobody reads any more is found and removed; a dry run counts what a backfill would cost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dagster as dg

import forvalue_dagster as fv
from tests.orchestration.conftest import LIKELY, Project


def output(project: Project, job: str, op: str, **config: Any) -> dict[str, Any]:
    """Run a job of one op, and return the metadata of its output."""
    result = project.definitions.resolve_job_def(job).execute_in_process(
        instance=project.instance, run_config={"ops": {op: {"config": config}}}
    )
    (event,) = [event for event in result.all_events if event.is_successful_output]
    return {name: value.value for name, value in event.step_output_data.metadata.items()}


def sweep(project: Project, **config: Any) -> tuple[int, set[str]]:
    said = output(project, "forvalue_retention", "forvalue_sweep", **config)
    return said["orphans"], {Path(record["path"]).name for record in records(said["files"])}


def records(table: Any) -> list[dict[str, Any]]:
    return [dict(record.data) for record in table.records]


def test_retention(project: Project) -> None:
    project.run("forvalue_profile")
    project.write("train/bad.jsonl", project.rows(20, LIKELY, seed=2))
    project.value("good", "bad")
    assert sweep(project) == (0, set())

    # A shard goes; a killed run leaves parts behind; a model is replaced.
    (project.folder / "train" / "bad.jsonl").unlink()
    project.instance.delete_dynamic_partition("forvalue_shards", "bad")
    left = project.folder / "files" / "sample_features" / ".good.parts" / "run-that-was-killed"
    left.mkdir(parents=True)
    (left / "part.parquet").write_bytes(b"half")
    half = left.parents[1] / f".good.parquet.{'0' * 32}"
    for file in (half, half.with_name(f".other.parquet.{'1' * 32}")):
        file.write_bytes(b"half")
    os.utime(half, (0, 0))  # the other may still be written
    project.options["valuation"] = project.valuation(top_errors=4)
    assert project.run("forvalue_profile").success
    everything = {"bad.parquet", ".good.parts", "good.parquet", half.name}
    assert sweep(project) == (6, everything)
    # Reported, not removed; and removed kind by kind.
    assert sweep(project, remove=True, gone_shards=False, leftovers=False) == (1, {"good.parquet"})
    assert not (project.folder / "files" / "sample_features" / "good.parquet").exists()
    assert (project.folder / "files" / "value_scores" / "good.parquet").exists()
    assert sweep(project, remove=True) == (5, {"bad.parquet", ".good.parts", half.name})
    assert sweep(project) == (0, set())
    assert not list((project.folder / "files").glob("*/bad.parquet"))


def test_an_estimate_passes_no_row(project: Project) -> None:
    rows = project.rows(30, LIKELY, seed=1)
    project.write("train/good.jsonl", rows)
    project.write("train/bad.jsonl", [*rows[:5], *project.rows(6, LIKELY, seed=7) * 2])
    said = output(project, "forvalue_estimate", "forvalue_count_rows", tokenised_rows=4)
    shards = {record["shard"]: record for record in records(said["shards"])}
    assert said["rows"] == 47
    assert shards["bad"] == {
        "shard": "bad",
        "rows": 17,
        "features_stored": 0,
        "rows_repeated": 6,
        "rows_to_pass": 11,
        "tokens_to_pass": shards["bad"]["tokens_to_pass"],
    }
    # Those that the other shard has too are counted once, in the first.
    assert shards["good"]["rows_to_pass"] == 25
    assert shards["good"]["rows_repeated"] == 5
    tokens = said["tokens_to_pass"]
    whole = output(project, "forvalue_estimate", "forvalue_count_rows")["tokens_to_pass"]
    assert tokens == whole  # rows of one length

    project.run("forvalue_profile")
    project.value("good")
    said = output(project, "forvalue_estimate", "forvalue_count_rows", shards=["good"])
    assert (said["rows_to_pass"], said["tokens_to_pass"]) == (0, 0)
    made = project.instance.get_latest_materialization_event(dg.AssetKey("sample_features"))
    passed = made.asset_materialization.metadata["rows_passed"].value
    assert passed == 30
    project.options["valuation"] = fv.Valuation(
        name=str(project.model), local_files_only=True, max_length=64
    )
    said = output(project, "forvalue_estimate", "forvalue_count_rows", shards=["good"])
    assert said["rows_to_pass"] == 30

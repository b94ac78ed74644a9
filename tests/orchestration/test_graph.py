"""The graph end to end in real Dagster runs."""

from __future__ import annotations

import json

import dagster as dg
import numpy as np
import polars as pl
import pytest

import forvalue_dagster as fv
from tests.orchestration.conftest import Project


def checks(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {e.check_name: e.passed for e in result.get_asset_check_evaluations()}


def test_a_good_shard_passes_and_a_bad_one_is_blocked(project: Project) -> None:
    project.options = {"gate": fv.GatePolicy(on_blocked_shard="exclude")}
    assert project.run("forvalue_profile").success
    good, bad = project.value("good", "bad")
    assert good.success
    assert set(checks(good).values()) == {True}
    assert not bad.success
    assert checks(bad) == dict.fromkeys(checks(good), True) | {
        "noise_fraction": False,
        "noise_warning": False,
    }
    # The scores of a blocked shard stay: someone will want to look at them.
    assert len(project.table("value_scores", "bad")) == 20

    filtered = project.run("forvalue_filter")
    assert filtered.success
    kept, dropped = project.table("filtered_dataset"), project.table("dropped_rows")
    assert set(kept["shard"]) == {"good"}
    assert len(kept) + len(dropped) == 50
    assert len(kept) == 15
    blocked = dropped.filter(pl.col("shard") == "bad")["drop_reason"]
    assert len(blocked) == 20
    assert blocked.str.starts_with("blocked: shard 'bad'").all()

    entries = {entry["shard"]: entry for entry in project.manifest()["shards"]}
    assert entries["good"]["passed"]
    assert not entries["bad"]["passed"]
    verdict = entries["bad"]["verdict"]
    assert verdict["noise_lower"] > verdict["max_noise_fraction"] == 0.15
    (scores,) = (
        event
        for event in project.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey("value_scores"), asset_partitions=["good"]), limit=1
        ).records
    )
    assert entries["good"]["made_from"]["value_scores"]["storage_id"] == scores.storage_id
    assert project.manifest()["rows"] == {"in": 50, "kept": 15, "dropped": 35}


def test_pools_and_tags_of_single_steps(project: Project) -> None:
    project.options["compute"] = fv.Compute(
        pool="gpu",
        step_pools={"validation_profile": "small-gpu"},
        op_tags={"team": "data"},
        step_tags={"sample_features": {"size": "large"}},
    )
    graph = project.definitions.resolve_asset_graph()
    ops = {
        name: graph.get(dg.AssetKey(name)).assets_def.op
        for name in ("validation_profile", "sample_features", "value_scores")
    }
    assert ops["validation_profile"].pool == "small-gpu"
    assert ops["sample_features"].pool == "gpu"
    assert ops["value_scores"].pool is None  # it runs no model
    assert ops["sample_features"].tags["size"] == "large"
    assert ops["sample_features"].tags["team"] == ops["validation_profile"].tags["team"] == "data"
    assert "size" not in ops["validation_profile"].tags


def test_a_blocked_shard_stops_the_dataset_by_default(project: Project) -> None:
    project.run("forvalue_profile")
    project.value("good", "bad")
    result = project.run("forvalue_filter")
    assert not result.success
    (failure,) = [e for e in result.all_events if e.is_step_failure]
    message = failure.step_failure_data.error.message
    assert "Blocked: shard 'bad': fail: estimated noise" in message
    assert "above the limit of 15.0%" in message
    assert "set on_blocked_shard to 'exclude'" in message
    assert not (project.folder / "files" / "filtered_dataset.parquet").exists()


def test_a_registered_shard_without_scores_is_not_forgotten(project: Project) -> None:
    project.run("forvalue_profile")
    project.value("good")
    project.instance.add_dynamic_partitions("forvalue_shards", ["bad"])
    assert not project.run("forvalue_filter").success
    project.options = {"gate": fv.GatePolicy(on_blocked_shard="exclude")}
    result = project.run("forvalue_filter")
    assert result.success
    assert project.manifest()["missing_shards"] == ["bad"]
    certified = next(e for e in result.get_asset_check_evaluations() if e.check_name == "certified")
    assert "left out: shard 'bad': not valued yet" in certified.description


def test_a_rerun_writes_the_same_bytes(project: Project) -> None:
    project.run("forvalue_profile")
    project.value("good")
    assert project.run("forvalue_filter").success
    storage = project.folder / "files"
    before = {
        path: path.read_bytes()
        for path in storage.rglob("*.*")
        if "manifest" not in path.name and "data_docs" not in path.parts
    }
    assert len(before) == 11
    project.run("forvalue_profile")
    project.value("good")
    project.run("forvalue_filter")
    assert {p: p.read_bytes() for p in before} == before


def test_the_dataset_comes_out_in_its_own_form(project: Project) -> None:
    odd = [
        json.dumps(row | {"deep": {"x": [1, None]}, "value": 3}, separators=(" , ", " :  "))
        for row in project.rows(6, project.likely, 3)
    ]
    # One unreadable and one empty row in a hundred are tolerated, and no more.
    odd += [json.dumps(row) for row in project.rows(194, project.likely, 4)]
    project.write("train/odd.jsonl", [*odd, "not json", '{"prompt": "a", "response": ""}'])
    project.options = {
        "selection": fv.SelectionPolicy(keep_fraction=None),
        "gate": fv.GatePolicy(max_noise_fraction=1.0, uncertified="warn"),
    }
    project.run("forvalue_profile")
    (valued,) = project.value("odd")
    (features,) = [
        event.materialization.metadata["skip_reasons"].value.records
        for event in valued.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey("sample_features")
    ]
    assert {r.data["reason"]: r.data["count"] for r in features} == {
        "unreadable": 1,
        "no_response": 1,
    }
    assert all(r.data["meaning"] for r in features)
    assert project.run("forvalue_filter").success
    storage = project.folder / "files"
    assert (storage / "filtered_dataset.jsonl").read_text().splitlines() == odd
    dropped = [json.loads(x) for x in (storage / "dropped_rows.jsonl").read_text().splitlines()]
    assert [(d["row"], d["drop_reason"]) for d in dropped] == [
        (200, "skipped: unreadable"),
        (201, "skipped: no_response"),
    ]
    assert dropped[0]["source"] == "not json"
    kept = project.table("filtered_dataset")
    # A source column that is named like a score is kept beside it.
    assert kept["source.value"].to_list() == [3] * 6 + [None] * 194
    assert kept["value"].dtype == pl.Float64
    assert {"messages", "sample_id", "alignment", "prompt"} <= set(kept.columns)


def test_expectations_stop_an_unreadable_shard_before_the_model(project: Project) -> None:
    project.write("train/broken.jsonl", ["not json"] * 5 + project.rows(5, project.likely, 3))
    project.run("forvalue_profile")
    (result,) = project.value("broken")
    assert not result.success
    assert not checks(result)["row_expectations"]
    assert not (project.folder / "files" / "value_scores").exists()
    evaluation = next(
        e for e in result.get_asset_check_evaluations() if e.check_name == "row_expectations"
    )
    assert "5 of 10 rows (rows 0, 1, 2, 3, 4)" in evaluation.description


def test_a_bad_row_stops_the_run_by_default(project: Project) -> None:
    project.write("train/broken.jsonl", [*project.rows(1, project.likely, 3), '{"text": 1}'])
    project.options = {"training_rows": fv.RowSource(path=str(project.folder / "train"))}
    (result,) = project.value("broken")
    failure = next(e for e in result.all_events if e.is_step_failure)
    assert "broken.jsonl, row 1 (line 2): no conversation found" in str(
        failure.step_failure_data.error.to_string()
    )


def test_shards_cannot_leave_the_data_folder(project: Project) -> None:
    project.write("secret.jsonl", project.rows(1, project.likely, 3))
    (result,) = project.value("../secret")
    failure = next(e for e in result.all_events if e.is_step_failure)
    assert "holds no shard '../secret'" in failure.step_failure_data.error.to_string()


def test_no_training_text_in_the_event_log(project: Project) -> None:
    rows = project.rows(8, project.likely, seed=5)
    for row in rows:
        row["response"] += " patient-name"
        row["prompt"] += " patient-name"
    project.write("train/good.jsonl", rows)
    for row in rows:
        row["response"] = row["response"][::-1]
    project.write("validation.jsonl", rows)
    project.options = {"gate": fv.GatePolicy(max_noise_fraction=1.0, uncertified="warn")}
    runs = [project.run("forvalue_profile"), *project.value("good"), project.run("forvalue_filter")]
    for run in runs:
        assert run.success
        assert not any("patient-name" in e.to_json() for e in project.instance.all_logs(run.run_id))


def test_validation_groups_reach_the_dataset(project: Project) -> None:
    rows = project.rows(20, project.likely, seed=0)
    for index, row in enumerate(rows):
        row["capability"] = "maths" if index % 2 else "code"
    project.write("validation.jsonl", rows)
    source = fv.RowSource(path=str(project.folder / "validation.jsonl"), group_column="capability")
    project.options = {
        "validation_rows": source,
        "gate": fv.GatePolicy(max_noise_fraction=1.0, uncertified="warn"),
    }
    project.run("forvalue_profile")
    assert project.value("good")[0].success
    assert project.run("forvalue_filter").success
    kept = project.table("filtered_dataset")
    np.testing.assert_allclose(kept["value"], (kept["value_code"] + kept["value_maths"]) / 2)


def test_every_asset_shows_a_plot_a_schema_and_counts(project: Project) -> None:
    runs = [project.run("forvalue_profile"), *project.value("good"), project.run("forvalue_filter")]
    shown = {
        event.asset_key.to_user_string(): event.materialization.metadata
        for run in runs
        for event in run.get_asset_materialization_events()
    }
    assert set(shown) == {
        "raw_finetuning_data",
        "validation_data",
        "validation_profile",
        "sample_features",
        "value_scores",
        "filtered_dataset",
        "dropped_rows",
    }
    for name, metadata in shown.items():
        plots = [v for v in metadata.values() if "data:image/png" in str(v.value)]
        expected = {"dropped_rows": 0, "validation_profile": 2}.get(name, 1)
        assert len(plots) == expected, name
        assert ("dagster/column_schema" in metadata) == (name != "validation_profile"), name
    extremes = shown["value_scores"]["most_valuable"].value.records
    assert len(extremes) == 5
    assert set(extremes[0].data) == {
        "sample_id",
        "row",
        "value",
        "alignment",
        "nll",
        "response_tokens",
    }


@pytest.mark.parametrize("prefix", [(), ("team", "chat")])
def test_instances_do_not_collide(project: Project, prefix: tuple[str, ...]) -> None:
    project.options = {"key_prefix": prefix, "group_name": "chat"}
    project.options["compute"] = fv.Compute(pool="gpu")
    definitions = project.definitions
    dg.Definitions.validate_loadable(definitions)
    keys = {key.path[-1] for key in definitions.resolve_asset_graph().get_all_asset_keys()}
    assert "value_scores" in keys
    job = "_".join([*prefix, "forvalue", "shard"])
    assert definitions.resolve_job_def(job).name == job
    profile = definitions.resolve_assets_def(dg.AssetKey([*prefix, "validation_profile"]))
    assert profile.op.pool == "gpu"

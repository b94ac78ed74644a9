"""Scoring modes, refining, attribution, warm-up and cancelling, in real Dagster runs."""

from __future__ import annotations

import json
import shutil

import dagster as dg
import numpy as np
import polars as pl
import pytest

import forvalue_dagster as fv
from forvalue_dagster.models.loading import load_model
from tests.orchestration.conftest import Project

WIDE_GATE = fv.GatePolicy(max_noise_fraction=1.0, uncertified="warn", domain_shift="warn")


def valued(project: Project, *shards: str) -> None:
    assert project.run("forvalue_profile").success
    assert all(result.success for result in project.value(*shards))


def failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = [e for e in result.all_events if e.is_step_failure]
    return event.step_failure_data.error.to_string()


def materialise(project: Project, *names: str, shard: str | None = None):
    return dg.materialize(
        project.definitions.assets,
        instance=project.instance,
        selection=dg.AssetSelection.assets(*names).without_checks(),
        partition_key=shard,
        resources=project.definitions.resources,
        raise_on_error=False,
    )


def test_scores_from_features_need_no_model(project: Project) -> None:
    valued(project, "good")
    before = project.table("value_scores", "good")
    # Another validation set, and no model any more: only its profile was made before.
    project.write("validation.jsonl", project.rows(30, project.likely, seed=9))
    assert project.run("forvalue_profile").success
    load_model.cache_clear()
    hidden = project.folder / "gone"
    project.options = {"valuation": fv.Valuation(name=str(hidden), local_files_only=True)}
    assert materialise(project, "value_scores", shard="good").success
    after = project.table("value_scores", "good")
    assert set(after["value_source"]) == {"features"}
    assert not np.allclose(after["value"], before["value"])
    assert after["nll"].equals(before["nll"])


def test_exact_scores_of_the_graph_are_those_of_the_plain_function(project: Project) -> None:
    project.options = {"scoring": "exact"}
    valued(project, "good")
    assert not (project.folder / "files" / "sample_features").exists()
    expected = fv.value_dataset(
        project.folder / "train" / "good.jsonl",
        project.folder / "validation.jsonl",
        model=fv.ModelConfig(str(project.model), local_files_only=True),
    )
    scores = project.table("value_scores", "good")
    np.testing.assert_allclose(scores["value"], expected["value"], rtol=1e-5)
    assert scores["sample_id"].to_list() == expected["sample_id"].to_list()


def test_scores_from_features_follow_the_exact_ones(project: Project) -> None:
    valued(project, "good")
    from_features = project.table("value_scores", "good")
    project.options = {"scoring": "exact"}
    project.value("good")
    exact = project.table("value_scores", "good")
    assert set(exact["value_source"]) == {"exact"}
    assert from_features.columns == exact.columns
    assert np.corrcoef(from_features["value"], exact["value"])[0, 1] > 0.999
    np.testing.assert_allclose(from_features["nll"], exact["nll"], rtol=1e-5)


def test_low_fidelity_warns_and_does_not_block(project: Project) -> None:
    model = str(project.model)
    project.options = {
        "valuation": fv.Valuation(name=model, top_errors=1, min_fidelity=1.0, fidelity_rows=20)
    }
    project.run("forvalue_profile")
    (result,) = project.value("good")
    assert result.success
    (fidelity,) = [
        e for e in result.get_asset_check_evaluations() if e.check_name == "feature_fidelity"
    ]
    assert not fidelity.passed
    assert fidelity.severity == dg.AssetCheckSeverity.WARN
    assert fidelity.metadata["rows"].value == 20
    assert 0.5 < fidelity.metadata["spearman"].value < 1
    assert "below 1.0" in fidelity.description
    assert project.run("forvalue_filter").success


@pytest.mark.parametrize(
    ("change", "part"),
    [({"top_errors": 8}, "top_errors"), ({"max_length": 100}, "max_length"), ({}, "weights")],
)
def test_features_and_profile_of_other_options_do_not_meet(
    project: Project, change: dict, part: str, tmp_path
) -> None:
    valued(project, "good")
    model = project.model
    if part == "weights":
        model = tmp_path / "other"
        shutil.copytree(project.model, model)
        (path,) = model.glob("*.safetensors")
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)
    project.options = {"valuation": fv.Valuation(name=str(model), local_files_only=True, **change)}
    assert project.run("forvalue_profile").success
    message = failure(materialise(project, "value_scores", shard="good"))
    assert "The features do not fit the validation profile" in message
    assert f"{part} (" in message


def test_refining_keeps_the_exact_set_and_reports(project: Project) -> None:
    keep = fv.SelectionPolicy(keep_fraction=0.3)
    project.options = {"gate": WIDE_GATE, "selection": keep, "scoring": "exact"}
    valued(project, "good", "bad")
    assert project.run("forvalue_filter").success
    exact = project.table("filtered_dataset").select("shard", "row")
    model = str(project.model)
    # Coarse features, so that the kept set is wrong without refining.
    project.options |= {
        "scoring": "features",
        "valuation": fv.Valuation(name=model, local_files_only=True, top_errors=6),
        "refine": fv.Refine(max_share=0.9, first_rows=6),
    }
    valued(project, "good", "bad")
    result = project.run("forvalue_filter")
    assert result.success
    kept = project.table("filtered_dataset")
    assert kept.select("shard", "row").equals(exact)
    refinement = project.manifest()["refinement"]
    assert refinement["resolved"] is True
    assert 6 <= refinement["refined"] <= 45
    both = pl.concat([kept, project.table("dropped_rows")], how="diagonal")
    assert both.filter(pl.col("value_source") == "refined").height == refinement["refined"]
    (shown,) = [
        event.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey("filtered_dataset")
    ]
    assert shown["boundary"].value == "resolved"
    assert shown["refined_rows"].value == refinement["refined"]


def test_refining_exact_scores_is_a_contradiction(project: Project) -> None:
    project.options = {"scoring": "exact", "refine": fv.Refine()}
    with pytest.raises(ValueError, match="there is nothing to refine"):
        _ = project.definitions


@pytest.mark.parametrize("exact", [False, True])
def test_attribution_names_the_strongest_pairs(project: Project, exact: bool) -> None:
    project.options = {"attribution": fv.Attribution(top=4, exact=exact), "gate": WIDE_GATE}
    valued(project, "good", "bad")
    assert project.run("forvalue_filter").success
    named = project.table("validation_attribution")
    assert len(named) == 40 * 2 * 4
    pairs = fv.pairwise_values(
        project.folder / "train",
        project.folder / "validation.jsonl",
        model=fv.ModelConfig(str(project.model), local_files_only=True),
    )
    rows = fv.read_rows(project.folder / "train").select("shard", "row").rows()
    agreed = 0
    for column in range(40):
        best = named.filter(validation_row=column, effect="helps")
        truth = [rows[i] for i in np.argsort(-pairs[:, column])[:4]]
        agreed += len(set(best.select("shard", "row").rows()) & set(truth))
        assert best["value"].is_sorted(descending=True)
    assert agreed == 160 if exact else agreed >= 120
    mine = project.table("training_attribution", "good")
    assert len(mine) == 30 * 2 * 4
    assert set(mine["shard"]) == {"good"}


def test_a_warm_up_stays_until_someone_asks(project: Project, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FORVALUE_CACHE", str(tmp_path / "cache"))
    project.options = {
        "gate": WIDE_GATE,
        "warm_up": fv.WarmUp(rank=2, learning_rate=1e-3, max_tokens=800),
    }
    project.instance.add_dynamic_partitions("forvalue_shards", ["good"])
    assert materialise(project, "raw_finetuning_data", shard="good").success
    message = failure(materialise(project, "sample_features", shard="good"))
    assert "Materialise valuation_model first" in message
    valued(project, "good")
    record = json.loads((project.folder / "files" / "valuation_model.json").read_text())
    trusted = fv.read_rows(project.folder / "validation.jsonl")["sample_id"]
    assert 0 < len(record["sample_ids"]) < 40
    assert set(record["sample_ids"]) <= set(trusted)
    marks = project.table("sample_features", "good")["fingerprint"].unique().to_list()
    assert len(marks) == 1
    assert json.loads(marks[0])["adapter"] is not None
    # New rows do not change it, and a machine without a cache finds it in the storage.
    project.write("validation.jsonl", project.rows(12, project.likely, seed=8))
    monkeypatch.setenv("FORVALUE_CACHE", str(tmp_path / "elsewhere"))
    load_model.cache_clear()
    assert materialise(project, "validation_data", "validation_profile").success
    assert materialise(project, "value_scores", shard="good").success
    again = json.loads((project.folder / "files" / "valuation_model.json").read_text())
    assert again == record
    graph = project.definitions.resolve_asset_graph()
    assert graph.get(dg.AssetKey("valuation_model")).parent_keys == set()
    assert dg.AssetKey("valuation_model") in graph.get(dg.AssetKey("sample_features")).parent_keys


def test_an_interrupted_feature_run_goes_on(project: Project, monkeypatch) -> None:
    model = str(project.model)
    valuation = fv.Valuation(name=model, local_files_only=True, window_rows=8)
    project.options = {"valuation": valuation}
    valued(project, "good")
    path = project.folder / "files" / "sample_features" / "good.parquet"
    expected = path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["good.parquet"]
    path.unlink()

    import forvalue_dagster.engine.features as module

    real, passed = module.pass_group, []

    def cut(loaded, encoder, group, *rest):
        passed.append(len(group.rows))
        if len(passed) == 3:
            raise KeyboardInterrupt
        return real(loaded, encoder, group, *rest)

    monkeypatch.setattr(module, "pass_group", cut)
    assert not materialise(project, "sample_features", shard="good").success
    # The cancelled run has given the model back.
    assert load_model.cache_info().currsize == 0
    assert not path.exists()
    monkeypatch.setattr(module, "pass_group", real)
    result = materialise(project, "sample_features", shard="good")
    assert result.success
    (event,) = result.get_asset_materialization_events()
    assert event.materialization.metadata["parts_reused"].value == 2
    assert event.materialization.metadata["parts"].value == 4
    assert path.read_bytes() == expected


def test_balanced_groups_reach_the_dataset(project: Project) -> None:
    rows = project.rows(20, project.likely, seed=0)
    for index, row in enumerate(rows):
        row["capability"] = "maths" if index % 2 else "code"
    project.write("validation.jsonl", rows)
    source = fv.RowSource(path=str(project.folder / "validation.jsonl"), group_column="capability")
    project.options = {
        "validation_rows": source,
        "gate": WIDE_GATE,
        "selection": fv.SelectionPolicy(by="value", across_groups="balanced", keep_fraction=0.2),
    }
    valued(project, "good")
    assert project.run("forvalue_filter").success
    kept = project.table("filtered_dataset")
    scores = project.table("value_scores", "good")
    for group in ("code", "maths"):
        best = scores.sort(f"value_{group}", descending=True)["row"][0]
        assert best in kept["row"]


def test_warnings_of_the_pass_reach_the_run_log(project: Project, monkeypatch) -> None:
    """As when a batch does not fit in memory: the engine knows no Dagster, and says it anyway."""
    import forvalue_dagster.engine.features as module
    from forvalue_dagster.engine.memory import TokenBudget

    real = module.pass_group

    def tight(loaded, encoder, group, budget: TokenBudget, options, head):
        budget.halve(100)
        return real(loaded, encoder, group, budget, options, head)

    monkeypatch.setattr(module, "pass_group", tight)
    project.run("forvalue_profile")
    (result,) = project.value("good")
    messages = [entry.user_message for entry in project.instance.all_logs(result.run_id)]
    assert "A batch of 100 tokens did not fit in memory; going on with 50." in messages

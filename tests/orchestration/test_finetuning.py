"""The project's finetuning: behind the gate, and worth its selection or not, as reported."""

from __future__ import annotations

import dagster as dg
import polars as pl
import pytest

import forvalue_dagster as fv
from assets.finetuning import finetuning_definitions
from assets.selection import SELECTED, Comparison, arms, differences
from tests.orchestration.conftest import Project


def definitions(project: Project) -> dg.Definitions:
    model = fv.ModelConfig(name=str(project.model), local_files_only=True)
    finetuning = finetuning_definitions(project.folder, model)
    jobs = [
        dg.define_asset_job(name, dg.AssetSelection.assets(name))
        for name in ("finetuned_adapter", "selection_report")
    ]
    return dg.Definitions.merge(project.definitions, finetuning, dg.Definitions(jobs=jobs))


def test_a_finetune_behind_the_gate_and_a_report(project: Project) -> None:
    project.write("data/held_out.jsonl", project.rows(5, project.likely, seed=7))
    assert project.run("forvalue_profile").success
    assert project.value("good")[0].success
    project.value("bad")
    defs = definitions(project)

    def run(job: str, **config: object) -> dg.ExecuteInProcessResult:
        return defs.resolve_job_def(job).execute_in_process(
            instance=project.instance,
            raise_on_error=False,
            run_config={"ops": {job: {"config": config}}} if config else None,
        )

    # A noisy shard: no dataset, and nothing to finetune on.
    assert not project.run("forvalue_filter").success
    project.options = {"gate": fv.GatePolicy(on_blocked_shard="exclude")}
    defs = definitions(project)
    assert project.run("forvalue_filter").success
    result = run("finetuned_adapter")
    assert result.success
    (made,) = result.asset_materializations_for_node("finetuned_adapter")
    assert made.metadata["rows"].value == len(project.table("filtered_dataset"))
    assert made.metadata["shards"].value == "good"
    assert list(project.folder.glob("adapters/*/adapter/adapter_model.safetensors"))

    result = run("selection_report", seeds=2, rows=4)
    assert result.success
    (report,) = result.asset_materializations_for_node("selection_report")
    gains = {r.data["arm"]: r.data for r in report.metadata["gain"].value.records}
    assert set(gains) == {"lowest loss", "random", "all, equal tokens", "all, one epoch"}
    losses = [r.data for r in report.metadata["held_out_loss"].value.records]
    assert len(losses) == 10
    for name, gain in gains.items():
        own = [r["held_out_loss"] for r in losses if r["arm"] == SELECTED]
        other = [r["held_out_loss"] for r in losses if r["arm"] == name]
        mean = sum(b - a for a, b in zip(own, other, strict=True)) / 2
        assert gain["gain"] == pytest.approx(mean, abs=1e-4)
        assert gain["lower"] <= gain["gain"] <= gain["upper"]
    assert "data:image/png" in report.metadata["plot"].value


SCORES = pl.DataFrame(
    {
        "shard": ["s"] * 40,
        "row": list(range(40)),
        "status": ["scored"] * 40,
        "alignment": [i / 40 for i in range(40)],
        "noise_probability": [0.9 if i % 4 == 0 else 0.1 for i in range(40)],
        "nll": [1 - i / 40 for i in range(40)],
        "response_tokens": [10 + i % 7 for i in range(40)],
    }
)


def test_arms_have_equal_rows_and_tokens() -> None:
    policy = fv.Selection(by="alignment", max_noise_probability=0.5)
    comparison = Comparison(rows=8, tolerance=0.03)
    chosen = arms(SCORES, {SELECTED: policy}, comparison, seed=0)
    budget = 8 * SCORES["response_tokens"].mean()
    assert len(chosen.pop("all, one epoch")) == 40
    for arm in chosen.values():
        assert len(arm) == arm["row"].n_unique() == 8
        assert abs(arm["response_tokens"].sum() - budget) <= 0.03 * budget
    assert chosen[SELECTED]["noise_probability"].max() < 0.5
    assert chosen[SELECTED]["alignment"].min() > 0.6
    assert chosen["random"]["row"].to_list() != chosen["all, equal tokens"]["row"].to_list()
    with pytest.raises(ValueError, match="compare fewer rows"):
        arms(SCORES, {SELECTED: policy}, Comparison(rows=8, tolerance=-1.0), seed=0)


def test_differences_are_paired() -> None:
    results = pl.DataFrame(
        {
            "seed": [0, 1, 2] * 2,
            "arm": [SELECTED] * 3 + ["random"] * 3,
            "held_out_loss": [1.0, 2.0, 3.0, 1.1, 2.1, 3.2],
        }
    )
    (gain,) = differences(results).to_dicts()
    assert gain["gain"] == pytest.approx(0.4 / 3)
    assert gain["seeds"] == 3
    assert gain["lower"] < gain["gain"] < gain["upper"]
    assert gain["lower"] > -0.1  # unpaired, the spread over seeds would drown it

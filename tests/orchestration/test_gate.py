"""The gate in front of a consumer, in real runs: whoever starts them, whatever came before."""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

import forvalue_dagster as fv
from tests.orchestration.conftest import (
    LIKELY,
    ON_BOTH_STORAGES,
    UNLIKELY,
    Instances,
    Project,
)

pytestmark = ON_BOTH_STORAGES

DATASET = dg.AssetKey("filtered_dataset")
SCORES = dg.AssetKey("value_scores")


class Gated(Project):
    """A project with consumers behind the gate."""

    gate: dict[str, Any]

    @property
    def all_definitions(self) -> dg.Definitions:
        arguments = self.gate

        @dg.asset(retry_policy=dg.RetryPolicy(max_retries=2))
        def finetuned(context: dg.AssetExecutionContext, filtered_dataset: pl.LazyFrame) -> None:
            gate = fv.require_certified(context, **arguments)
            context.add_output_metadata({"shards": ", ".join(gate.manifest.passed)})

        @dg.asset(io_manager_key="parquet_io_manager")
        def tokenised(filtered_dataset: pl.LazyFrame) -> pl.LazyFrame:
            return filtered_dataset.select("shard", "row")

        @dg.asset
        def far_finetuned(context: dg.AssetExecutionContext, tokenised: pl.LazyFrame) -> None:
            fv.require_certified(context, **arguments)

        @dg.asset_check(asset=DATASET, blocking=True, name="reviewed")
        def reviewed(filtered_dataset: pl.LazyFrame) -> dg.AssetCheckResult:
            if (self.folder / "raises").exists():
                raise RuntimeError("the check itself is broken")
            ok = not (self.folder / "rejected").exists()
            return dg.AssetCheckResult(passed=ok, description="looked at by a person")

        @dg.op
        def train(context: dg.OpExecutionContext) -> int:
            fv.require_certified(context, **arguments)
            return 1

        @dg.job
        def train_job() -> None:
            train()

        jobs = [
            dg.define_asset_job("consume", dg.AssetSelection.assets(finetuned)),
            dg.define_asset_job("tokenise", dg.AssetSelection.assets(tokenised)),
            dg.define_asset_job("consume_far", dg.AssetSelection.assets(far_finetuned)),
            dg.define_asset_job("review", dg.AssetSelection.checks(reviewed)),
            dg.define_asset_job(
                "filter_and_consume",
                dg.AssetSelection.assets(DATASET, dg.AssetKey("dropped_rows"), finetuned)
                - dg.AssetSelection.checks(reviewed),
            ),
            train_job,
        ]
        return dg.Definitions.merge(
            self.definitions,
            dg.Definitions(
                assets=[finetuned, tokenised, far_finetuned], asset_checks=[reviewed], jobs=jobs
            ),
        )

    def run(self, job: str, shard: str | None = None) -> dg.ExecuteInProcessResult:
        return self.all_definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            partition_key=shard,
            raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )

    def drop(self, shard: str) -> None:
        self.instance.delete_dynamic_partition("forvalue_shards", shard)


@pytest.fixture
def project(
    valued: Path, tmp_path: Path, model_directory: Path, instances: Instances
) -> Iterator[Gated]:
    folder = tmp_path / "project"
    with instances.open(folder, like=valued) as instance:
        made = Gated(folder, model_directory, instance)
        made.gate = {}
        yield made


def refusal(result: dg.ExecuteInProcessResult) -> str:
    """The message of the one step that failed, which must not be retried."""
    assert not result.success
    (event,) = [event for event in result.all_events if event.is_step_failure]
    failure = event.step_failure_data.user_failure_data
    assert failure is not None, event.step_failure_data.error
    assert not any(event.is_step_up_for_retry for event in result.all_events)
    return failure.description


def test_never_materialised(project: Gated) -> None:
    message = refusal(project.run("train_job"))
    assert "filtered_dataset was never materialised" in message


def test_in_the_same_run(project: Gated) -> None:
    project.drop("bad")
    result = project.run("filter_and_consume")
    assert result.success
    (made,) = result.asset_materializations_for_node("finetuned")
    assert made.metadata["shards"].value == "good, other"
    assert "is certified" in made.metadata["gate"].value


def test_in_the_same_run_a_bad_shard_stops_the_consumer(project: Gated) -> None:
    result = project.run("filter_and_consume")
    assert "shard 'bad': fail: estimated noise" in refusal(result)
    assert not project.instance.get_latest_materialization_event(dg.AssetKey("finetuned"))


def test_in_a_later_run_of_an_asset_and_of_an_op(project: Gated) -> None:
    project.drop("bad")
    assert project.run("forvalue_filter").success
    assert project.run("consume").success
    assert project.run("train_job").success


def test_a_dataset_that_failed_to_rebuild_is_stale_not_reborn(project: Gated) -> None:
    project.drop("bad")
    assert project.run("forvalue_filter").success
    # Noise arrives in a shard of the dataset: it is valued again, and blocked.
    project.write("train/other.jsonl", project.rows(20, UNLIKELY, seed=8))
    assert not project.run("forvalue_shard", "other").success
    assert "shard 'other': fail: estimated noise" in refusal(project.run("forvalue_filter"))
    message = refusal(project.run("consume"))
    assert "value_scores of shard 'other' was made again after the dataset was built" in message
    project.gate = {"stale": "warn"}
    assert project.run("consume").success


def test_a_backfill_of_everything_stops_at_the_gate(project: Gated) -> None:
    """What a backfill launches: a run for each shard, then one for what lies behind them."""
    tags = {"dagster/backfill": "everything"}
    jobs = [("forvalue_shard", shard) for shard in ("bad", "good", "other")]
    results = [
        project.all_definitions.resolve_job_def(job).execute_in_process(
            instance=project.instance, partition_key=shard, raise_on_error=False, tags=tags
        )
        for job, shard in [*jobs, ("filter_and_consume", None)]
    ]
    assert [result.success for result in results] == [False, True, True, False]
    assert "shard 'bad': fail" in refusal(results[-1])
    assert not project.instance.get_latest_materialization_event(dg.AssetKey("finetuned"))


def test_excluded_shards_do_not_stop_anyone(project: Gated) -> None:
    project.options = {"gate": fv.GatePolicy(on_blocked_shard="exclude")}
    assert project.run("forvalue_filter").success
    assert set(project.table("filtered_dataset")["shard"]) == {"good", "other"}
    assert project.run("consume").success
    # What is left out may change without touching the dataset.
    assert not project.run("forvalue_shard", "bad").success
    assert project.run("consume").success


def test_a_withdrawn_shard(project: Gated) -> None:
    project.drop("bad")
    assert project.run("forvalue_filter").success
    project.drop("other")
    project.gate = {"stale": "warn"}
    assert "shard 'other' was withdrawn" in refusal(project.run("consume"))


def test_a_wiped_shard(project: Gated) -> None:
    project.drop("bad")
    assert project.run("forvalue_filter").success
    project.instance.wipe_assets([SCORES])
    assert "value_scores of shard 'other' was wiped" in refusal(project.run("consume"))


def test_materialised_again_without_the_check(project: Gated) -> None:
    project.drop("bad")
    assert project.run("forvalue_filter").success
    project.instance.report_runless_asset_event(dg.AssetMaterialization(DATASET))
    message = refusal(project.run("consume"))
    assert "check 'certified' of filtered_dataset was executed for an older" in message
    assert "carries no manifest" in message


def test_a_further_check(project: Gated) -> None:
    project.drop("bad")
    assert project.run("forvalue_filter").success
    project.gate = {"checks": ["reviewed"]}
    assert project.run("review").success
    assert project.run("consume").success
    (project.folder / "rejected").touch()
    assert not project.run("review").success
    assert "check 'reviewed' of filtered_dataset failed (looked at by a person)" in refusal(
        project.run("consume")
    )
    (project.folder / "raises").touch()
    assert not project.run("review").success
    assert "check 'reviewed' of filtered_dataset did not finish" in refusal(project.run("consume"))


def test_a_further_check_that_never_ran(project: Gated) -> None:
    project.drop("bad")
    assert project.run("filter_and_consume").success
    project.gate = {"checks": ["reviewed"]}
    assert "check 'reviewed' of filtered_dataset was never executed" in refusal(
        project.run("consume")
    )


def test_a_further_check_of_an_older_materialisation(project: Gated) -> None:
    project.drop("bad")
    assert project.run("filter_and_consume").success
    assert project.run("review").success
    assert project.run("filter_and_consume").success
    project.gate = {"checks": ["reviewed"]}
    assert "was executed for an older materialisation only" in refusal(project.run("consume"))


def test_two_hops_away(project: Gated) -> None:
    project.drop("bad")
    assert project.run("forvalue_filter").success
    assert project.run("tokenise").success
    assert project.run("consume_far").success
    assert project.run("forvalue_filter").success
    assert (
        "tokenised was made from an older materialisation of filtered_dataset; materialise it"
        in refusal(project.run("consume_far"))
    )
    assert project.run("tokenise").success
    assert project.run("consume_far").success


def test_an_override_leaves_its_reason(project: Gated) -> None:
    project.drop("bad")
    assert project.run("forvalue_filter").success
    project.drop("other")
    project.gate = {"force": "the customer agreed, ticket 12"}
    result = project.run("consume")
    assert result.success
    (made,) = result.asset_materializations_for_node("finetuned")
    assert made.metadata["gate"].value == "overridden"
    assert made.metadata["gate_forced_because"].value == "the customer agreed, ticket 12"
    assert "withdrawn" in str(made.metadata["gate_objections"].value)
    logged = [event.user_message for event in project.instance.all_logs(result.run_id)]
    assert any("overridden: the customer agreed" in line for line in logged)
    project.gate = {"force": " "}
    assert not project.run("consume").success


def test_a_shard_whose_checks_never_ran_is_left_out(project: Gated) -> None:
    project.drop("bad")
    # Someone materialises the rows alone, from the UI, without their checks.
    rows_only = dg.define_asset_job(
        "rows_only",
        dg.AssetSelection.assets("raw_finetuning_data").without_checks(),
    )
    definitions = dg.Definitions.merge(project.definitions, dg.Definitions(jobs=[rows_only]))
    assert (
        definitions.resolve_job_def("rows_only")
        .execute_in_process(instance=project.instance, partition_key="other")
        .success
    )
    message = refusal(project.run("forvalue_filter"))
    assert "check 'row_expectations' of raw_finetuning_data for 'other' was executed for an" in (
        message
    )


def test_rows_that_are_not_those_valued(project: Gated) -> None:
    project.drop("bad")
    project.write("train/other.jsonl", project.rows(20, LIKELY, seed=9))
    rows = dg.define_asset_job("rows", dg.AssetSelection.assets("raw_finetuning_data"))
    definitions = dg.Definitions.merge(project.definitions, dg.Definitions(jobs=[rows]))
    assert (
        definitions.resolve_job_def("rows")
        .execute_in_process(instance=project.instance, partition_key="other")
        .success
    )
    assert "of its rows are not those that were valued" in refusal(project.run("forvalue_filter"))


def test_scores_of_another_profile(project: Gated) -> None:
    project.drop("bad")
    project.write("validation.jsonl", project.rows(40, LIKELY, seed=10))
    assert project.run("forvalue_profile").success
    assert "its scores rest on the validation profile" in refusal(project.run("forvalue_filter"))


def requested(project: Gated, cursor: Any = None) -> Any:
    """Evaluate the automation conditions once, as a tick of the sensor does."""
    return dg.evaluate_automation_conditions(
        defs=project.definitions,
        instance=project.instance,
        asset_selection=dg.AssetSelection.assets(DATASET, dg.AssetKey("dropped_rows")),
        cursor=cursor,
    )


def test_automation_releases_the_others_with_one_bad_shard(project: Gated) -> None:
    project.options = {"gate": fv.GatePolicy(on_blocked_shard="exclude")}
    first = requested(project)
    assert first.get_num_requested(DATASET) == 1
    assert project.run("forvalue_filter").success
    assert project.manifest()["rows"]["kept"] > 0
    second = requested(project, first.cursor)
    assert second.get_num_requested(DATASET) == 0
    # The bad shard is valued again, as it was: nothing to do.
    assert not project.run("forvalue_shard", "bad").success
    second = requested(project, second.cursor)
    assert second.get_num_requested(DATASET) == 0
    # It changes, and is still bad: the dataset is built again without it.
    project.write("train/bad.jsonl", project.rows(20, UNLIKELY, seed=12))
    assert not project.run("forvalue_shard", "bad").success
    third = requested(project, second.cursor)
    assert third.get_num_requested(DATASET) == 1


def test_automation_holds_back_for_one_bad_shard(project: Gated) -> None:
    first = requested(project)
    assert first.get_num_requested(DATASET) == 0
    # Mended, it is released.
    project.write("train/bad.jsonl", project.rows(20, LIKELY, seed=11))
    assert project.run("forvalue_shard", "bad").success
    assert requested(project, first.cursor).get_num_requested(DATASET) == 1


@pytest.mark.parametrize("mode", ["fail", "exclude"])
def test_automation_and_a_shard_that_never_gets_as_far_as_its_scores(
    project: Gated, mode: str
) -> None:
    project.drop("bad")
    project.options = {"gate": fv.GatePolicy(on_blocked_shard=mode)}
    first = requested(project)
    assert first.get_num_requested(DATASET) == 1
    assert project.run("forvalue_filter").success
    # A shard that was registered, but not looked at yet, is waited for.
    project.write("train/broken.jsonl", ["not json"] * 9)
    project.instance.add_dynamic_partitions("forvalue_shards", ["broken"])
    second = requested(project, first.cursor)
    assert second.get_num_requested(DATASET) == 0
    # Its rows cannot be read: its expectations fail, its scores never come.
    assert not project.run("forvalue_shard", "broken").success
    third = requested(project, second.cursor)
    assert third.get_num_requested(DATASET) == (mode == "exclude")
    result = project.run("forvalue_filter")
    assert result.success == (mode == "exclude")
    if mode == "exclude":
        assert project.manifest()["missing_shards"] == ["broken"]


def test_automation_goes_on_when_a_valued_shard_breaks(project: Gated) -> None:
    project.options = {"gate": fv.GatePolicy(on_blocked_shard="exclude")}
    first = requested(project)
    first = requested(project, first.cursor)
    # Built and, before the next tick, out of date again.
    assert project.run("forvalue_filter").success
    project.write("train/other.jsonl", ["not json"] * 9)
    assert not project.run("forvalue_shard", "other").success
    second = requested(project, first.cursor)
    assert second.get_num_requested(DATASET) == 1
    assert project.run("forvalue_filter").success
    blocked = {e["shard"]: e["blocked_by"] for e in project.manifest()["shards"]}
    assert blocked["good"] == []
    assert "check 'row_expectations' of raw_finetuning_data" in blocked["other"][0]
    assert set(project.table("filtered_dataset")["shard"]) == {"good"}


def test_automation_waits_for_a_check_that_was_not_executed(project: Gated) -> None:
    project.options = {"gate": fv.GatePolicy(on_blocked_shard="exclude")}
    first = requested(project)
    scores_only = dg.define_asset_job(
        "scores_only", dg.AssetSelection.assets("value_scores").without_checks()
    )
    definitions = dg.Definitions.merge(project.definitions, dg.Definitions(jobs=[scores_only]))
    assert (
        definitions.resolve_job_def("scores_only")
        .execute_in_process(instance=project.instance, partition_key="good")
        .success
    )
    second = requested(project, first.cursor)
    assert second.get_num_requested(DATASET) == 0


def test_a_consumer_behind_the_dataset_is_automated_with_it(project: Gated) -> None:
    condition = dg.AutomationCondition.eager()
    condition &= dg.AutomationCondition.all_deps_blocking_checks_passed()

    @dg.asset(automation_condition=condition, deps=[DATASET])
    def finetuned(context: dg.AssetExecutionContext) -> None:
        fv.require_certified(context)

    project.drop("bad")
    definitions = dg.Definitions.merge(project.definitions, dg.Definitions(assets=[finetuned]))

    def tick(cursor: Any) -> Any:
        return dg.evaluate_automation_conditions(
            defs=definitions,
            instance=project.instance,
            asset_selection=dg.AssetSelection.assets("finetuned"),
            cursor=cursor,
        )

    before = tick(None)
    assert before.get_num_requested(finetuned.key) == 0
    assert project.run("forvalue_filter").success
    after = tick(before.cursor)
    assert after.get_num_requested(finetuned.key) == 1
    # Someone writes the dataset by hand: no check vouches for it.
    project.instance.report_runless_asset_event(dg.AssetMaterialization(DATASET))
    assert tick(after.cursor).get_num_requested(finetuned.key) == 0

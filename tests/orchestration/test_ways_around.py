"""Ways around the gate, in real runs: each was open once, and a row of docs/gate.md names it."""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

import forvalue_dagster as fv
from tests.orchestration.conftest import LIKELY, ON_BOTH_STORAGES, UNLIKELY, Instances, Project

pytestmark = ON_BOTH_STORAGES

DATASET = dg.AssetKey("filtered_dataset")
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
PARTS = dg.StaticPartitionsDefinition(["a", "b"])
LAX = {
    "gate": {"config": {"max_noise_fraction": 1.0}},
    "selection": {"config": {"max_noise_probability": None, "keep_fraction": 1.0}},
}


@dg.asset
def finetuned(context: dg.AssetExecutionContext, filtered_dataset: pl.LazyFrame) -> None:
    fv.require_certified(context)
    context.add_output_metadata({"rows": len(filtered_dataset.collect())})


@dg.asset
def reading(context: dg.AssetExecutionContext) -> None:
    gate = fv.require_certified(context, DATASET)
    Path(os.environ["BETWEEN"]).exists() and os.replace(os.environ["BETWEEN"], gate.path)
    context.add_output_metadata({"rows": len(gate.read().collect())})


@dg.asset(io_manager_key="parquet_io_manager")
def tokenised(filtered_dataset: pl.LazyFrame) -> pl.LazyFrame:
    return filtered_dataset.select("shard", "row")


class Attacked(Project):
    """A project with a certified dataset, and whoever wants to read it."""

    def certify(self) -> None:
        self.instance.delete_dynamic_partition("forvalue_shards", "bad")
        assert self.start("forvalue_filter").success

    def start(self, job: str, *others: Any, shard: str | None = None, **config: Any) -> Any:
        jobs = [other for other in others if isinstance(other, dg.JobDefinition)]
        checks = [other for other in others if isinstance(other, dg.AssetChecksDefinition)]
        assets = [other for other in others if other not in jobs and other not in checks]
        more = dg.Definitions(assets=assets, jobs=jobs, asset_checks=checks)
        definitions = dg.Definitions.merge(self.definitions, more)
        if job not in {j.name for j in jobs} and not job.startswith("forvalue_"):
            selection = (
                dg.AssetSelection.checks(*checks) if checks else dg.AssetSelection.assets(job)
            )
            made = dg.define_asset_job("it", selection)
            definitions = dg.Definitions.merge(definitions, dg.Definitions(jobs=[made]))
            job = "it"
        return definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            partition_key=shard,
            raise_on_error=False,
            run_config={**QUIET, **({"resources": config} if config else {})},
        )

    def file(self, *parts: str) -> Path:
        return self.folder.joinpath("files", *parts)

    def build_anew(self, **options: Any) -> None:
        """Another dataset: a shard less."""
        self.instance.delete_dynamic_partition("forvalue_shards", "other")
        assert self.start("forvalue_filter").success


@pytest.fixture
def project(
    valued: Path, tmp_path: Path, model_directory: Path, instances: Instances
) -> Iterator[Attacked]:
    folder = tmp_path / "project"
    with instances.open(folder, like=valued) as instance:
        yield Attacked(folder, model_directory, instance)


def why(result: dg.ExecuteInProcessResult) -> str:
    """Why the one step that failed did."""
    assert not result.success
    (event,) = [event for event in result.all_events if event.is_step_failure]
    failure = event.step_failure_data
    if failure.user_failure_data is not None:
        return str(failure.user_failure_data.description)
    error = failure.error
    while error.cause is not None:
        error = error.cause
    return error.message


# Stale at every hop.


def test_a_hop_that_was_not_made_again(project: Attacked) -> None:
    @dg.asset(io_manager_key="parquet_io_manager")
    def packed(tokenised: pl.LazyFrame) -> pl.LazyFrame:
        return tokenised

    @dg.asset
    def far(context: dg.OpExecutionContext, packed: pl.LazyFrame) -> None:
        fv.require_certified(context)

    project.certify()
    together = (tokenised, packed, far)
    for asset in ("tokenised", "packed", "far"):
        assert project.start(asset, *together).success
    project.build_anew()
    assert "tokenised was made from an older materialisation of filtered_dataset" in why(
        project.start("far", *together)
    )
    assert project.start("tokenised", *together).success
    assert "packed was made from an older materialisation of tokenised" in why(
        project.start("far", *together)
    )
    assert project.start("packed", *together).success
    assert project.start("far", *together).success


def test_each_partition_for_itself(project: Attacked) -> None:
    @dg.asset(partitions_def=PARTS, io_manager_key="parquet_io_manager")
    def cut(filtered_dataset: pl.LazyFrame) -> pl.LazyFrame:
        return filtered_dataset.select("shard", "row")

    @dg.asset(partitions_def=PARTS)
    def far(context: dg.AssetExecutionContext, cut: pl.LazyFrame) -> None:
        fv.require_certified(context)

    project.certify()
    assert project.start("cut", cut, far, shard="a").success
    project.build_anew()
    assert project.start("cut", cut, far, shard="b").success
    assert "cut of 'a' was made from an older" in why(project.start("far", cut, far, shard="a"))
    assert project.start("far", cut, far, shard="b").success


def test_provenance_that_nobody_knows(project: Attacked) -> None:
    outside = dg.AssetSpec("outside", deps=[DATASET])

    @dg.asset(deps=["outside"])
    def strict(context: dg.AssetExecutionContext) -> None:
        fv.require_certified(context)

    @dg.asset(deps=["outside"])
    def lenient(context: dg.AssetExecutionContext) -> None:
        gate = fv.require_certified(context, provenance="warn")
        assert "does not say which" in gate.warnings[0]

    project.certify()
    project.instance.report_runless_asset_event(dg.AssetMaterialization("outside"))
    together = (outside, strict, lenient)
    assert "outside does not say which filtered_dataset" in why(project.start("strict", *together))
    assert project.start("lenient", *together).success


# Whatever the certificate rests on.


def test_a_limit_that_was_lowered(project: Attacked) -> None:
    project.options = {"gate": fv.GatePolicy(max_noise_fraction=1.0)}
    for shard in ("good", "other", "bad"):
        project.start("forvalue_shard", shard=shard)
    assert project.start("forvalue_filter").success
    assert project.start("finetuned", finetuned).success
    project.options = {"gate": fv.GatePolicy(max_noise_fraction=0.05)}
    assert "the configuration of filtered_dataset" in why(project.start("finetuned", finetuned))


def test_validation_rows_that_changed(project: Attacked) -> None:
    project.certify()
    project.write("validation.jsonl", project.rows(40, LIKELY, seed=77))
    assert project.start("validation_data").success
    assert "validation_data changed, and validation_profile, which the dataset rests on" in why(
        project.start("finetuned", finetuned)
    )
    assert project.start("forvalue_profile").success
    assert "validation_profile was made again after" in why(project.start("finetuned", finetuned))


def test_a_change_that_a_sensor_reported(project: Attacked) -> None:
    project.certify()

    def report() -> None:
        definitions = project.definitions
        with dg.build_sensor_context(
            instance=project.instance, resources=definitions.resources, definitions=definitions
        ) as context:
            tick = definitions.resolve_sensor_def("forvalue_new_shards")(context)
        for event in tick.asset_events:
            project.instance.report_runless_asset_event(event)

    # What is reported for the first time, and is as it was read, changes nothing.
    report()
    assert project.start("finetuned", finetuned).success
    rows = project.rows(20, LIKELY, seed=9)
    before = (project.folder / "train" / "other.jsonl").read_bytes()
    project.write("train/other.jsonl", rows)
    report()
    assert "training_files of shard 'other' changed after its rows were read" in why(
        project.start("finetuned", finetuned)
    )
    # Written once more as it was, and read again: the same content, the same dataset.
    (project.folder / "train" / "other.jsonl").write_bytes(before)
    report()
    assert project.start("forvalue_shard", shard="other").success
    assert project.start("finetuned", finetuned).success


def test_features_that_the_scores_do_not_rest_on(project: Attacked) -> None:
    project.certify()
    project.options = {"valuation": project.valuation(top_errors=4)}
    assert project.start("sample_features", shard="other").success
    project.options = {}
    message = why(project.start("finetuned", finetuned))
    assert "sample_features of shard 'other' was made again after the dataset was built" in message
    assert "its value_scores was made from another sample_features" in why(
        project.start("forvalue_filter")
    )


def test_upstream_shards_that_were_withdrawn(project: Attacked) -> None:
    teams = dg.DynamicPartitionsDefinition(name="teams")
    content = {"red": 21, "blue": 22}

    @dg.asset(partitions_def=teams)
    def source(context: dg.AssetExecutionContext) -> list[dict[str, str]]:
        return project.rows(30, LIKELY, seed=content[context.partition_key])

    project.options = {"training_rows": fv.UpstreamRows(asset="source"), "upstream_shards": teams}
    project.instance.add_dynamic_partitions("teams", list(content))
    for team in content:
        assert project.start("source", source, shard=team).success
        assert project.start("forvalue_shard", source, shard=team).success
    assert project.start("forvalue_filter", source).success
    assert project.start("finetuned", source, finetuned).success
    # The same rows once more: until they are read again, nobody can tell.
    assert project.start("source", source, shard="red").success
    assert "source of shard 'red' changed" in why(project.start("finetuned", source, finetuned))
    assert project.start("forvalue_shard", source, shard="red").success
    assert project.start("finetuned", source, finetuned).success
    project.instance.delete_dynamic_partition("teams", "blue")
    assert "shard 'blue' was withdrawn" in why(project.start("finetuned", source, finetuned))


# The right dataset.


def test_another_dataset_of_the_same_name(project: Attacked) -> None:
    twin = dg.AssetKey(["x", "filtered_dataset"])

    @dg.asset(key=twin, io_manager_key="parquet_io_manager")
    def other() -> pl.DataFrame:
        return pl.DataFrame({"shard": ["noise"], "row": [0]})

    @dg.asset(ins={"rows": dg.AssetIn(key=twin)})
    def trained(context: dg.AssetExecutionContext, rows: pl.LazyFrame) -> None:
        fv.require_certified(context)

    @dg.asset
    def strange(context: dg.AssetExecutionContext) -> None:
        fv.require_certified(context)

    project.certify()
    assert project.start("x/filtered_dataset", other, trained).success
    assert "check 'certified' of x/filtered_dataset was never executed" in why(
        project.start("trained", other, trained)
    )
    assert "made from no filtered dataset" in why(project.start("strange", strange))


# Policy by run configuration.


def test_a_policy_by_run_configuration(project: Attacked) -> None:
    result = project.start("forvalue_filter", **LAX)
    (check,) = [c for c in result.get_asset_check_evaluations() if c.check_name == "certified"]
    assert not check.passed
    message = why(project.start("finetuned", finetuned))
    assert "gate.max_noise_fraction was 1.0 in this run and is 0.15 in the definition" in message
    assert "selection.keep_fraction was 1.0" in message


def test_a_policy_by_run_configuration_that_the_definition_allows(project: Attacked) -> None:
    project.options = {"gate": fv.GatePolicy(allow_overrides=True)}
    lax = {"gate": {"config": {"max_noise_fraction": 1.0, "override_reason": "ticket 12"}}}
    assert project.start("forvalue_filter", **lax).success
    made = project.instance.get_latest_materialization_event(DATASET).asset_materialization
    assert "ticket 12" in made.metadata["policy_of_this_run"].value
    result = project.start("finetuned", finetuned)
    assert result.success
    (made,) = result.asset_materializations_for_node("finetuned")
    assert "ticket 12" in str(made.metadata["gate_warnings"].value)


# True to the bytes.


@pytest.mark.parametrize("table", ["raw_finetuning_data", "value_scores"])
def test_a_table_that_was_written_over(project: Attacked, table: str) -> None:
    project.instance.delete_dynamic_partition("forvalue_shards", "good")
    path = project.file(table, "bad.parquet")
    frame = pl.read_parquet(path)
    changed = {"noise_probability": 0.001} if table == "value_scores" else {"source": "POISON"}
    frame.with_columns(**{name: pl.lit(value) for name, value in changed.items()}).write_parquet(
        path
    )
    assert "carries no seal" in why(project.start("forvalue_filter"))


def test_a_whole_table_of_something_else(project: Attacked) -> None:
    """A file with a seal of its own: of another instance, an older copy, a run that died."""
    shutil.copy(project.file("value_scores", "good.parquet"), project.file("kept"))
    project.certify()
    shutil.copy(
        project.file("value_scores", "good.parquet"), project.file("value_scores", "other.parquet")
    )
    assert "not the file of the materialisation in force" in why(project.start("forvalue_filter"))


def test_a_storage_that_is_another_one(project: Attacked) -> None:
    project.certify()
    shutil.copytree(project.file(), project.folder / "older")
    project.build_anew()
    project.options = {"storage": fv.Storage(base_dir=str(project.folder / "older"))}
    assert "not the file of the materialisation in force" in why(
        project.start("finetuned", finetuned)
    )


def test_what_is_read_is_what_was_certified(
    project: Attacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.certify()
    between = project.folder / "between.parquet"
    monkeypatch.setenv("BETWEEN", str(between))
    result = project.start("reading", reading)
    assert result.success
    (made,) = result.asset_materializations_for_node("reading")
    assert made.metadata["rows"].value == project.manifest()["rows"]["kept"]
    # The file is replaced after the gate has looked, and before it is read.
    pl.DataFrame({"messages": ["POISON"]}).write_parquet(between)
    assert "is not the file that was certified" in why(project.start("reading", reading))


def test_rows_that_were_read_stay_what_they_were(project: Attacked) -> None:
    @dg.asset
    def slow(context: dg.AssetExecutionContext) -> None:
        rows = fv.require_certified(context, DATASET).read()
        project.file("filtered_dataset.parquet").write_bytes(b"")
        context.add_output_metadata({"rows": len(rows.collect())})

    project.certify()
    result = project.start("slow", slow)
    assert result.success
    (made,) = result.asset_materializations_for_node("slow")
    assert made.metadata["rows"].value == project.manifest()["rows"]["kept"]


# Good is let through.


def test_failed_rebuilds_do_not_take_the_certificate_away(
    project: Attacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forvalue_dagster.quality.standing._HISTORY", 2)
    project.certify()
    project.instance.add_dynamic_partitions("forvalue_shards", ["fresh"])
    for _ in range(5):
        assert not project.start("forvalue_filter").success
    assert project.start("finetuned", finetuned).success


def test_dynamic_outputs_graphs_and_checks_may_ask(project: Attacked) -> None:
    @dg.op(out=dg.DynamicOut(int))
    def fan(context: dg.OpExecutionContext) -> Iterator[dg.DynamicOutput[int]]:
        fv.require_certified(context)
        yield dg.DynamicOutput(1, mapping_key="one")

    @dg.op
    def one(number: int) -> None: ...

    @dg.job
    def spread() -> None:
        fan().map(one)

    @dg.asset_check(asset=DATASET)
    def smoke(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        gate = fv.require_certified(context)
        return dg.AssetCheckResult(passed=gate.dataset == DATASET)

    @dg.op
    def load(context: dg.OpExecutionContext, filtered_dataset: pl.LazyFrame) -> int:
        fv.require_certified(context)
        return len(filtered_dataset.collect())

    @dg.graph_asset
    def by_graph(filtered_dataset):  # type: ignore[no-untyped-def]
        return load(filtered_dataset)

    project.certify()
    assert project.start("spread", spread).success
    assert project.start("smoke", smoke).success
    assert project.start("by_graph", by_graph).success
    project.instance.delete_dynamic_partition("forvalue_shards", "other")
    for others in ((spread,), (smoke,), (by_graph,)):
        name = "spread" if spread in others else "smoke" if smoke in others else "by_graph"
        assert "withdrawn" in why(project.start(name, *others))


def test_noise_that_arrives_is_stale_and_not_reborn(project: Attacked) -> None:
    project.certify()
    project.write("train/other.jsonl", project.rows(20, UNLIKELY, seed=8))
    assert not project.start("forvalue_shard", shard="other").success
    message = why(project.start("finetuned", finetuned))
    assert "raw_finetuning_data of shard 'other' was made again" in message

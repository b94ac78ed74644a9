"""What changed → what ran, through the sensors' and automation's own evaluation.

Each test says what it does to the files, and expects exactly the assets and shards that ran.
"""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

import json
import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from upath import UPath

import forvalue_dagster as fv
from forvalue_dagster.storage.parquet import write_table
from tests.orchestration.conftest import (
    LIKELY,
    ON_BOTH_STORAGES,
    UNLIKELY,
    Instances,
    Project,
)
from tests.orchestration.daemon import Daemon, Ran

pytestmark = ON_BOTH_STORAGES

DATASET: Ran = {("filtered_dataset", None), ("dropped_rows", None)}
PROFILE: Ran = {("validation_data", None), ("validation_profile", None)}


def shard(name: str, *assets: str) -> Ran:
    return {(asset, name) for asset in assets or ("raw_finetuning_data", *VALUED)}


VALUED = ("sample_features", "value_scores")


class Watched(Project):
    daemon: Daemon

    def passed(self) -> dict[str, int]:
        """Rows through the model in the latest feature pass of each shard."""
        latest: dict[str, int] = {}
        for result in self.daemon.results:
            for made in self.daemon.made(result):
                # Where a gone shard's features are removed, none passed.
                if made.asset_key.path[-1] == "sample_features" and "rows_passed" in made.metadata:
                    latest[str(made.partition)] = made.metadata["rows_passed"].value
        return latest

    def gate(self) -> str:
        """What the gate says to someone who is about to read the dataset; empty if it may be."""

        @dg.op
        def train(context: dg.OpExecutionContext) -> None:
            fv.require_certified(context)

        @dg.job
        def training() -> None:
            train()

        result = training.execute_in_process(instance=self.instance, raise_on_error=False)
        if result.success:
            return ""
        (event,) = [event for event in result.all_events if event.is_step_failure]
        return str(event.step_failure_data.user_failure_data.description)


def settled_project(folder: Path, model: Path, instance: dg.DagsterInstance) -> Watched:
    made = Watched(folder, model, instance)
    made.options = {"training_rows": fv.RowSource(path=str(folder / "train"))}
    made.daemon = Daemon(made)
    return made


@pytest.fixture(scope="module")
def settled(
    tmp_path_factory: pytest.TempPathFactory, model_directory: Path, instances: Instances
) -> Watched:
    """A project whose three shards were valued and filtered by automation alone."""
    folder = tmp_path_factory.mktemp("settled")
    with instances.open(folder) as instance:
        made = settled_project(folder, model_directory, instance)
        made.write("validation.jsonl", made.rows(40, LIKELY, seed=0))
        for number, name in enumerate(("one", "two", "three"), start=1):
            made.write(f"train/{name}.jsonl", made.rows(24, LIKELY, seed=number))
        ran = made.daemon.settle()
        assert ran == PROFILE | DATASET | shard("one") | shard("two") | shard("three")
        assert made.gate() == ""
    return made


@pytest.fixture
def project(
    settled: Watched, tmp_path: Path, model_directory: Path, instances: Instances
) -> Iterator[Watched]:
    """A copy of it, with the cursors where they were."""
    folder = tmp_path / "project"
    with instances.open(folder, like=settled.folder) as instance:
        made = settled_project(folder, model_directory, instance)
        made.daemon.cursors = dict(settled.daemon.cursors)
        made.daemon.automation = settled.daemon.automation
        yield made


def test_nothing_changed(project: Watched) -> None:
    assert project.daemon.settle() == set()


def test_a_new_shard(project: Watched) -> None:
    project.write("train/four.jsonl", project.rows(24, LIKELY, seed=9))
    assert project.daemon.settle() == shard("four") | DATASET
    assert project.passed() == {"four": 24}
    assert set(project.table("filtered_dataset")["shard"]) == {"one", "two", "three", "four"}
    assert project.gate() == ""


def test_a_touched_file(project: Watched) -> None:
    os.utime(project.folder / "train" / "one.jsonl", (1, 1))
    assert project.daemon.settle() == shard("one", "raw_finetuning_data")
    assert project.gate() == ""


def test_rows_materialised_again_by_hand(project: Watched) -> None:
    assert project.run("forvalue_shard", "one").success
    assert project.daemon.settle() == set()
    assert project.gate() == ""


def test_appended_and_edited_rows(project: Watched) -> None:
    rows = project.rows(24, LIKELY, seed=1)
    rows[3] = project.rows(1, LIKELY, seed=20)[0]
    project.write("train/one.jsonl", [*rows, *project.rows(2, LIKELY, seed=21)])
    assert project.daemon.settle() == shard("one") | DATASET
    assert project.passed() == {"one": 3}
    assert project.gate() == ""


def test_a_change_between_a_request_and_the_next_tick(project: Watched) -> None:
    """Edited twice within a tick's time: the second edit must not go with the first."""
    project.write("train/one.jsonl", project.rows(24, LIKELY, seed=31))
    project.daemon.observe()
    assert project.daemon.tick() == shard("one", "raw_finetuning_data")
    project.write("train/one.jsonl", project.rows(25, LIKELY, seed=32))
    assert project.daemon.settle() == shard("one") | DATASET
    assert len(project.table("value_scores", "one")) == 25


def test_another_expectation(project: Watched) -> None:
    """Rows are held to it again; the dataset whose rows break it is refused."""
    suite = {
        "name": "own",
        "expectations": [
            {
                "type": "expect_table_row_count_to_be_between",
                "kwargs": {"min_value": 1000},
                "severity": "critical",
            }
        ],
    }
    path = project.folder / "suite.json"
    path.write_text(json.dumps(suite))
    project.options["suites"] = [str(path)]
    assert project.daemon.settle() >= {("raw_finetuning_data", "one"), ("validation_data", None)}
    assert "check 'row_expectations' of raw_finetuning_data" in project.gate()


def test_a_run_over_several_shards_makes_one_asset(project: Watched) -> None:
    tags = {
        "dagster/asset_partition_range_start": "one",
        "dagster/asset_partition_range_end": "two",
    }
    result = project.definitions.resolve_job_def("forvalue_shard").execute_in_process(
        instance=project.instance, tags=tags, raise_on_error=False
    )
    (event,) = [event for event in result.all_events if event.is_step_failure]
    failure = event.step_failure_data.user_failure_data.description
    assert "this one is to make sample_features, value_scores, too" in failure


def test_scores_that_nobody_checked(project: Watched) -> None:
    """A table that a killed run wrote, and no check has seen: what the log says is of another."""
    path = UPath(project.folder / "files" / "value_scores" / "one.parquet")
    table = pl.read_parquet(path)
    write_table(path, table.with_columns(pl.col("value") + 1).lazy())
    result = project.run("forvalue_filter")
    (event,) = [event for event in result.all_events if event.is_step_failure]
    failure = event.step_failure_data.error.to_string()
    assert "value_scores/one.parquet is whole, but not the file of the materialisation" in failure


def test_a_withdrawn_row(project: Watched) -> None:
    project.write("train/one.jsonl", project.rows(24, LIKELY, seed=1)[1:])
    project.daemon.observe()
    project.daemon.tick()  # the rows are read
    assert "raw_finetuning_data of shard 'one' was made again" in project.gate()
    assert project.daemon.settle() == shard("one", *VALUED) | DATASET
    assert project.passed() == {"one": 0}
    assert project.gate() == ""
    tables = [project.table(name) for name in ("filtered_dataset", "dropped_rows")]
    assert sum(table.filter(pl.col("shard") == "one").height for table in tables) == 23


def test_a_deleted_shard(project: Watched) -> None:
    (project.folder / "train" / "two.jsonl").unlink()
    project.daemon.observe()
    assert "shard 'two' was withdrawn" in project.gate()
    assert project.daemon.settle() == DATASET
    assert set(project.table("filtered_dataset")["shard"]) == {"one", "three"}
    left = {path.name for path in (project.folder / "files").rglob("two*")}
    assert left <= {"two"}  # the folder of its expectations' page
    assert project.gate() == ""


def test_a_shard_that_comes_back(project: Watched) -> None:
    file, away = project.folder / "train" / "two.jsonl", project.folder / "two.jsonl"
    file.rename(away)
    project.daemon.settle()
    away.rename(file)  # in the very same state
    assert project.daemon.settle() == shard("two") | DATASET
    assert project.passed() == {"two": 24}
    assert project.gate() == ""


def test_new_validation_rows(project: Watched) -> None:
    project.write("validation.jsonl", project.rows(40, LIKELY, seed=30))
    scores = {("value_scores", name) for name in ("one", "two", "three")}
    assert project.daemon.settle() == PROFILE | scores | DATASET
    assert project.passed() == {}
    assert project.gate() == ""


def test_new_validation_rows_under_a_warm_up(project: Watched) -> None:
    project.options["warm_up"] = fv.WarmUp(rows="training", rank=2, max_tokens=800)
    names = ("one", "two", "three")
    everything = {(asset, name) for asset in VALUED for name in names}
    model = {("valuation_model", None), ("validation_profile", None)}
    assert project.daemon.settle() == everything | model | DATASET
    project.write("validation.jsonl", project.rows(40, LIKELY, seed=30))
    scores = {("value_scores", name) for name in names}
    assert project.daemon.settle() == PROFILE | scores | DATASET
    # Nor does a new shard train it anew.
    project.write("train/four.jsonl", project.rows(24, LIKELY, seed=9))
    assert project.daemon.settle() == shard("four") | DATASET


def test_a_validation_row_that_is_a_training_row(project: Watched) -> None:
    leaked = project.rows(24, LIKELY, seed=2)[5]
    project.write("validation.jsonl", [*project.rows(39, LIKELY, seed=0), leaked])
    ran = project.daemon.settle()
    assert ("value_scores", "two") in ran
    assert not ran & DATASET
    assert "was made again after the dataset was built" in project.gate()


def test_another_model(project: Watched) -> None:
    project.options["valuation"] = project.valuation(batch_tokens=512)
    assert project.daemon.settle() == set()  # no setting that decides anything
    project.options["valuation"] = project.valuation(top_errors=4)
    features = {(asset, name) for asset in VALUED for name in ("one", "two", "three")}
    profile = {("validation_profile", None)}
    assert project.daemon.settle() == features | profile | DATASET
    assert project.passed() == dict.fromkeys(("one", "two", "three"), 24)


def test_a_touched_model(project: Watched) -> None:
    file = project.model / "config.json"
    before = file.stat()
    os.utime(file, (1, 1))
    features = {("sample_features", name) for name in ("one", "two", "three")}
    # What is loaded is the same: the stored features serve, and nothing behind them is made again.
    assert project.daemon.settle() == features | {("validation_profile", None)}
    assert set(project.passed().values()) == {0}
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_another_policy(project: Watched) -> None:
    project.options["selection"] = fv.SelectionPolicy(keep_fraction=0.25)
    assert project.daemon.settle() == DATASET
    project.options["gate"] = fv.GatePolicy(max_noise_fraction=0.2)
    scores = {("value_scores", name) for name in ("one", "two", "three")}
    # Its checks judge by the new limit.
    assert project.daemon.settle() == scores | DATASET


def test_noise_and_its_mending(project: Watched) -> None:
    project.write("train/one.jsonl", project.rows(24, UNLIKELY, seed=1))
    assert project.daemon.settle() == shard("one")
    assert "of shard 'one' was made again after the dataset was built" in project.gate()
    project.write("train/one.jsonl", project.rows(24, LIKELY, seed=40))
    assert project.daemon.settle() == shard("one") | DATASET
    assert project.gate() == ""


def test_noise_is_left_out_where_that_is_asked_for(project: Watched) -> None:
    project.options["gate"] = fv.GatePolicy(on_blocked_shard="exclude")
    project.daemon.settle()
    project.write("train/one.jsonl", project.rows(24, UNLIKELY, seed=1))
    assert project.daemon.settle() == shard("one") | DATASET
    assert set(project.table("filtered_dataset")["shard"]) == {"two", "three"}
    assert project.gate() == ""


def test_unreadable_rows_hold_back_the_model(project: Watched) -> None:
    project.options["training_rows"] = fv.RowSource(
        path=str(project.folder / "train"), on_bad_row="skip"
    )
    project.daemon.settle()
    project.write("train/one.jsonl", ["no json"] * 5)
    assert project.daemon.settle() == shard("one", "raw_finetuning_data")
    assert "was made again" in project.gate()


def test_rows_that_repeat_in_other_shards(project: Watched) -> None:
    known = project.rows(24, LIKELY, seed=2)[:22]
    new = project.rows(2, LIKELY, seed=50)
    project.write("train/four.jsonl", [*known, *new, *new])
    assert project.daemon.settle() == shard("four") | DATASET
    assert project.passed() == {"four": 2}
    assert len(project.table("value_scores", "four")) == 26

"""Each check fails for the fault that it is there for."""

from __future__ import annotations

import json
from dataclasses import replace

import dagster as dg
import numpy as np
import polars as pl
import pytest

import forvalue_dagster as fv
from forvalue_dagster.orchestration.assets.filtered_dataset import certify
from forvalue_dagster.orchestration.checks.scores import (
    check_conservation,
    check_distribution,
    check_noise,
    check_share,
)
from forvalue_dagster.orchestration.checks.selection import check_selection
from forvalue_dagster.quality.distribution import ValueHistogram
from forvalue_dagster.quality.manifest import MadeFrom, Manifest, ShardEntry
from forvalue_dagster.quality.verdicts import SHIFTED, ShardVerdict
from tests.orchestration.conftest import Project

KEY = dg.AssetKey("value_scores")
CHECKED = dg.DagsterEventType.ASSET_CHECK_EVALUATION
PLACES = pl.DataFrame({"shard": ["s"] * 3, "row": [0, 1, 2]})
SCORES = PLACES.with_columns(
    value=pl.Series([1.0, None, -1.0]),
    status=pl.Series(["scored", "skipped", "scored"]),
    reason=pl.Series([None, "no_response", None]),
)


def test_conservation_holds() -> None:
    result = check_conservation(KEY, SCORES, PLACES)
    assert result.passed
    assert result.description == "3 rows in = 2 scored + 1 skipped."


@pytest.mark.parametrize(
    ("scores", "problem"),
    [
        (SCORES.head(2), "1 rows without a score"),
        (pl.concat([SCORES, SCORES.tail(1)]), "1 rows scored twice"),
        (SCORES.with_columns(row=pl.col("row") + 1), "1 scores without a row"),
        (SCORES.with_columns(reason=pl.lit(None, pl.String)), "1 rows skipped without a reason"),
        (SCORES.with_columns(value=pl.lit(float("nan"))), "2 scored rows without a finite value"),
        (SCORES.with_columns(value=pl.lit(None, pl.Float64)), "2 scored rows without a finite"),
    ],
)
def test_conservation_names_what_was_lost(scores: pl.DataFrame, problem: str) -> None:
    result = check_conservation(KEY, scores, PLACES)
    assert not result.passed
    assert problem in result.description


@pytest.mark.parametrize(
    ("verdict", "passed", "blocks", "warns"),
    [
        ("pass", True, False, False),
        ("warn", True, False, True),
        ("fail", False, True, True),
        ("uncertified", True, False, True),
        (SHIFTED, False, True, True),
    ],
)
def test_what_blocks_and_what_warns(verdict: str, passed: bool, blocks: bool, warns: bool) -> None:
    scores = pl.DataFrame({"noise_probability": [0.1, 0.9]})
    told = ShardVerdict("s", verdict, passed, "because", 0.15, 0.2, 0.1, 0.3, 0.5, 2)
    blocking, warning = check_noise(KEY, scores, told)
    assert (blocking.check_name, blocking.passed) == ("noise_fraction", not blocks)
    assert blocking.severity == dg.AssetCheckSeverity.ERROR
    assert (warning.check_name, warning.passed) == ("noise_warning", not warns)
    assert warning.severity == dg.AssetCheckSeverity.WARN
    assert blocking.description == f"Shard 's': {verdict}: because."
    assert blocking.metadata["noise_fraction"].value == 0.2


def test_values_that_drift_or_harm_warn() -> None:
    rng = np.random.default_rng(0)

    def table(mean: float) -> pl.DataFrame:
        values = rng.normal(mean, 1, 500)
        return pl.DataFrame({"value": values, "status": ["scored"] * 500})

    before = ValueHistogram.from_json(ValueHistogram.of(table(2)["value"]).to_json())
    policy = fv.WarningPolicy()
    assert check_distribution(KEY, table(2), before, policy).passed
    assert check_distribution(KEY, table(2), None, policy).passed
    drifted = check_distribution(KEY, table(3), before, policy)
    assert not drifted.passed
    assert drifted.severity == dg.AssetCheckSeverity.WARN
    assert drifted.metadata["stability_index"].value > 0.25
    assert not check_distribution(KEY, table(-1), None, policy).passed


def test_a_share_that_should_be_small() -> None:
    scores = pl.DataFrame({"status": ["scored"] * 3 + ["skipped"], "reason": [None] * 3 + ["x"]})
    scores = scores.with_columns(reason=pl.lit(None, pl.String)).head(3)
    assert check_share(KEY, "skipped", 0.05, 0.05, scores).passed
    result = check_share(KEY, "truncation", 0.2, 0.1, scores)
    assert not result.passed
    assert result.description == "20.0% of the scored rows were cut (limit 10.0%)."


def kept_of(scores: pl.DataFrame, rows: list[int]) -> pl.DataFrame:
    return scores.filter(pl.col("row").is_in(rows))


def test_a_selection_that_is_worth_less_or_starves_a_shard_warns() -> None:
    scores = pl.DataFrame(
        {
            "shard": ["a"] * 4 + ["b"] * 4,
            "row": list(range(8)),
            "value": [1.0, 2, 3, 4, 5, 6, 7, 8],
            "value_g": [1.0, 2, 3, 4, 5, 6, 7, 8],
            "status": ["scored"] * 8,
            "response_tokens": [10] * 8,
        }
    )
    shards = {name: scores.filter(pl.col("shard") == name) for name in ("a", "b")}
    policy = fv.WarningPolicy()

    def check(rows: list[int]) -> dg.AssetCheckResult:
        return check_selection(KEY, kept_of(scores, rows), shards, ["value_g"], policy)

    assert check([3, 5, 6, 7]).passed
    assert check(list(range(8))).passed
    assert "0 of 4 rows of shard 'a' are kept" in check([4, 5, 6, 7]).description
    worse = check([0, 1, 4])
    assert "the rows kept have a mean value of" in worse.description
    assert "no better for 'g'" in worse.description
    assert worse.severity == dg.AssetCheckSeverity.WARN


def entry(shard: str, passed: bool = True, **other) -> ShardEntry:
    verdict = ShardVerdict(shard, "pass" if passed else "fail", passed, "because", 0.15)
    return ShardEntry(verdict, other.get("blocked_by", ()), {"value_scores": MadeFrom(7, "v", ())})


@pytest.mark.parametrize(
    ("change", "passed"),
    [
        ({}, True),
        ({"rows": {"in": 3, "kept": 0, "dropped": 3}}, False),
        ({"missing_shards": ("b",)}, False),
        ({"missing_shards": ("b",), "on_blocked_shard": "exclude"}, True),
        ({"shards": (entry("a", False),), "on_blocked_shard": "exclude"}, False),
        ({"shards": (entry("a"), entry("b", False))}, False),
        ({"shards": (entry("a"), entry("b", blocked_by=("a leak",)))}, False),
        ({"shards": (entry("a"), entry("b", False)), "on_blocked_shard": "exclude"}, True),
    ],
)
def test_certified_follows_from_the_manifest(change: dict, passed: bool) -> None:
    manifest = Manifest(
        shards=(entry("a"),),
        missing_shards=(),
        on_blocked_shard="fail",
        partitions="forvalue_shards",
        rows={"in": 3, "kept": 3, "dropped": 0},
        selection={},
    )
    changed = replace(manifest, **change)
    assert certify(KEY, changed).passed == passed
    assert Manifest.from_json(json.loads(json.dumps(changed.to_json()))) == changed


def read_shards(
    project: Project, *shards: str
) -> tuple[dict[str, dg.AssetMaterialization], dict[str, dg.AssetCheckEvaluation]]:
    """Materialise raw rows alone; return shard → event, and shard → what `row_reading` said."""
    key = dg.AssetKey("raw_finetuning_data")
    project.instance.add_dynamic_partitions("forvalue_shards", shards)
    everything = project.definitions.resolve_implicit_global_asset_job_def()
    job = everything.get_subset(asset_selection={key})
    tags = None
    if len(shards) > 1:
        tags = {
            "dagster/asset_partition_range_start": shards[0],
            "dagster/asset_partition_range_end": shards[-1],
        }
    result = job.execute_in_process(
        instance=project.instance,
        partition_key=shards[0] if tags is None else None,
        tags=tags,
        raise_on_error=False,
    )
    # Not from the result: in a run over many shards the step itself records what it made.
    records = project.instance.get_records_for_run(result.run_id).records
    events = [e for r in records if (e := r.event_log_entry.dagster_event) is not None]
    made = {
        event.partition: event.step_materialization_data.materialization
        for event in events
        if event.is_step_materialization
    }
    checks = [e.asset_check_evaluation_data for e in events if e.event_type == CHECKED]
    said = {c.partition: c for c in checks if c.check_name == "row_reading"}
    return made, said


def test_how_rows_were_read_is_shown_and_warned_of(project: Project) -> None:
    good = {"prompt": "Hi", "response": "Hello", "id": 7}
    project.write("train/a.jsonl", [good] * 2)
    project.write("train/b.jsonl", [good | {"score": 0.5, "objects": "secret text"}, "{"])
    (project.folder / "train" / "b.csv").write_text("prompt,response\n")
    made, said = read_shards(project, "a", "b")
    assert said["a"].passed
    told = {name: value.value for name, value in made["a"].metadata.items()}
    assert told["form"] == "prompt and response (prompt, response)"
    assert told["columns_used"] == {"prompt": "prompt", "response": "response"}
    assert told["columns_unused"] == ["id"]
    assert told["number_of_columns_unused"] == 1
    assert told["problems"] == {}

    assert not said["b"].passed
    assert said["b"].severity == dg.AssetCheckSeverity.WARN
    assert not said["b"].blocking
    assert "look like a part of the conversation: score, objects;" in said["b"].description
    told = {name: value.value for name, value in made["b"].metadata.items()}
    assert told["columns_like_conversation"] == ["score", "objects"]
    assert told["problems"] == {"line": 1}
    assert told["number_of_files_passed_over"] == 1
    assert "secret text" not in str(made["b"].metadata)

    # The same file again says nothing new; another form does, in a run of one shard, too.
    assert read_shards(project, "a")[1]["a"].passed
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    project.write("train/a.jsonl", [{"messages": turns}])
    _, said = read_shards(project, "a")
    assert not said["a"].passed
    assert "the form is chat (messages), and was prompt and response" in said["a"].description
    assert read_shards(project, "a")[1]["a"].passed


def test_an_ignored_column_is_not_warned_of(project: Project) -> None:
    project.write("train/a.jsonl", [{"prompt": "Hi", "response": "Hello", "score": 0.5}])
    project.options["training_rows"] = fv.RowSource(
        path=str(project.folder / "train"), ignore_columns=["score"]
    )
    made, said = read_shards(project, "a")
    assert said["a"].passed
    assert made["a"].metadata["columns_unused"].value == ["score"]

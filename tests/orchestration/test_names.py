"""Names of shards, folders and columns that mean something elsewhere, on a real instance."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import polars as pl

import forvalue_dagster as fv
from tests.orchestration.conftest import Project

# Each reads another one's files where a name is taken for a pattern.
TWINS = {"price_$1_$2[1]": "price_$1_$21", "s*": "sx"}


def _table(project: Project, *parts: str) -> pl.DataFrame:
    path = project.folder.joinpath(project.options["storage"].base_dir, *parts)
    return pl.read_parquet(f"{path}.parquet", glob=False)


def test_a_shard_comes_out_with_its_own_rows_and_its_own_verdict(project: Project) -> None:
    storage = project.folder / "files [v2] {x}"
    project.options = {
        "storage": fv.Storage(base_dir=str(storage)),
        "gate": fv.GatePolicy(on_blocked_shard="exclude"),
        "selection": fv.SelectionPolicy(keep_fraction=1.0, drop_duplicates=False),
    }
    rows = {}
    for number, (name, twin) in enumerate(TWINS.items()):
        noisy = name == "s*"
        for seed, shard in enumerate((name, twin)):
            letters = project.unlikely if noisy and shard == name else project.likely
            rows[shard] = project.rows(24, letters, seed=100 + 10 * number + seed)
            # Columns of other types, and of our own scores' names, in one shard of each pair.
            own = {"value": seed, "source.value": "x"} if shard == name else {"value": [1]}
            rows[shard] = [row | own | {"n": number} for row in rows[shard]]
            pl.DataFrame(rows[shard]).write_parquet(project.folder / "train" / "x")
            (project.folder / "train" / "x").rename(project.folder / "train" / f"{shard}.parquet")
    assert project.run("forvalue_profile").success
    outcomes = dict(zip(rows, project.value(*rows), strict=True))
    # A blocking check that fails ends a run; everything before it was made.
    assert [shard for shard, run in outcomes.items() if not run.success] == ["s*"]
    for shard, expected in rows.items():
        raw = _table(project, "raw_finetuning_data", shard)
        assert raw["prompt"].to_list() == [row["prompt"] for row in expected]
        assert raw["shard"].unique().to_list() == [shard]
        scores = _table(project, "value_scores", shard)
        assert scores["sample_id"].to_list() == raw["sample_id"].to_list()
    assert project.run("forvalue_filter").success
    manifest = json.loads((storage / "filtered_dataset.manifest.json").read_text())
    passed = {entry["shard"]: entry["passed"] for entry in manifest["shards"]}
    assert passed == {shard: shard != "s*" for shard in rows}
    kept = _table(project, "filtered_dataset")
    lines = [json.loads(ln) for ln in (storage / "filtered_dataset.jsonl").read_text().splitlines()]
    for shard, expected in rows.items():
        own = kept.filter(pl.col("shard") == shard)
        prompts = [row["prompt"] for row in expected] if passed[shard] else []
        assert sorted(own["prompt"].to_list()) == sorted(prompts)
        # As JSON text in the table, where another shard's column has another type.
        assert [json.loads(text) for text in own["source.value"]] == [
            row["value"] for row in expected if passed[shard]
        ]
        assert [line for line in lines if line["prompt"] in prompts] == (
            expected if passed[shard] else []
        )


def test_a_partition_of_another_asset_never_leads_out_of_the_storage(project: Project) -> None:
    shards = dg.DynamicPartitionsDefinition(name="days")
    keys = ["day", "../../../escape", "n" * 240]

    @dg.asset(partitions_def=shards, io_manager_key="parquet_io_manager")
    def rows(context) -> pl.DataFrame:  # Dagster cannot look up the annotation of an inner function
        return pl.DataFrame(project.rows(24, project.likely, seed=len(context.partition_key)))

    project.options = {
        "training_rows": fv.UpstreamRows(asset="rows"),
        "upstream_shards": shards,
        "gate": fv.GatePolicy(on_blocked_shard="exclude"),
        "storage": fv.Storage(base_dir=str(project.folder / "deep" / "er" / "files")),
    }
    project.instance.add_dynamic_partitions("days", keys)
    before = set(project.folder.rglob("*"))
    together = dg.Definitions.merge(project.definitions, dg.Definitions(assets=[rows]))

    def run(*names: str, partition: str | None = None) -> dg.ExecuteInProcessResult:
        job = together.resolve_implicit_global_asset_job_def()
        return job.get_subset(
            asset_selection={dg.AssetKey(name) for name in names}
        ).execute_in_process(
            instance=project.instance, partition_key=partition, raise_on_error=False
        )

    assert run("validation_data", "validation_profile").success
    for key in keys:
        assert run("rows", partition=key).success == (key != "n" * 240)
        made = run("raw_finetuning_data", "sample_features", "value_scores", partition=key)
        assert made.success == (key == "day")
        if key == "../../../escape":
            (failure, *_) = [e for e in made.all_events if e.is_step_failure]
            assert "can be no shard" in failure.step_failure_data.error.to_string()
    # The others are missing, and hold nothing up.
    assert run("filtered_dataset", "dropped_rows").success
    made = {path for path in set(project.folder.rglob("*")) - before if path.suffix == ".parquet"}
    assert made
    assert all(path.is_relative_to(project.folder / "deep" / "er" / "files") for path in made)
    assert not list(Path(project.folder.anchor).glob("escape*"))

"""What the gate costs: its own time, the listing of shards, and the seals of a re-valuation.

    python -m benchmarks.gate_cost

The gate is asked in front of a dataset of 1,000 shards, whose events are in a real event log; the
shards are copies of one that the graph made with a tiny model. Folders of many files are listed as
the sensor does. The seals of a feature table, of a profile and of the scores are held against the
re-valuation that reads and writes them, on the table of `benchmarks.revaluation`.
"""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from upath import UPath

import forvalue_dagster as fv
from benchmarks.harness import argument_parser, need, save
from benchmarks.revaluation import BYTES_OF, TOKENS, WINDOW, copies
from forvalue_dagster.engine.feature_scoring import FeatureScoring
from forvalue_dagster.engine.features import feature_parts
from forvalue_dagster.engine.scoring import build_profile
from forvalue_dagster.models.loading import load_model
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.quality.event_log import latest_storage_ids
from forvalue_dagster.quality.manifest import MANIFEST, Manifest, ShardEntry
from forvalue_dagster.quality.standing import check_evaluation, latest_materialization
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.storage.parquet import scan_table, write_table
from forvalue_dagster.storage.parts import StoredParts
from forvalue_dagster.storage.seal import check_parquet
from forvalue_dagster.storage.tensors import TensorFile, load_tensors, write_tensors
from forvalue_dagster.valuation.profile import ValidationProfile
from tests.orchestration.conftest import LIKELY, Instances, Project, save_trained_model

SHARDS, FILES = 1000, (1250, 2500, 5000, 10_000)
DATASET = dg.AssetKey("filtered_dataset")


def seconds(run: Callable[[], Any], repeats: int = 3) -> float:
    """The fastest of a few runs."""
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        spent.append(time.perf_counter() - start)
    return min(spent)


@contextmanager
def certified(folder: Path) -> Iterator[Project]:
    """A project with a certified dataset of one shard."""
    (folder / "home").mkdir()
    with Instances().open(folder / "home") as instance:
        project = Project(folder, save_trained_model(folder / "model"), instance)
        project.write("validation.jsonl", project.rows(40, LIKELY, seed=0))
        project.write("train/good.jsonl", project.rows(30, LIKELY, seed=1))
        assert project.run("forvalue_profile").success
        assert project.value("good")[0].success
        assert project.run("forvalue_filter").success
        yield project


def multiply(instance: dg.DagsterInstance, shards: int) -> None:
    """Report a dataset of many shards, each like the one there is."""
    names = [f"shard{number:04d}" for number in range(shards)]
    instance.add_dynamic_partitions("forvalue_shards", names)
    made = latest_materialization(instance, DATASET)
    assert made is not None
    manifest = Manifest.from_json(made.metadata[MANIFEST].value)
    (entry,) = manifest.shards
    assert entry.source is not None
    places: dict[str, Any] = {}
    for asset in (*entry.made_from, entry.source.asset):
        key = dg.AssetKey.from_user_string(asset)
        one = latest_materialization(instance, key, entry.shard)
        tags = dict(one.tags) if one else {"dagster/data_version": entry.source.data_version}
        for name in names:
            event = dg.AssetMaterialization(key, partition=name, tags=tags)
            instance.report_runless_asset_event(event)
        places[asset] = latest_storage_ids(instance, key, names)

    def like(name: str) -> ShardEntry:
        assert entry.source is not None
        return replace(
            entry,
            verdict=replace(entry.verdict, shard=name),
            source=replace(entry.source, storage_id=places[entry.source.asset][name]),
            made_from={
                asset: replace(was, storage_id=places[asset][name])
                for asset, was in entry.made_from.items()
            },
        )

    many = replace(manifest, shards=tuple(map(like, names)))
    metadata = {**made.metadata, MANIFEST: dg.MetadataValue.json(many.to_json())}
    event = dg.AssetMaterialization(DATASET, metadata=metadata, tags=dict(made.tags))
    instance.report_runless_asset_event(event)
    newest = latest_materialization(instance, DATASET)
    assert newest is not None
    passed = dg.AssetCheckResult(passed=True, asset_key=DATASET, check_name="certified")
    instance.report_runless_asset_event(check_evaluation(passed, None, newest, blocking=True))


def gate(folder: Path) -> list[float]:
    """Seconds of three calls in one step."""
    spent = []

    @dg.asset(deps=[DATASET])
    def finetuned(context: dg.AssetExecutionContext) -> None:
        for _ in range(3):
            start = time.perf_counter()
            report = fv.require_certified(context)
            spent.append(round(time.perf_counter() - start, 2))
            assert report.manifest is not None
            assert len(report.manifest.shards) == SHARDS

    with certified(folder) as project:
        multiply(project.instance, SHARDS)
        job = dg.define_asset_job("consume", dg.AssetSelection.assets("finetuned"))
        more = dg.Definitions(assets=[finetuned], jobs=[job])
        definitions = dg.Definitions.merge(project.definitions, more)
        assert (
            definitions.resolve_job_def("consume")
            .execute_in_process(instance=project.instance)
            .success
        )
    return spent


def listings(folder: Path) -> dict[str, float]:
    found = {}
    for below, count in zip((0, *FILES), FILES, strict=False):
        for number in range(below, count):
            (folder / f"s{number:05d}.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
        source = fv.RowSource(path=str(folder))
        assert len(source.listing()) == count
        found[f"{count}"] = round(seconds(source.listing), 2)
    return found


def seals(folder: Path, data: Path, rows: int) -> dict[str, float]:
    """Seconds of a re-valuation, with its reading and writing, and of the seals in it."""
    loaded, options = load_model(fv.ModelConfig()), ValuationOptions(window_rows=WINDOW)
    source = fv.read_rows(need(data / "gsm8k" / "train.jsonl")).head(24)
    real = pl.concat(feature_parts(loaded, source, options))
    real = real.filter(pl.col("response_tokens") >= TOKENS).with_columns(
        pl.col(name).bin.slice(0, size * TOKENS) for name, size in BYTES_OF.items()
    )
    real = real.with_columns(response_tokens=pl.lit(TOKENS, pl.Int64))
    validation = fv.read_rows(need(data / "gsm8k" / "test.jsonl")).head(8)
    profile, _ = build_profile(loaded, validation, options)
    table, stored, scores = (UPath(folder / name) for name in ("features", "profile", "scores"))
    parts = StoredParts(UPath(folder / "parts"))
    for number, part in enumerate(copies(real, rows)):
        parts.save(str(number), part, "1")
    write_table(table, parts)
    write_tensors(stored, TensorFile(*profile.to_tensors()))

    def value() -> None:
        read = load_tensors(stored)
        known = ValidationProfile.from_tensors(read.tensors, read.metadata)
        scoring = FeatureScoring.of(known, options, overwrite=True)
        lines = scan_table(Storage(base_dir=str(folder)), table)
        write_table(scores, scoring.score(lines))

    whole = seconds(value, 1)
    content = stored.read_bytes()

    def hold() -> None:
        from hashlib import sha256

        check_parquet(table)  # when it is read
        check_parquet(scores)  # as much as the seal that is written
        sha256(content).digest(), sha256(content).digest()  # the profile's two digests

    return {
        "rows": rows,
        "megabytes": round(table.stat().st_size / 1e6),
        "re-valuation, seconds": round(whole, 2),
        "seals, seconds": round(seconds(hold), 2),
        "share": round(seconds(hold) / whole, 4),
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=5_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch, name) for name in ("gate", "files", "seals")]
        for folder in folders:
            folder.mkdir()
        result: dict[str, Any] = {"shards": SHARDS, "seconds of the gate": gate(folders[0])}
        print(result, flush=True)
        result["seconds to list files"] = listings(folders[1])
        print(result, flush=True)
        result["seals of a re-valuation"] = seals(folders[2], arguments.data, arguments.rows)
    save("gate_cost", result)


if __name__ == "__main__":
    main()

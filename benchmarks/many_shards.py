"""A thousand shards of fifty rows with the embedded model: what a new validation set costs.

    python -m benchmarks.many_shards

The rows are drawn from 400 short ones, whose features are computed once and laid out: they stand
for features that are there already. Then the validation set changes. Everything up to the gate in
front of a consumer is done in one process of two threads by the runs that the sensors and
automation ask for, a hundred shards each; timed, with the process's peak memory. A run in a process
of its own, as a daemon starts it, costs its start besides, which is measured apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
from dagster_shared.serdes import deserialize_value, serialize_value

import forvalue_dagster as fv
from benchmarks.harness import peak_megabytes, reset_peak, save
from tests.orchestration.daemon import Daemon

POOL, VALIDATION = 400, 60
FEATURES = dg.AssetKey("sample_features")


@dataclass
class Project:
    """A folder with rows, and the graph over it."""

    folder: Path
    instance: dg.DagsterInstance
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def definitions(self) -> dg.Definitions:
        return fv.valuation_definitions(
            training_rows=fv.RowSource(path=str(self.folder / "train")),
            validation_rows=fv.RowSource(path=str(self.folder / "validation.jsonl")),
            storage=fv.Storage(base_dir=str(self.folder / "storage")),
            valuation=fv.Valuation(noise_rows=40, noise_recipes=["word_shuffle", "refusal"]),
            automation=fv.Automation(shards_per_tick=10_000),
        )

    def write(self, name: str, rows: list[dict[str, str]]) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sums(count: int, seed: int) -> list[dict[str, str]]:
    """Short rows, no two alike."""
    generator = np.random.default_rng(seed)
    chosen = generator.choice(900 * 900, count, replace=False)
    pairs = [(100 + number // 900, 100 + number % 900) for number in chosen.tolist()]
    return [
        {"prompt": f"What is {a} + {b}?", "response": f"{a} + {b} = {a + b}."} for a, b in pairs
    ]


@contextmanager
def stage(times: dict[str, Any], name: str) -> Iterator[None]:
    reset_peak()
    start = time.perf_counter()
    yield
    times[name] = {
        "seconds": round(time.perf_counter() - start, 1),
        "peak_megabytes": round(peak_megabytes()),
    }
    print(name, times[name], flush=True)


def gate(project: Project) -> None:
    @dg.op
    def train(context) -> None:
        fv.require_certified(context)

    @dg.job
    def consume() -> None:
        train()

    assert consume.execute_in_process(instance=project.instance).success


def prepare(folder: Path, shards: int, rows: int) -> dict[str, Any]:
    """Register, read and check the shards, and lay their features out."""
    pool = sums(POOL, seed=0)
    generator = np.random.default_rng(1)
    times: dict[str, Any] = {}
    with dg.DagsterInstance.get() as instance:
        project = Project(folder, instance)
        project.write("validation.jsonl", sums(VALIDATION, seed=2))
        for number in range(shards):
            # The first shards hold the whole pool between them: the others' features are theirs.
            first = range(number * rows, (number + 1) * rows)
            places = first if first.stop <= POOL else generator.choice(POOL, rows, replace=False)
            drawn = [pool[index] for index in places]
            project.write(f"train/shard{number:04d}.jsonl", drawn)
        daemon = Daemon(project)  # type: ignore[arg-type]
        with stage(times, "register"):
            daemon.observe()
        daemon.tick()  # rows and their checks
        lay_out(project, daemon, rows)
    return times


def lay_out(project: Project, daemon: Daemon, rows: int) -> None:
    """Make features of the first shards by the graph, which are those of all, and lay them out."""
    names = sorted(project.instance.get_dynamic_partitions("forvalue_shards"))
    first = names[: POOL // rows]
    tags = {
        "dagster/asset_partition_range_start": first[0],
        "dagster/asset_partition_range_end": first[-1],
    }
    daemon.run(dg.RunRequest(asset_selection=[FEATURES], tags=tags))
    folder = project.folder / "storage"
    known = pl.concat(pl.read_parquet(folder / FEATURES.path[0] / f"{n}.parquet") for n in first)
    known = known.unique("sample_id").drop("shard", "row")
    for name in names[len(first) :]:
        raw = pl.read_parquet(folder / "raw_finetuning_data" / f"{name}.parquet")
        table = raw.select("sample_id", "shard", "row").join(known, on="sample_id", how="left")
        assert table["nll"].null_count() == 0
        table.write_parquet(folder / FEATURES.path[0] / f"{name}.parquet")
        project.instance.report_runless_asset_event(
            dg.AssetMaterialization(
                FEATURES, partition=name, tags={"dagster/data_version": f"laid out {name}"}
            )
        )


def new_profile(folder: Path) -> dict[str, Any]:
    """Change the validation set, and make its profile."""
    times: dict[str, Any] = {}
    with dg.DagsterInstance.get() as instance:
        project = Project(folder, instance)
        daemon = Daemon(project)  # type: ignore[arg-type]
        daemon.observe()
        daemon.settle()  # every shard has scores, and the dataset is made
        daemon.results.clear()
        project.write("validation.jsonl", sums(VALIDATION, seed=3))
        with stage(times, "validation rows and profile"):
            daemon.observe()
            while ("validation_profile", None) not in daemon.tick():
                pass
        times["runs"] = len(daemon.results)
        (folder / "cursors.json").write_text(json.dumps(daemon.cursors))
        (folder / "automation.json").write_text(serialize_value(daemon.automation))
    return times


def revalue(folder: Path) -> dict[str, Any]:
    """Make everything that rests on the new profile."""
    times: dict[str, Any] = {}
    with dg.DagsterInstance.get() as instance:
        project = Project(folder, instance)
        cursors = json.loads((folder / "cursors.json").read_text())
        automation = deserialize_value((folder / "automation.json").read_text())
        daemon = Daemon(project, cursors, automation)  # type: ignore[arg-type]
        shards = len(instance.get_dynamic_partitions("forvalue_shards"))
        with stage(times, "all"):
            with stage(times, "scores and their checks"):
                made = daemon.tick()
                assert len({shard for asset, shard in made if asset == "value_scores"}) == shards
            with stage(times, "automation, fan-in"):
                ran = daemon.settle()
                assert ("filtered_dataset", None) in ran, ran
            with stage(times, "gate"):
                gate(project)
        times["all"]["peak_megabytes"] = max(
            times[name]["peak_megabytes"] for name in times if name != "all"
        )
        passed = [
            m for run in daemon.results for m in daemon.made(run) if "rows_passed" in m.metadata
        ]
        assert not passed, "a training row passed through the model"
        times["runs"] = len(daemon.results)
        records = instance.fetch_materializations(dg.AssetKey("value_scores"), limit=1).records
        times["event_bytes"] = len(records[0].event_log_entry.to_json())
    return times


def process_start(folder: Path) -> float:
    """Seconds that a run's own process takes before it begins."""
    code = "import benchmarks.many_shards as m; from pathlib import Path; import dagster as dg\n"
    code += "m.Project(Path('.'), dg.DagsterInstance.ephemeral()).definitions.get_repository_def()"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
    return round(time.perf_counter() - start, 1)


STAGES: dict[str, Callable[..., dict[str, Any]]] = {
    "prepare": prepare,
    "profile": new_profile,
    "revalue": revalue,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=50, help="of a shard")
    parser.add_argument("--stage", choices=list(STAGES), help="in this process")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.stage:
        sizes = (arguments.shards, arguments.rows) if arguments.stage == "prepare" else ()
        times = STAGES[arguments.stage](arguments.folder, *sizes)
        (arguments.folder / f"{arguments.stage}.json").write_text(json.dumps(times))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        (folder / "home").mkdir(parents=True, exist_ok=True)
        (folder / "home" / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        os.environ["DAGSTER_HOME"] = str(folder / "home")
        result: dict[str, Any] = {"shards": arguments.shards, "rows": arguments.rows}
        for name in STAGES:
            command = [sys.executable, "-m", "benchmarks.many_shards", "--stage", name]
            command += ["--folder", str(folder), "--shards", str(arguments.shards)]
            subprocess.run([*command, "--rows", str(arguments.rows)], check=True)
            result[name] = json.loads((folder / f"{name}.json").read_text())
        result["process_start_seconds"] = process_start(folder)
    save("many_shards", result)


if __name__ == "__main__":
    main()

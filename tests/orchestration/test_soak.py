"""Months of a pipeline in minutes: the real daemon, real processes, the real clock."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest

from forvalue_dagster.quality.manifest import MANIFEST
from tests.orchestration.conftest import (
    LIKELY,
    ON_BOTH_STORAGES,
    UNLIKELY,
    Instances,
    Project,
)

DEFINITIONS = """
    import os
    import forvalue_dagster as fv

    folder = os.environ["SOAK_FOLDER"]
    defs = fv.valuation_definitions(
        training_rows=fv.RowSource(path=f"{folder}/train"),
        validation_rows=fv.RowSource(path=f"{folder}/validation.jsonl"),
        storage=fv.Storage(base_dir=f"{folder}/files"),
        valuation=fv.Valuation(
            name=os.environ["SOAK_MODEL"],
            local_files_only=True,
            noise_recipes=["character_noise", "refusal"],
        ),
        automation=fv.Automation(seconds=3),
    )
"""
# One run at a time: they share two cores.
INSTANCE = {
    "telemetry": {"enabled": False},
    "nux": {"enabled": False},
    "concurrency": {"runs": {"max_concurrent_runs": 2}},
}


@contextmanager
def dagster_dev(
    folder: Path, home: Path, model: Path, definitions: str = DEFINITIONS
) -> Iterator[None]:
    """Run `dagster dev`: web server, daemon, code server."""
    (folder / "definitions.py").write_text(textwrap.dedent(definitions))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "DAGSTER_HOME": str(home),
        "SOAK_FOLDER": str(folder),
        "SOAK_MODEL": str(model),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    with (folder / "dev.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster", "dev", "-f", "definitions.py", "-p", str(port)],
            cwd=folder,
            env=os.environ | settings,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def wait(until: Callable[[], object], what: str, folder: Path, seconds: float = 420) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, f"{what}:\n" + (folder / "dev.log").read_text()[-4000:]
        time.sleep(1)


class Soaked(Project):
    def latest(self, asset: str, shard: str | None = None) -> dg.EventLogRecord | None:
        wanted = dg.AssetRecordsFilter(
            dg.AssetKey(asset), asset_partitions=[shard] if shard else None
        )
        records = self.instance.fetch_materializations(wanted, limit=1).records
        return records[0] if records else None

    def number(self, asset: str, shard: str | None = None) -> int:
        record = self.latest(asset, shard)
        return record.storage_id if record else 0

    def shards_in_dataset(self) -> set[str]:
        record = self.latest("filtered_dataset")
        if record is None:
            return set()
        manifest = record.asset_materialization.metadata[MANIFEST].value
        return {entry["shard"] for entry in manifest["shards"] if entry["passed"]}

    def rows_passed(self, shard: str) -> int:
        return (
            self.latest("sample_features", shard)
            .asset_materialization.metadata["rows_passed"]
            .value
        )

    def settled(self) -> bool:
        """Whether no run is under way."""
        return not self.instance.get_runs(
            dg.RunsFilter(
                statuses=[
                    dg.DagsterRunStatus.QUEUED,
                    dg.DagsterRunStatus.NOT_STARTED,
                    dg.DagsterRunStatus.STARTING,
                    dg.DagsterRunStatus.STARTED,
                ]
            )
        )


@ON_BOTH_STORAGES
@pytest.mark.soak
def test_a_pipeline_that_runs_for_months(
    tmp_path: Path, model_directory: Path, instances: Instances
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with instances.open(home, overrides=INSTANCE) as instance:
        project = Soaked(tmp_path, model_directory, instance)
        project.write("validation.jsonl", project.rows(40, LIKELY, seed=0))
        project.write("train/one.jsonl", project.rows(20, LIKELY, seed=1))
        with dagster_dev(tmp_path, home, model_directory):
            # Valued from nothing.
            wait(lambda: project.shards_in_dataset() == {"one"}, "first shard", tmp_path)
            assert project.rows_passed("one") == 20

            # A shard is dropped into the folder.
            project.write("train/two.jsonl", project.rows(20, LIKELY, seed=2))
            wait(lambda: project.shards_in_dataset() == {"one", "two"}, "new shard", tmp_path)
            features_of_one = project.number("sample_features", "one")

            # It is edited: one row of it is new.
            before = project.number("filtered_dataset")
            rows = project.rows(20, LIKELY, seed=2)
            project.write("train/two.jsonl", [*rows[1:], *project.rows(1, LIKELY, seed=3)])
            wait(lambda: project.number("filtered_dataset") > before, "edited shard", tmp_path)
            assert project.rows_passed("two") == 1

            # It breaks: blocked, and the dataset stays as it was.
            before, scores = (
                project.number("filtered_dataset"),
                project.number("value_scores", "two"),
            )
            project.write("train/two.jsonl", project.rows(20, UNLIKELY, seed=4))
            wait(lambda: project.number("value_scores", "two") > scores, "broken shard", tmp_path)
            wait(project.settled, "checks of the broken shard", tmp_path)
            time.sleep(15)  # a few ticks, in which nothing must happen
            assert project.number("filtered_dataset") == before

            # It is mended: released.
            project.write("train/two.jsonl", project.rows(20, LIKELY, seed=5))
            wait(lambda: project.number("filtered_dataset") > before, "mended shard", tmp_path)
            assert project.shards_in_dataset() == {"one", "two"}

            # The validation set changes: scores of both, features of none.
            wait(project.settled, "the mended shard's runs", tmp_path)
            before = project.number("filtered_dataset")
            features = {shard: project.number("sample_features", shard) for shard in ("one", "two")}
            scores = {shard: project.number("value_scores", shard) for shard in ("one", "two")}
            project.write("validation.jsonl", project.rows(40, LIKELY, seed=6))
            wait(lambda: project.number("filtered_dataset") > before, "validation set", tmp_path)
            for shard in ("one", "two"):
                assert project.number("sample_features", shard) == features[shard]
                assert project.number("value_scores", shard) > scores[shard]
            assert project.number("sample_features", "one") == features_of_one

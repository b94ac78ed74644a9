"""Crashes, full disks, damaged and changing files, two at once: nothing lost, nothing doubled."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

import forvalue_dagster as fv
from forvalue_dagster.data.files import DataFileError
from tests.orchestration.conftest import LIKELY, ON_BOTH_STORAGES, Instances, Project
from tests.orchestration.daemon import Daemon

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parents[2]
# Runs a job of the project in a process of its own.
SCRIPT = """
import resource, sys
import dagster as dg
import forvalue_dagster as fv
folder, model, job, shards, window, limit = sys.argv[1:7]
if limit != "0":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
definitions = fv.valuation_definitions(
    training_rows=fv.RowSource(path=f"{folder}/train"),
    validation_rows=fv.RowSource(path=f"{folder}/validation.jsonl"),
    storage=fv.Storage(base_dir=f"{folder}/files"),
    valuation=fv.Valuation(
        name=model, local_files_only=True, window_rows=int(window),
        noise_recipes=["character_noise", "refusal"],
    ),
)
names = shards.split(",")
if len(names) > 1:
    chosen = {"partition_key": None, "tags": {
        "dagster/asset_partition_range_start": names[0],
        "dagster/asset_partition_range_end": names[-1],
    }}
else:
    chosen = {"partition_key": names[0] or None}
with dg.DagsterInstance.get() as instance:
    if job.startswith("asset:"):
        everything = definitions.resolve_implicit_global_asset_job_def()
        key = dg.AssetKey(job.removeprefix("asset:"))
        resolved = everything.get_subset(asset_selection={key})
    else:
        resolved = definitions.resolve_job_def(job)
    result = resolved.execute_in_process(
        instance=instance, raise_on_error=False, **chosen
    )
    for event in result.all_events:
        if event.is_step_failure:
            print(event.step_failure_data.error_display_string)
sys.exit(0 if result.success else 3)
"""


class Crashing(Project):
    """A project whose jobs run in processes that can be killed."""

    def start(
        self, job: str, *shards: str, window: int = 512, file_limit: int = 0
    ) -> subprocess.Popen[str]:
        arguments = [str(self.folder), str(self.model), job, ",".join(shards)]
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments, str(window), str(file_limit)],
            cwd=ROOT,
            env=os.environ | {"DAGSTER_HOME": str(self.folder), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def finish(self, job: str, *shards: str, **options: int) -> tuple[int, str]:
        process = self.start(job, *shards, **options)
        said, _ = process.communicate(timeout=300)
        return process.returncode, said

    def kill(self, process: subprocess.Popen[str], when: Callable[[], object]) -> None:
        """Kill -9 as soon as something is the case; it must not end by itself before."""
        while not when():
            assert process.poll() is None, "ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL

    def files(self, pattern: str) -> list[Path]:
        return list((self.folder / "files").glob(pattern))

    def bytes(self, pattern: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.files(pattern)}

    def whole(self) -> None:
        """Every visible table can be read to its end, and no shard has a row twice."""
        for path in self.files("*/*.parquet") + self.files("*.parquet"):
            if path.name.startswith("."):
                continue  # of a write that was killed; no reader looks at it
            places = pl.read_parquet(path)
            if "row" in places.columns:
                assert places.select("shard", "row").is_unique().all()


@pytest.fixture
def project(tmp_path: Path, model_directory: Path, instances: Instances) -> Iterator[Crashing]:
    with instances.open(tmp_path) as instance:
        made = Crashing(tmp_path, model_directory, instance)
        made.options = {"training_rows": fv.RowSource(path=str(tmp_path / "train"))}
        made.write("validation.jsonl", made.rows(40, LIKELY, seed=0))
        assert made.run("forvalue_profile").success
        yield made


def register(project: Crashing, **shards: int) -> None:
    for seed, (shard, rows) in enumerate(shards.items(), start=1):
        project.write(f"train/{shard}.jsonl", project.rows(rows, LIKELY, seed=seed))
    project.instance.add_dynamic_partitions("forvalue_shards", list(shards))


@ON_BOTH_STORAGES
def test_kill_9_in_the_middle_of_features(project: Crashing) -> None:
    register(project, s=120)
    process = project.start("forvalue_shard", "s", window=2)
    project.kill(process, lambda: len(project.files("sample_features/.s.parts/*/*.parquet")) > 3)
    assert not project.files("sample_features/s.parquet")
    project.whole()
    code, said = project.finish("forvalue_shard", "s", window=2)
    assert code == 0, said
    made = project.instance.get_latest_materialization_event(dg.AssetKey("sample_features"))
    assert made.asset_materialization.metadata["parts_reused"].value > 3
    resumed = project.bytes("sample_features/s.parquet")
    assert len(project.table("value_scores", "s")) == 120
    # An undisturbed run makes the same bytes.
    project.files("sample_features/s.parquet")[0].unlink()
    assert project.finish("forvalue_shard", "s", window=2)[0] == 0
    assert project.bytes("sample_features/s.parquet") == resumed


@ON_BOTH_STORAGES
def test_kill_9_in_the_middle_of_many_shards(project: Crashing) -> None:
    """While 24 shards are read, passed and scored in one run each; then all is done again."""
    shards = {f"s{number:02d}": 5 for number in range(24)}
    register(project, **shards)
    for asset in ("raw_finetuning_data", "sample_features", "value_scores"):
        pattern = f"{asset}/s*.parquet"
        process = project.start(f"asset:{asset}", *shards)
        project.kill(process, lambda pattern=pattern: len(project.files(pattern)) >= 3)
        project.whole()
        code, said = project.finish(f"asset:{asset}", *shards)
        assert code == 0, said
        assert len(project.files(pattern)) == 24
    scores = project.bytes("value_scores/*.parquet")
    assert project.finish("asset:value_scores", *shards)[0] == 0
    assert project.bytes("value_scores/*.parquet") == scores
    # Each verdict is of what is in force: the dataset holds every shard.
    assert project.run("forvalue_filter").success
    assert project.manifest()["rows"]["in"] == 24 * 5


@ON_BOTH_STORAGES
def test_kill_9_in_the_middle_of_filtering(project: Crashing) -> None:
    register(project, s=400)
    assert project.run("forvalue_shard", "s").success
    process = project.start("forvalue_filter", "")
    project.kill(process, lambda: project.files("filtered_dataset.jsonl"))
    project.whole()
    assert not project.instance.get_latest_materialization_event(dg.AssetKey("filtered_dataset"))
    assert project.finish("forvalue_filter", "")[0] == 0
    names = ("*.parquet", "*.jsonl", "*.manifest.json")
    first = {pattern: project.bytes(pattern) for pattern in names[:2]}
    rows = project.manifest()["rows"]
    assert rows["in"] == rows["kept"] + rows["dropped"] == 400
    assert project.finish("forvalue_filter", "")[0] == 0
    assert {pattern: project.bytes(pattern) for pattern in names[:2]} == first


def test_a_disk_that_is_full(project: Crashing) -> None:
    """No file may grow beyond a size that the feature table needs and its parts do not."""
    register(project, s=2500)
    code, said = project.finish("forvalue_shard", "s", window=200, file_limit=3_000_000)
    assert code == 3, said
    assert "File too large" in said
    project.whole()
    assert not project.files("sample_features/s.parquet")
    assert project.files("sample_features/.s.parts/*/*.parquet")
    code, said = project.finish("forvalue_shard", "s", window=200)
    assert code == 0, said
    assert len(project.table("value_scores", "s")) == 2500
    made = project.instance.get_latest_materialization_event(dg.AssetKey("sample_features"))
    assert made.asset_materialization.metadata["parts_reused"].value == 13


def damaged(kind: str, lines: str) -> tuple[str, bytes]:
    """Return a file name and its damaged content."""
    if kind == "truncated Parquet":
        buffer = io.BytesIO()
        pl.DataFrame([json.loads(line) for line in lines.splitlines()]).write_parquet(buffer)
        return "bad.parquet", buffer.getvalue()[:-100]
    if kind == "bad gzip":
        return "bad.jsonl.gz", gzip.compress(lines.encode())[:-40]
    first, _, rest = lines.encode().partition(b"\n")
    return "bad.jsonl", first + b"\n" + b'{"prompt": "\xff\xfe", "response": "x"}\n' + rest


@pytest.mark.parametrize("kind", ["truncated Parquet", "bad gzip", "invalid UTF-8"])
def test_a_damaged_shard(project: Crashing, kind: str) -> None:
    """It is named, it holds back nobody where that is asked for, and mended it comes in."""
    project.options["gate"] = fv.GatePolicy(on_blocked_shard="exclude")
    project.write("train/good.jsonl", project.rows(20, LIKELY, seed=1))
    good = "".join(json.dumps(row) + "\n" for row in project.rows(20, LIKELY, seed=2))
    name, content = damaged(kind, good)
    bad = project.folder / "train" / name
    bad.write_bytes(content)
    daemon = Daemon(project)
    ran = daemon.settle()
    assert ("filtered_dataset", None) in ran
    assert {shard for asset, shard in ran if asset == "value_scores"} == {"good"}
    failures = [
        event.step_failure_data.error_display_string
        for run in daemon.results
        for event in run.all_events
        if event.is_step_failure
    ]
    (failure,) = [text for text in failures if name in text]
    expected = "row 1 (line 2)" if kind == "invalid UTF-8" else "Write it again"
    assert expected.lower() in failure.lower()
    bad.unlink()
    (project.folder / "train" / "bad.jsonl").write_text(good)
    assert ("value_scores", "bad") in daemon.settle()
    assert set(project.table("filtered_dataset")["shard"]) == {"good", "bad"}


def test_a_file_that_changes_while_it_is_read(project: Crashing) -> None:
    """Rows of one state of the file, be it half written, or an error; never a mixture of two."""
    source = fv.RowSource(path=str(project.folder / "train"), on_bad_row="skip")
    states = [project.rows(3000, LIKELY, seed=seed) for seed in (1, 2)]
    texts = ["".join(json.dumps(row) + "\n" for row in rows) for rows in states]
    file = project.write("train/s.jsonl", states[0])
    stop = threading.Event()

    def rewrite() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            file.write_text(texts[turn % 2])  # in place, as an editor or a copy does
            time.sleep(0.02)

    writer = threading.Thread(target=rewrite)
    writer.start()
    prompts = [[row["prompt"] for row in state] for state in states]
    try:
        for _ in range(10):
            try:
                rows = source.read("s")
            except DataFileError as error:
                said = str(error)
            else:
                read = rows.filter(pl.col("problem").is_null())["messages"]
                here = [json.loads(text)[0]["content"] for text in read]
                assert any(here == state[: len(here)] for state in prompts)
                said = "changed 3 times while it was read"
            assert "changed 3 times while it was read" in said
    finally:
        stop.set()
        writer.join()
    assert source.read("s").height == 3000


@ON_BOTH_STORAGES
def test_two_runs_of_one_shard_at_once(project: Crashing) -> None:
    register(project, s=60)
    both = [project.start("forvalue_shard", "s", window=2) for _ in range(2)]
    for process in both:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    project.whole()
    assert not project.files("sample_features/.s.parts")
    assert project.run("forvalue_filter").success
    assert project.manifest()["rows"]["in"] == 60


def test_an_instance_database_that_is_locked(project: Crashing) -> None:
    """For a while: the run waits. Nothing is recorded twice."""
    register(project, s=10)
    process = project.start("forvalue_shard", "s")
    for _ in range(4):
        time.sleep(1.5)
        for file in project.folder.glob("history/**/*.db"):
            with closing(sqlite3.connect(file, timeout=20)) as database:
                database.execute("BEGIN EXCLUSIVE")
                time.sleep(0.4)
                database.rollback()
    said, _ = process.communicate(timeout=300)
    if process.returncode:  # it was too long for this run: the next one heals
        assert "locked" in said
        assert project.finish("forvalue_shard", "s")[0] == 0
    records = project.instance.fetch_materializations(dg.AssetKey("value_scores"), limit=10).records
    assert len({record.run_id for record in records}) == len(records)
    assert project.run("forvalue_filter").success
    assert project.manifest()["rows"]["in"] == 10

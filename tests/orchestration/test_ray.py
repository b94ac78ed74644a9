"""The feature step's worker as a Ray job: two shards at once, one killed; a cancelled run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster_pipes import decode_param

import forvalue_dagster as fv
from tests.orchestration.conftest import LIKELY, Project

pytest.importorskip("ray")
pytest.importorskip("dagster_ray")

from ray.job_submission import JobSubmissionClient

from tests.ray_cluster import ray_cluster

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
DEFINITIONS = """
    import os
    import sys

    import dagster as dg

    import forvalue_dagster as fv
    from forvalue_dagster.ray_worker import RayWorker

    folder = os.environ["TEST_FOLDER"]
    defs = fv.valuation_definitions(
        training_rows=fv.RowSource(path=f"{folder}/train"),
        validation_rows=fv.RowSource(path=f"{folder}/validation.jsonl"),
        storage=fv.Storage(base_dir=f"{folder}/files"),
        valuation=fv.Valuation(
            name=os.environ["TEST_MODEL"],
            local_files_only=True,
            noise_recipes=["character_noise", "refusal"],
            window_rows=1,
        ),
        compute=fv.Compute(
            worker=RayWorker(
                command=[sys.executable, "-m", "forvalue_dagster.worker"],
                address=os.environ["TEST_RAY"],
                environment={"PYTHONPATH": os.environ["PYTHONPATH"], "OMP_NUM_THREADS": "1"},
                poll_interval=0.25,
            ),
            retry_policy=dg.RetryPolicy(max_retries=1),
        ),
    )
"""


@dataclass
class OnRay(Project):
    """A project whose features are made on Ray.

    Its runs have a process each: two in threads of one process lock each other out.
    """

    address: str = ""

    @contextmanager
    def run_features(self, shard: str, executor: str) -> Iterator[subprocess.Popen[bytes]]:
        (self.folder / "definitions.py").write_text(textwrap.dedent(DEFINITIONS))
        config = {"execution": {"config": {executor: {}}}}
        command = ["-m", "dagster", "asset", "materialize", "-f", "definitions.py"]
        chosen = ["--select", "sample_features", "--partition", shard]
        environment = {
            "DAGSTER_HOME": str(self.folder),
            "TEST_FOLDER": str(self.folder),
            "TEST_MODEL": str(self.model),
            "TEST_RAY": self.address,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        with self.log(shard).open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *command, *chosen, "--config-json", json.dumps(config)],
                cwd=self.folder,
                env=os.environ | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def run_here(self, asset: str, shard: str) -> None:
        """Materialise one asset in this process, without a worker and without its checks."""
        everything = self.definitions.resolve_implicit_global_asset_job_def()
        job = everything.get_subset(
            asset_selection={dg.AssetKey(asset)}, asset_check_selection=frozenset()
        )
        assert job.execute_in_process(instance=self.instance, partition_key=shard).success

    def made(self, shard: str) -> list[dg.AssetMaterialization]:
        """Return what was recorded of a shard's features, newest first."""
        wanted = dg.AssetRecordsFilter(dg.AssetKey("sample_features"), asset_partitions=[shard])
        records = self.instance.fetch_materializations(wanted, limit=9).records
        return [record.asset_materialization for record in records]

    def jobs(self, shard: str) -> list[str]:
        """Return how the shard's Ray jobs stand, oldest first."""
        runs = {run.run_id for run in self.instance.get_runs()}
        found = [
            job
            for job in JobSubmissionClient(self.address).list_jobs()
            if job.metadata["dagster/run-id"] in runs and job.metadata["dagster/partition"] == shard
        ]
        return [str(job.status) for job in sorted(found, key=lambda job: job.start_time)]

    def features(self, shard: str) -> Path:
        return self.folder / "files" / "sample_features" / f"{shard}.parquet"

    def parts(self, shard: str) -> int:
        return len(list(self.features(shard).parent.glob(f".{shard}.parts/*/*.parquet")))

    def log(self, shard: str) -> Path:
        return self.folder / f"{shard}.log"

    def worker(self, shard: str) -> tuple[int, str]:
        """Return the process that passes a shard, and the GPUs that it is shown."""
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if b"\0-m\0forvalue_dagster.worker" not in (folder / "cmdline").read_bytes():
                    continue
                lines = (folder / "environ").read_text().split("\0")
                variables = dict(line.split("=", 1) for line in lines if "=" in line)
                told = decode_param(variables["DAGSTER_PIPES_CONTEXT"])["data"]
                if told["extras"]["features"] == str(self.features(shard)):
                    return int(folder.name), variables["CUDA_VISIBLE_DEVICES"]
        raise AssertionError(f"No worker passes {shard}.")

    def wait_for(self, what: Callable[[], Any], seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while not what():
            if time.monotonic() > end:
                logs = [path.read_text()[-4000:] for path in self.folder.glob("*.log")]
                raise AssertionError("Waited in vain.\n" + "\n".join(logs))
            time.sleep(0.01)

    def ends(self, shard: str, process: subprocess.Popen[bytes]) -> int:
        self.wait_for(lambda: process.poll() is not None)
        print(self.log(shard).read_text()[-4000:])  # shown if the test fails
        return process.returncode


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ray_cluster() as made:
        yield made


@pytest.fixture
def project(tmp_path: Path, model_directory: Path, address: str) -> Iterator[OnRay]:
    (tmp_path / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        made = OnRay(tmp_path, model_directory, instance, address=address)
        made.options = {
            "training_rows": fv.RowSource(path=str(tmp_path / "train")),
            "valuation": made.valuation(window_rows=1),
        }
        yield made


def register(project: OnRay, **shards: int) -> None:
    project.instance.add_dynamic_partitions("forvalue_shards", list(shards))
    for seed, (shard, rows) in enumerate(shards.items(), start=1):
        project.write(f"train/{shard}.jsonl", project.rows(rows, LIKELY, seed=seed))
        project.run_here("raw_finetuning_data", shard)


def test_two_shards_at_once_and_one_worker_is_killed(project: OnRay) -> None:
    """Complete and equal: what an undisturbed step without a worker makes."""
    shards = {"a": 200, "b": 240}
    register(project, **shards)
    with project.run_features("a", "in_process") as a, project.run_features("b", "in_process") as b:
        # Each is held in the middle of its parts until the other is there too.
        held: dict[str, tuple[int, str]] = {}

        def hold() -> bool:
            for shard in shards.keys() - held.keys():
                if project.parts(shard) >= 3:
                    held[shard] = project.worker(shard)
                    os.kill(held[shard][0], signal.SIGSTOP)
            return len(held) == 2

        project.wait_for(hold)
        assert not any(project.features(shard).exists() for shard in shards)
        assert {gpu for _, gpu in held.values()} == {"0", "1"}
        os.kill(held["a"][0], signal.SIGKILL)
        os.kill(held["b"][0], signal.SIGCONT)
        assert (project.ends("a", a), project.ends("b", b)) == (0, 0)

    assert project.jobs("a") == ["FAILED", "SUCCEEDED"]
    assert project.jobs("b") == ["SUCCEEDED"]
    for shard, rows in shards.items():
        (made,) = project.made(shard)
        reused = made.metadata["parts_reused"].value
        assert (3 <= reused < rows) if shard == "a" else reused == 0
        there = project.table("sample_features", shard)
        assert there["row"].to_list() == list(range(rows))
        assert not list(project.features(shard).parent.glob(f".{shard}.parts"))
        project.features(shard).unlink()
        project.run_here("sample_features", shard)
        assert project.table("sample_features", shard).equals(there)
        here, _ = project.made(shard)
        assert here.tags["dagster/data_version"] == made.tags["dagster/data_version"]
    # What the workers said, and why the one ended, is in the log of the runs.
    runs = project.instance.get_runs()
    said = [event.to_json() for run in runs for event in project.instance.all_logs(run.run_id)]
    assert any("240 went through the model" in line for line in said)
    (retried,) = [line for line in said if '"STEP_UP_FOR_RETRY"' in line]
    assert "exit code -9" in retried


def test_a_cancelled_run_stops_its_job(project: OnRay) -> None:
    register(project, a=5000)
    with project.run_features("a", "multiprocess") as process:
        project.wait_for(lambda: project.parts("a") >= 3)
        worker, _ = project.worker("a")
        (run,) = project.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        project.instance.report_run_canceling(run)  # as a launcher does, before its signal
        process.send_signal(signal.SIGTERM)
        assert project.ends("a", process) != 0
        project.wait_for(lambda: not Path(f"/proc/{worker}").exists(), 5)
        assert project.jobs("a") == ["STOPPED"]
    ended = project.instance.get_run_by_id(run.run_id)
    assert ended is not None
    assert ended.status == dg.DagsterRunStatus.CANCELED
    assert not project.features("a").exists()
    assert not project.made("a")

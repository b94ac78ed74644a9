"""A run that is cancelled through the API of the user interface (GraphQL of the web server)."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.orchestration.conftest import Project
from tests.serving import serving

pytestmark = pytest.mark.faults
ROWS = 3000
DEFINITIONS = """
import forvalue_dagster as fv

defs = fv.valuation_definitions(
    training_rows=fv.RowSource(path={folder!r} + "/train"),
    validation_rows=fv.RowSource(path={folder!r} + "/validation.jsonl"),
    storage=fv.Storage(base_dir={folder!r} + "/files"),
    valuation=fv.Valuation(
        name={model!r}, local_files_only=True, batch_tokens=1, window_rows=50
    ),
    automation=fv.Automation(running=False),
)
"""
LAUNCH = """mutation($file: String!) { launchRun(executionParams: {
  selector: {repositoryLocationName: $file, repositoryName: "__repository__",
             jobName: "__ASSET_JOB", assetSelection: [{path: ["sample_features"]}]},
  mode: "default",
  executionMetadata: {tags: [{key: "dagster/partition", value: "slow"}]}
}) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
CANCEL = """mutation($run: String!) { terminateRun(runId: $run) {
  __typename ... on TerminateRunFailure { message } } }"""


def ask(address: str, query: str, **variables: str) -> dict[str, Any]:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(
        f"{address}/graphql", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["data"]


def until(done: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.fixture
def home(tmp_path: Path, model_directory: Path) -> Iterator[Path]:
    folder = tmp_path / "home"
    folder.mkdir()
    # Runs start at once: there is no daemon here to take them from a queue.
    (folder / "dagster.yaml").write_text(
        "telemetry:\n  enabled: false\n"
        "run_coordinator:\n  module: dagster.core.run_coordinator\n"
        "  class: DefaultRunCoordinator\n"
    )
    return folder


def test_cancelled_from_the_interface(home: Path, tmp_path: Path, model_directory: Path) -> None:
    file = tmp_path / "site_defs.py"
    file.write_text(DEFINITIONS.format(folder=str(tmp_path), model=str(model_directory)))
    namespace: dict[str, Any] = {}
    exec(file.read_text(), namespace)
    definitions: dg.Definitions = namespace["defs"]
    with dg.DagsterInstance.from_config(str(home)) as instance:
        project = Project(tmp_path, model_directory, instance)
        project.write("train/slow.jsonl", project.rows(ROWS, project.likely, 1))
        project.write("validation.jsonl", project.rows(40, project.likely, 2))
        instance.add_dynamic_partitions("forvalue_shards", ["slow"])
        job = definitions.resolve_implicit_global_asset_job_def()

        def run(asset: str) -> dg.ExecuteInProcessResult:
            chosen = job.get_subset(asset_selection={dg.AssetKey(asset)})
            return chosen.execute_in_process(instance=instance, partition_key="slow")

        assert run("raw_finetuning_data").success
        features = tmp_path / "files" / "sample_features"
        with serving(["dagster-webserver", "-f", str(file)], home) as address:
            launched = ask(address, LAUNCH, file=file.name)["launchRun"]
            assert launched["__typename"] == "LaunchRunSuccess", launched
            run_id = launched["run"]["runId"]
            until(lambda: len(list(features.rglob("*.parquet"))) >= 3)
            cancelled = ask(address, CANCEL, run=run_id)["terminateRun"]
            assert cancelled["__typename"] == "TerminateRunSuccess", cancelled

            def over() -> bool:
                found = instance.get_run_by_id(run_id)
                return found is not None and found.is_finished

            until(over)
        stopped = instance.get_run_by_id(run_id)
        assert stopped is not None
        assert stopped.status == dg.DagsterRunStatus.CANCELED
        # Nothing half made is to be seen, and the next run goes on where this one was.
        assert not (features / "slow.parquet").exists()
        key = dg.AssetKey("sample_features")
        assert instance.get_latest_materialization_event(key) is None
        (made,) = run("sample_features").asset_materializations_for_node("sample_features")
        assert made.metadata["parts_reused"].value >= 2
        assert project.table("sample_features", "slow")["row"].to_list() == list(range(ROWS))

"""What it costs to adopt the plugin: seconds at start, megabytes on disk.

    python -m benchmarks.adoption

"definitions" is the import of this project's definitions in a new process, beside that of Dagster
alone, and of Dagster with its two integrations; medians. "UI" is `dagster dev`
from its start until it lists the project's assets, beside a project with one asset of a line.
"installed" sums the files of the plugin's required distributions, without extras, and what of it is
torch, Dagster, transformers and polars, which a project for finetuning has anyway. "stored" is what
the graph writes for GSM8K's training rows; token features are measured in `benchmarks.revaluation`.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import dagster as dg
from packaging.requirements import Requirement

import forvalue_dagster as fv
from benchmarks.harness import argument_parser, need, save
from tests.orchestration.conftest import save_trained_model
from tests.serving import ROOT, serving

START = {
    "import dagster": "import dagster",
    "import dagster and its integrations": "import dagster, dagster_aws, dagster_polars",
    "definitions": "import definitions; definitions.defs",
}
LIKELY_THERE = ("torch", "dagster", "transformers", "polars")


def seconds(code: str, repeats: int) -> float:
    """Time code inside a new process: without the start and the end of the interpreter."""
    timed = f"import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)"
    spent = []
    for _ in range(repeats):
        done = subprocess.run(
            [sys.executable, "-c", timed], check=True, capture_output=True, text=True
        )
        spent.append(float(done.stdout))
    return round(statistics.median(spent), 2)


def seconds_of_ui(folder: Path, command: list[str], repeats: int) -> float:
    query = json.dumps({"query": "{assetNodes {id}}"}).encode()
    spent = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as home:
            start = time.perf_counter()
            with serving(["dagster", "dev", *command], Path(home), folder) as address:
                request = urllib.request.Request(
                    f"{address}/graphql", query, {"Content-Type": "application/json"}
                )
                while not json.load(urllib.request.urlopen(request))["data"]["assetNodes"]:
                    time.sleep(0.1)
                spent.append(time.perf_counter() - start)
    return round(statistics.median(spent), 1)


def one_asset(folder: Path) -> list[str]:
    code = "import dagster as dg\n\n@dg.asset\ndef one(): ...\n"
    (folder / "one.py").write_text(code)
    return ["-f", "one.py"]


def stored_bytes_a_row(training: Path, validation: Path) -> dict[str, float]:
    """Bytes that each asset writes for a row; the model is tiny, so its features are left out."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "train").mkdir()
        lines = training.read_text("utf-8").splitlines(keepends=True)
        (folder / "train" / "rows.jsonl").write_text("".join(lines), "utf-8")
        definitions = fv.valuation_definitions(
            training_rows=fv.RowSource(path=str(folder / "train")),
            validation_rows=fv.RowSource(path=str(validation)),
            storage=fv.Storage(base_dir=str(folder / "store")),
            valuation=fv.Valuation(
                name=str(save_trained_model(folder / "model")), noise_rows=40, fidelity_rows=2
            ),
            gate=fv.GatePolicy(uncertified="warn", domain_shift="warn", max_noise_fraction=1.0),
        )
        with dg.DagsterInstance.ephemeral() as instance:
            instance.add_dynamic_partitions("forvalue_shards", ["rows"])
            for job, shard in (("profile", None), ("shard", "rows"), ("filter", None)):
                run = definitions.resolve_job_def(f"forvalue_{job}")
                run.execute_in_process(instance=instance, partition_key=shard)
        sizes: dict[str, float] = {"the rows as they came": sum(map(len, lines)) / len(lines)}
        for asset in ("raw_finetuning_data", "value_scores", "filtered_dataset", "dropped_rows"):
            found = [path for path in (folder / "store").rglob("*") if asset in str(path)]
            written = sum(path.stat().st_size for path in found if path.is_file())
            sizes[asset] = round(written / len(lines), 1)
    return sizes


def required(name: str, found: set[str]) -> set[str]:
    """The distributions that a distribution needs here, without extras."""
    plain = re.sub(r"[-_.]+", "-", name).lower()
    if plain in found:
        return found
    try:
        needs = distribution(name).requires or []
    except PackageNotFoundError:
        return found
    found.add(plain)
    for text in needs:
        need = Requirement(text)
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            required(need.name, found)
    return found


def megabytes(names: set[str]) -> float:
    files = [file for name in names for file in distribution(name).files or []]
    paths = [file.locate() for file in files]
    return round(sum(path.stat().st_size for path in paths if path.is_file()) / 1e6)  # type: ignore[union-attr]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    gsm8k = need(arguments.data / "gsm8k")
    start = {name: seconds(code, arguments.repeats) for name, code in START.items()}
    everything = required("forvalue-dagster", set())
    there: set[str] = set()
    for name in LIKELY_THERE:
        required(name, there)
    with tempfile.TemporaryDirectory() as name:
        ui: dict[str, Any] = {
            "this project": seconds_of_ui(ROOT, ["-w", "workspace.yaml"], 3),
            "one asset": seconds_of_ui(Path(name), one_asset(Path(name)), 3),
        }
    save(
        "adoption",
        {
            "seconds": start,
            "seconds beyond dagster": round(start["definitions"] - start["import dagster"], 2),
            "seconds of the UI": ui,
            "stored bytes a row": stored_bytes_a_row(gsm8k / "train.jsonl", gsm8k / "test.jsonl"),
            "installed_megabytes": megabytes(everything),
            "of that not already there": megabytes(everything - there),
        },
    )


if __name__ == "__main__":
    main()

"""The main job on demo data: `python -m assets.demo` (what `make demo` runs).

Writes the data, materialises the whole graph in a local DAGSTER_HOME, prints a report, and exits
with 0 if the clean shards passed, the noisy one was blocked and no row was lost. With `--images`
the rows are about handwritten digits (`make demo-vlm`).
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import polars as pl

import forvalue_dagster as fv
from assets.demo_data import write_demo_data
from assets.valuation import DEMO_ROOT, demo_definitions
from assets.vision_demo_data import write_vision_demo_data

_FIGURES = ("noise_fraction", "interval_lower", "interval_upper")
EXPECTED_TO_PASS = {"clean": True, "mixed": True, "noisy": False}


def _digit_reader() -> fv.Valuation:
    from assets.digit_reader.model import digit_reader_directory

    return fv.Valuation(name=str(digit_reader_directory()), local_files_only=True, thumbnails=3)


@dataclass(frozen=True)
class Demo:
    """A demo: its data, its model, and which of its shards should pass the gate."""

    title: str
    write: Callable[..., None]
    valuation: Callable[[], fv.Valuation | None]
    expected: Mapping[str, bool]
    root: Path


TEXT = Demo(
    "Valuing 300 rows with SmolLM2-135M-Instruct (embedded); this takes a few minutes.",
    write_demo_data,
    lambda: None,
    EXPECTED_TO_PASS,
    DEMO_ROOT,
)
IMAGES = Demo(
    "Valuing 300 rows about images with the digit reader; this takes a few minutes.",
    write_vision_demo_data,
    _digit_reader,
    {"clean": True, "noisy": False},
    DEMO_ROOT.with_name(".demo_vlm"),
)


@dataclass
class DemoRun:
    """What came of the runs: checks by asset and shard, and where the files are."""

    root: Path
    expected: Mapping[str, bool]
    checks: list[dg.AssetCheckEvaluation] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)

    def table(self, *parts: str) -> pl.DataFrame:
        return pl.read_parquet(self.root.joinpath("storage", *parts).with_suffix(".parquet"))

    def passed(self, shard: str) -> bool:
        """Whether the noise gate let a shard through."""
        (gate,) = (
            c for c in self.checks if c.check_name == "noise_fraction" and c.partition == shard
        )
        return gate.passed

    def manifest(self) -> dict[str, dict[str, int]]:
        text = (self.root / "storage" / "filtered_dataset.manifest.json").read_text("utf-8")
        manifest: dict[str, dict[str, int]] = json.loads(text)
        return manifest


def run_demo(kind: Demo, root: Path, seed: int) -> DemoRun:
    """Write the data and materialise the graph, shard by shard."""
    kind.write(root / "data", seed=seed)
    home = root / "dagster_home"
    home.mkdir(parents=True, exist_ok=True)
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\nnux:\n  enabled: false\n")
    os.environ["DAGSTER_HOME"] = str(home)
    definitions = demo_definitions(root, kind.valuation())
    demo = DemoRun(root, kind.expected, shards=sorted(kind.expected))
    with dg.DagsterInstance.get() as instance:

        def run(job: str, shard: str | None = None) -> None:
            started = time.monotonic()
            result = definitions.resolve_job_def(job).execute_in_process(
                instance=instance,
                partition_key=shard,
                raise_on_error=False,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
            demo.checks += result.get_asset_check_evaluations()
            outcome = "succeeded" if result.success else "failed"
            seconds = time.monotonic() - started
            print(f"  {job:18} {shard or '':8} {outcome} in {seconds:.0f} s", flush=True)

        run("forvalue_profile")
        instance.add_dynamic_partitions("forvalue_shards", demo.shards)
        for shard in demo.shards:
            run("forvalue_shard", shard)
        run("forvalue_filter")
    return demo


def problems(demo: DemoRun) -> list[str]:
    """What did not happen as it should; nothing, in a good run."""
    found = [
        f"shard {shard!r} {'passed' if demo.passed(shard) else 'was blocked'}"
        for shard, expected in demo.expected.items()
        if demo.passed(shard) != expected
    ]
    rows_in = sum(demo.table("raw_finetuning_data", shard).height for shard in demo.shards)
    kept, dropped = demo.table("filtered_dataset"), demo.table("dropped_rows")
    if kept.height + dropped.height != rows_in:
        found.append(f"{rows_in} rows in, {kept.height} kept and {dropped.height} dropped")
    if blocked := kept.filter(pl.col("shard") == "noisy").height:
        found.append(f"{blocked} rows of the noisy shard are in the filtered dataset")
    found += [
        f"check {check.check_name} of {check.asset_key.to_user_string()} failed"
        for check in demo.checks
        if not check.passed
        and check.severity == dg.AssetCheckSeverity.ERROR
        and (check.check_name, check.partition) != ("noise_fraction", "noisy")
    ]
    return found


def report(demo: DemoRun) -> None:
    """Print what a person wants to know first."""
    scores = pl.concat(demo.table("value_scores", shard) for shard in demo.shards)
    scored = scores.filter(pl.col("status") == "scored")
    rows = demo.manifest()["rows"]
    print(
        f"\nRows: {scores.height} in, {scored.height} scored, {scores.height - scored.height} "
        f"skipped, {rows['kept']} kept, {rows['dropped']} dropped"
    )
    noise = json.loads((demo.root / "data" / "truth.json").read_text("utf-8"))["noise"]
    print("\nShards")
    for shard in demo.shards:
        (gate,) = (
            c for c in demo.checks if (c.check_name, c.partition) == ("noise_fraction", shard)
        )
        figures = {name: gate.metadata.get(name) for name in _FIGURES}
        estimate, lower, upper = (
            float(figure.value) if figure is not None else float("nan")  # type: ignore[arg-type]
            for figure in figures.values()
        )
        truth = len(noise[shard]) / scores.filter(pl.col("shard") == shard).height
        verdict = "passed " if gate.passed else "BLOCKED"
        print(
            f"  {shard:8} {verdict} estimated noise {estimate:5.1%} "
            f"({lower:.1%} to {upper:.1%})   truth {truth:5.1%}"
        )
    print("\nMost and least valuable rows of the shards that passed")
    ranked = scored.filter(pl.col("shard") != "noisy").sort("value", descending=True)
    for row in [*ranked.head(3).iter_rows(named=True), *ranked.tail(3).iter_rows(named=True)]:
        raw = demo.table("raw_finetuning_data", row["shard"]).row(row["row"], named=True)
        answer = json.loads(raw["messages"])[-1]["content"].replace("\n", " ")
        place = f"{row['shard']}:{row['row']}"
        print(f"  {row['value']:9.1f}  {place:10} {answer[:70]}")
    print("\nChecks")
    for check in demo.checks:
        mark = "pass" if check.passed else "FAIL"
        if not check.passed and check.severity == dg.AssetCheckSeverity.WARN:
            mark = "warn"
        name = f"{check.asset_key.to_user_string()}.{check.check_name}"
        print(f"  {mark} {name:42} {check.partition or '':8} {check.description}")
    print(
        f"\nOutputs: {demo.root / 'storage'}\n"
        "  filtered_dataset.parquet, .jsonl and .manifest.json; dropped_rows.parquet and .jsonl\n"
        "See lineage, plots and checks in the browser: make ui"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", action="store_true", help="rows with images")
    parser.add_argument("--root", type=Path, help="where everything is written")
    parser.add_argument("--seed", type=int, default=0, help="of the generated data")
    arguments = parser.parse_args()
    started = time.monotonic()
    kind = IMAGES if arguments.images else TEXT
    print(kind.title, flush=True)
    demo = run_demo(kind, arguments.root or kind.root, arguments.seed)
    report(demo)
    print(f"Finished in {time.monotonic() - started:.0f} s")
    found = problems(demo)
    print("\nThe noisy shard was blocked, as it should be." if not found else "\nNot as expected:")
    for problem in found:
        print(f"  {problem}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

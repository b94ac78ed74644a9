"""What Dagster and the storage add to the feature step of one shard of 500 rows.

    python -m benchmarks.step_overhead

The step of the graph (rows loaded, features computed, stored part by part and as a table, events
recorded) against the plain function on the same rows with the same model loaded, taking turns;
medians. The rows are the first of the DataInf task: short, which is hardest on the ratio.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import dagster as dg
import polars as pl

import forvalue_dagster as fv
from benchmarks.harness import argument_parser, need, save
from forvalue_dagster.models.loading import load_model


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    file = need(arguments.data / "datainf") / "math_with_reason_train.jsonl"
    # Rows that repeat go through the model once in the graph, but not in the function.
    lines = list(dict.fromkeys(file.read_text("utf-8").splitlines()))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "train").mkdir()
        shard = folder / "train" / "shard.jsonl"
        shard.write_text("\n".join(lines[: arguments.rows]) + "\n")
        valuation = fv.Valuation()
        definitions = fv.valuation_definitions(
            training_rows=fv.RowSource(path=str(folder / "train")),
            validation_rows=fv.RowSource(path=str(shard)),
            storage=fv.Storage(base_dir=str(folder / "storage")),
            valuation=valuation,
        )
        loaded = load_model(valuation.config())
        rows = fv.read_rows(shard)
        seconds: dict[str, list[float]] = {"function": [], "step": []}
        with dg.DagsterInstance.local_temp() as instance:
            instance.add_dynamic_partitions("forvalue_shards", ["shard"])
            everything = definitions.resolve_implicit_global_asset_job_def()

            def run(asset: str) -> dg.ExecuteInProcessResult:
                job = everything.get_subset(asset_selection={dg.AssetKey(asset)})
                return job.execute_in_process(instance=instance, partition_key="shard")

            assert run("raw_finetuning_data").success
            for _ in range(arguments.repeats):
                start = time.perf_counter()
                fv.sample_features(rows, model=loaded)
                seconds["function"].append(time.perf_counter() - start)
                # Without the table of the turn before, or every row would be found there.
                (folder / "storage" / "sample_features" / "shard.parquet").unlink(missing_ok=True)
                result = run("sample_features")
                (made,) = result.asset_materializations_for_node("sample_features")
                assert made.metadata["rows_passed"].value == len(rows)
                (event,) = [event for event in result.all_events if event.is_step_success]
                seconds["step"].append(event.step_success_data.duration_ms / 1000)
                print({name: round(times[-1], 1) for name, times in seconds.items()}, flush=True)
            appended = lines[: arguments.rows + arguments.rows // 100]
            shard.write_text("\n".join(appended) + "\n")
            assert run("raw_finetuning_data").success
            result = run("sample_features")
            (made,) = result.asset_materializations_for_node("sample_features")
            passed = made.metadata["rows_passed"].value
        size = pl.scan_parquet(folder / "storage" / "sample_features" / "shard.parquet")
        ratios = [b / a for a, b in zip(seconds["function"], seconds["step"], strict=True)]
        save(
            "step_overhead",
            {
                "rows": arguments.rows,
                "response_tokens": size.select(pl.col("response_tokens").sum()).collect().item(),
                "seconds": {name: [round(t, 1) for t in times] for name, times in seconds.items()},
                "step / function": round(statistics.median(ratios), 3),
                "rows appended": len(appended) - arguments.rows,
                "rows passed of those": passed,
            },
        )


if __name__ == "__main__":
    main()

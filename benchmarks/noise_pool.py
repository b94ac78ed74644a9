"""The pool that the noise gate is calibrated on: feature tables of clean and damaged rows.

    python -m benchmarks.noise_pool

One pass over every row; `benchmarks.noise_gate` then resamples. A finished table in the folder
of the pool is kept, so that a stopped run goes on.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.harness import argument_parser, need
from forvalue_dagster import ModelConfig, read_rows
from forvalue_dagster.data.corruption import corrupted_copies
from forvalue_dagster.engine.features import feature_parts
from forvalue_dagster.models.loading import LoadedModel, load_model
from forvalue_dagster.options.valuation import ValuationOptions

TESTED = ("answer_swap", "span_deletion", "span_insertion", "word_shuffle")
POOL = Path(__file__).parent / "pool"


def drawn(path: Path, rows: int, seed: int) -> pl.DataFrame:
    frame = read_rows(need(path))
    return frame[np.random.default_rng(seed).permutation(len(frame))[:rows].tolist()]


def clean(frame: pl.DataFrame) -> pl.DataFrame:
    index = pl.int_range(len(frame), dtype=pl.Int64)
    return frame.with_columns(copy_of=index, recipe=pl.lit("clean"))


def without_prompt(frame: pl.DataFrame) -> pl.DataFrame:
    """Keep the responses alone."""
    kept = [
        json.dumps([turn for turn in json.loads(text) if turn["role"] == "assistant"])
        for text in frame["messages"]
    ]
    return frame.with_columns(messages=pl.Series(kept))


def tables(data: Path) -> dict[str, pl.DataFrame]:
    validation = drawn(data / "gsm8k" / "test.jsonl", 250, seed=1)
    training = drawn(data / "gsm8k" / "train.jsonl", 500, seed=2)
    kinds = data / "datainf"
    other_validation = drawn(kinds / "math_with_reason_validation.jsonl", 100, seed=3)
    other_training = drawn(kinds / "math_with_reason_train.jsonl", 240, seed=4)
    gsm8k = {
        "validation": clean(validation),
        "training": clean(training),
        "training_noise": corrupted_copies(training.head(250), TESTED, seed=100),
        "validation_copies": corrupted_copies(validation, seed=0),
    }
    responses = {
        f"{name}_without_prompt": without_prompt(table)
        for name, table in {
            "validation": clean(validation.head(150)),
            "training": clean(training.head(240)),
            "validation_copies": corrupted_copies(validation.head(150), TESTED, seed=0),
            "training_noise": corrupted_copies(training.head(80), TESTED, seed=100),
        }.items()
    }
    return (
        gsm8k
        | {
            "other_validation": clean(other_validation),
            "other_training": clean(other_training),
            "other_validation_copies": corrupted_copies(other_validation, seed=0),
            "other_training_noise": corrupted_copies(other_training.head(100), TESTED, seed=100),
        }
        | responses
    )


def passed(loaded: LoadedModel, frame: pl.DataFrame) -> pl.DataFrame:
    """Return the feature table, with what each row is a copy of."""
    features = pl.concat(feature_parts(loaded, frame, ValuationOptions(window_rows=4096)))
    return features.hstack(frame.select("copy_of", "recipe"))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--pool", type=Path, default=POOL)
    arguments = parser.parse_args()
    arguments.pool.mkdir(parents=True, exist_ok=True)
    loaded = load_model(ModelConfig())
    for name, frame in tables(arguments.data).items():
        target = arguments.pool / f"{name}.parquet"
        if target.exists():
            continue
        start = time.perf_counter()
        table = passed(loaded, frame)
        table.write_parquet(target.with_suffix(".tmp"))
        target.with_suffix(".tmp").rename(target)
        print(name, len(table), f"rows in {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()

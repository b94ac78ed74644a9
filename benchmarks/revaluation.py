"""Valuing stored rows against a new validation profile: seconds, resident memory, and scaling.

    python -m benchmarks.revaluation

100,000 rows of 50 response tokens, written as a feature table and valued with one and with eight
groups, each in a process of its own. The rows are copies of real features of GSM8K answers in
random order, so that tokens occur as often as they do, with jittered hidden states, so that the
copies do not compress; the feature pass that they stand for is timed on the same answers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import torch
from upath import UPath

from benchmarks.harness import argument_parser, need, peak_megabytes, save
from forvalue_dagster import ModelConfig, read_rows
from forvalue_dagster.engine.feature_scoring import FeatureScoring
from forvalue_dagster.engine.features import feature_parts
from forvalue_dagster.engine.scoring import build_profile
from forvalue_dagster.models.loading import load_model
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.storage.parquet import write_parts
from forvalue_dagster.storage.tensors import load_tensors
from forvalue_dagster.valuation.profile import ValidationProfile

TOKENS = 50
WINDOW = 512
BYTES_OF = {
    "last_hidden": 576,
    "hidden_scale": 4,
    "outlier_dims": 8,
    "outlier_values": 16,
    "error_tokens": 64,
    "error_values": 32,
}


def value_once(table: Path, profile_file: Path) -> None:
    stored = load_tensors(UPath(profile_file))
    profile = ValidationProfile.from_tensors(stored.tensors, stored.metadata)
    start = time.perf_counter()
    options = ValuationOptions(window_rows=WINDOW)
    scoring = FeatureScoring.of(profile, options, overwrite=True)
    scores = scoring.score(pl.scan_parquet(table))
    seconds = time.perf_counter() - start
    assert (scores["status"] == "scored").all()
    print(json.dumps({"seconds": round(seconds, 1), "peak_megabytes": round(peak_megabytes())}))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--value", type=Path, nargs=2, help="table and profile, in this process")
    arguments = parser.parse_args()
    if arguments.value:
        value_once(*arguments.value)
        return
    gsm = need(arguments.data / "gsm8k")
    loaded, options = load_model(ModelConfig()), ValuationOptions()
    source = read_rows(gsm / "train.jsonl").head(200)
    start = time.perf_counter()
    real = pl.concat(feature_parts(loaded, source, options))
    forward = time.perf_counter() - start
    tokens = int(real["response_tokens"].sum())
    real = real.filter(pl.col("response_tokens") >= TOKENS).with_columns(
        pl.col(name).bin.slice(0, size * TOKENS) for name, size in BYTES_OF.items()
    )
    real = real.with_columns(response_tokens=pl.lit(TOKENS, pl.Int64))
    validation = read_rows(gsm / "test.jsonl").head(32)
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for count in arguments.rows:
            write_copies(real, count, folder / f"{count}.parquet")
        for groups in (1, 8):
            names = pl.Series([f"g{row % groups}" for row in range(len(validation))])
            profile, _ = build_profile(loaded, validation.with_columns(group=names), options)
            write_profile(profile, folder / f"{groups}.safetensors")
            for count in arguments.rows:
                command = [sys.executable, "-m", "benchmarks.revaluation", "--value"]
                command += [str(folder / f"{count}.parquet"), str(folder / f"{groups}.safetensors")]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                results[f"{count} rows, {groups} group(s)"] = json.loads(done.stdout)
                print(count, groups, done.stdout, flush=True)
        largest = max(arguments.rows)
        size = (folder / f"{largest}.parquet").stat().st_size
    share = forward / tokens * TOKENS * largest
    save(
        "revaluation",
        {
            "tokens a row": TOKENS,
            "results": results,
            "stored bytes a token": round(size / (largest * TOKENS), 1),
            "feature pass of the source, seconds a response token": round(forward / tokens, 6),
            f"feature pass over {largest} rows, seconds (extrapolated)": round(share),
            "times faster, 1 group": round(
                share / results[f"{largest} rows, 1 group(s)"]["seconds"], 1
            ),
        },
    )


def copies(real: pl.DataFrame, count: int) -> Iterator[pl.DataFrame]:
    """Windows of random rows, their hidden states jittered so that copies do not compress."""
    generator = np.random.default_rng(0)
    width = BYTES_OF["last_hidden"] * TOKENS
    for first in range(0, count, WINDOW):
        size = min(WINDOW, count - first)
        part = real[generator.integers(0, len(real), size)]
        states = np.frombuffer(b"".join(part["last_hidden"]), np.int8).reshape(size, width)
        jitter = generator.integers(-1, 2, states.shape, np.int8)
        states = np.clip(states.astype(np.int16) + jitter, -127, 127).astype(np.int8)
        yield part.with_columns(
            pl.int_range(first, first + size, dtype=pl.Int64).alias("row"),
            pl.Series("last_hidden", [state.tobytes() for state in states], pl.Binary),
        )


def write_copies(real: pl.DataFrame, count: int, path: Path) -> None:
    with path.open("wb") as stream:
        write_parts(stream, copies(real, count))


def write_profile(profile: ValidationProfile, path: Path) -> None:
    from safetensors.torch import save_file

    tensors, metadata = profile.to_tensors()
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, {"forvalue_dagster": json.dumps(metadata)})


if __name__ == "__main__":
    torch.manual_seed(0)
    main()

"""The passes over GSM8K rows beside a plain forward pass over the same batches.

    python -m benchmarks.forward_passes            # ratios, median of 5 interleaved repeats
    python -m benchmarks.forward_passes --memory   # peak memory, each pass in its own process

Baseline "plain": `model(input_ids, attention_mask, use_cache=False).logits` in inference mode.
"response head": the same without logits of prompt positions. "features": all forward statistics
and token features. "exact": value, alignment and all forward statistics; "exact, 8 groups": the
same with a value for each of eight validation groups.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import polars as pl
import torch

from benchmarks.harness import (
    argument_parser,
    interleaved_seconds,
    medians,
    need,
    peak_megabytes,
    save,
)
from forvalue_dagster.data.batching import Batch, batches
from forvalue_dagster.data.chat import EncodedRow
from forvalue_dagster.data.read import read_rows
from forvalue_dagster.engine.encoding import encode_rows
from forvalue_dagster.engine.feature_table import feature_records
from forvalue_dagster.engine.features import feature_head
from forvalue_dagster.engine.forward import pass_batch, response_positions
from forvalue_dagster.engine.scoring import build_profile, exact_head
from forvalue_dagster.models.loading import LoadedModel, load_model
from forvalue_dagster.options.model import ModelConfig
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.valuation.preconditioner import Preconditioner
from forvalue_dagster.valuation.profile import ValueDirection

VALIDATION_ROWS = 16
OPTIONS = ValuationOptions(noise=None)


def encode(loaded: LoadedModel, path: Path, count: int, budget: int) -> list[Batch]:
    return padded(loaded, read_rows(path).head(count), budget)


def padded(loaded: LoadedModel, frame: pl.DataFrame, budget: int) -> list[Batch]:
    encoder = loaded.encoder("response")
    rows = [row for row in encode_rows(encoder, frame) if isinstance(row, EncodedRow)]
    return list(batches(rows, budget, row_aligned=encoder.row_aligned))


@torch.inference_mode()
def plain(loaded: LoadedModel, batch: Batch) -> torch.Tensor:
    return loaded.model(
        input_ids=torch.from_numpy(batch.input_ids),
        attention_mask=torch.from_numpy(batch.attention_mask),
        use_cache=False,
        **{name: torch.from_numpy(values) for name, values in batch.inputs.items()},
    ).logits


@torch.inference_mode()
def response_head(loaded: LoadedModel, batch: Batch) -> torch.Tensor:
    positions = response_positions(loaded, batch)
    return positions.hidden @ loaded.unembedding.weight.T


def exact(loaded: LoadedModel, direction: ValueDirection, batch: Batch) -> object:
    return exact_head(loaded, direction, None, pass_batch(loaded, batch)).arrays()


def features(loaded: LoadedModel, batch: Batch) -> object:
    passed = pass_batch(loaded, batch)
    arrays = feature_head(loaded, OPTIONS, passed).arrays()
    return feature_records(arrays, passed.positions.lengths)


def direction_of(loaded: LoadedModel, path: Path, groups: int = 1) -> ValueDirection:
    validation = read_rows(path).head(VALIDATION_ROWS)
    names = [f"group {row % groups}" for row in range(VALIDATION_ROWS)]
    validation = validation.with_columns(group=pl.Series(names))
    profile, _ = build_profile(loaded, validation, OPTIONS)
    return profile.direction(Preconditioner())


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--response-head", action="store_true", help="time that pass as well")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument(
        "--one-pass", choices=["plain", "exact", "features"], help="run once, print the peak"
    )
    arguments = parser.parse_args()
    data = need(arguments.data / "gsm8k")
    if arguments.memory:
        measure_memory(arguments)
    elif arguments.one_pass:
        run_once(arguments, data)
    else:
        measure_ratio(arguments, data)


def run_once(arguments, data: Path) -> None:
    loaded = load_model(ModelConfig())
    encoded = encode(loaded, data / "train.jsonl", arguments.rows, arguments.batch_tokens)
    run = partial(features if arguments.one_pass == "features" else plain, loaded)
    if arguments.one_pass == "exact":
        run = partial(exact, loaded, direction_of(loaded, data / "test.jsonl"))
    for batch in encoded:
        run(batch)
    print(peak_megabytes())


def measure_ratio(arguments, data: Path) -> None:
    loaded = load_model(ModelConfig())
    encoded = encode(loaded, data / "train.jsonl", arguments.rows, arguments.batch_tokens)
    passes = {
        "plain": partial(plain, loaded),
        "features": partial(features, loaded),
        "exact": partial(exact, loaded, direction_of(loaded, data / "test.jsonl")),
        "exact, 8 groups": partial(exact, loaded, direction_of(loaded, data / "test.jsonl", 8)),
    }
    if arguments.response_head:
        passes["response_head"] = partial(response_head, loaded)
    seconds = interleaved_seconds(passes, encoded, arguments.repeats)
    middle = medians(seconds)
    save(
        "forward_passes",
        {
            "rows": arguments.rows,
            "batch_tokens": arguments.batch_tokens,
            "tokens": int(sum(batch.attention_mask.sum() for batch in encoded)),
            "response_tokens": int(sum(batch.mask.sum() for batch in encoded)),
            "seconds": seconds,
        }
        | {
            f"{name} / plain": round(middle[name] / middle["plain"], 3)
            for name in passes
            if name != "plain"
        },
    )


def measure_memory(arguments) -> None:
    def peak(which: str, rows: int) -> float:
        command = [sys.executable, "-m", "benchmarks.forward_passes", "--one-pass", which]
        command += ["--rows", str(rows), "--data", str(arguments.data)]
        command += ["--batch-tokens", str(arguments.batch_tokens)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])

    peaks = {
        f"{which} {rows}": round(peak(which, rows), 1)
        for which, rows in (("plain", 96), ("features", 96), ("exact", 96))
    }
    save("forward_passes_memory", {"peak_megabytes": peaks})


if __name__ == "__main__":
    main()

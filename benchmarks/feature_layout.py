"""How token features are best laid out: write, full scan by windows, bytes on disk.

    python -m benchmarks.feature_layout

Real features of GSM8K answers (see `revaluation`), 10,000 rows of 50 tokens, windows of 512 rows:
binary columns in Parquet (what the project uses), list columns in Parquet, one safetensors file for
each window beside a row index, and Lance if `pylance` is installed.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.harness import argument_parser, need, save
from benchmarks.revaluation import BYTES_OF, TOKENS, WINDOW, copies
from forvalue_dagster import ModelConfig, read_rows
from forvalue_dagster.engine.feature_table import read_features
from forvalue_dagster.engine.features import feature_parts
from forvalue_dagster.models.loading import load_model
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.storage.parquet import write_parts

LISTS = {
    "last_hidden": np.int8,
    "hidden_scale": np.float32,
    "outlier_dims": np.int16,
    "outlier_values": np.float32,
    "error_tokens": np.int32,
    "error_values": np.float16,
}


def as_lists(part: pl.DataFrame) -> pa.Table:
    columns = {}
    for name, dtype in LISTS.items():
        flat = np.frombuffer(b"".join(part[name]), dtype)
        offsets = np.arange(len(part) + 1, dtype=np.int32) * (len(flat) // len(part))
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))
    return pa.table(columns)


def binary(folder: Path, parts: list[pl.DataFrame]) -> Callable[[], None]:
    path = folder / "binary.parquet"
    with path.open("wb") as stream:
        write_parts(stream, iter(parts))

    def scan() -> None:
        table = pl.scan_parquet(path)
        for first in range(0, sum(map(len, parts)), WINDOW):
            read_features(table.slice(first, WINDOW).collect())

    return scan


def lists(folder: Path, parts: list[pl.DataFrame]) -> Callable[[], None]:
    import pyarrow.parquet as pq

    path = folder / "lists.parquet"
    with pq.ParquetWriter(path, as_lists(parts[0]).schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(as_lists(part))

    def scan() -> None:
        for batch in pq.ParquetFile(path).iter_batches(WINDOW):
            for name in LISTS:
                batch[name].flatten().to_numpy(zero_copy_only=False)

    return scan


def tensors(folder: Path, parts: list[pl.DataFrame]) -> Callable[[], None]:
    from safetensors.torch import load_file, save_file

    (folder / "tensors").mkdir()
    for number, part in enumerate(parts):
        save_file(read_features(part).to_tensors(), folder / "tensors" / f"{number}.safetensors")

    def scan() -> None:
        for number in range(len(parts)):
            loaded = load_file(folder / "tensors" / f"{number}.safetensors")
            for tensor in loaded.values():
                tensor.clone()

    return scan


def lance(folder: Path, parts: list[pl.DataFrame]) -> Callable[[], None]:
    import lance as lance_format

    for part in parts:
        table = part.select(*LISTS).to_arrow(compat_level=pl.CompatLevel.oldest())
        lance_format.write_dataset(table, folder / "lance", mode="append")

    def scan() -> None:
        for batch in lance_format.dataset(folder / "lance").to_batches(batch_size=WINDOW):
            for name in LISTS:
                b"".join(batch[name].to_pylist())

    return scan


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    arguments = parser.parse_args()
    source = read_rows(need(arguments.data / "gsm8k") / "train.jsonl").head(100)
    real = pl.concat(feature_parts(load_model(ModelConfig()), source, ValuationOptions()))
    real = real.filter(pl.col("response_tokens") >= TOKENS).with_columns(
        pl.col(name).bin.slice(0, size * TOKENS) for name, size in BYTES_OF.items()
    )
    real = real.with_columns(response_tokens=pl.lit(TOKENS, pl.Int64))
    parts = list(copies(real, arguments.rows))
    layouts = {"binary columns, Parquet": binary, "list columns, Parquet": lists}
    layouts["safetensors for each window"] = tensors
    if importlib.util.find_spec("lance"):
        layouts["binary columns, Lance"] = lance
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, make in layouts.items():
            folder = Path(scratch) / name.replace(" ", "_")
            folder.mkdir()
            start = time.perf_counter()
            scan = make(folder, parts)
            written = time.perf_counter() - start
            scan()  # once from the disk, once as measured
            start = time.perf_counter()
            scan()
            read = time.perf_counter() - start
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            results[name] = {
                "write_seconds": round(written, 2),
                "scan_seconds": round(read, 2),
                "bytes_a_token": round(size / (arguments.rows * TOKENS), 1),
            }
            print(name, results[name], flush=True)
    save("feature_layout", {"rows": arguments.rows, "tokens a row": TOKENS, "results": results})


if __name__ == "__main__":
    main()

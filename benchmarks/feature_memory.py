"""Peak memory of the feature pass, 500 against 5,000 rows, each in a process of its own.

    python -m benchmarks.feature_memory

A tiny model with random weights stands in, so that what grows with the rows would show.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from upath import UPath

from benchmarks.harness import argument_parser, peak_megabytes, save
from forvalue_dagster import read_rows
from forvalue_dagster.engine.features import feature_parts
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.storage.atomic import atomic_write
from forvalue_dagster.storage.parquet import write_parts
from forvalue_dagster.storage.parts import StoredParts


def run(count: int) -> None:
    from tests.tiny import tiny_loaded

    generator = np.random.default_rng(0)
    letters = list("abcdefghij ")
    rows = [
        {"prompt": f"row {i}", "response": "".join(generator.choice(letters, 120))}
        for i in range(count)
    ]
    loaded = tiny_loaded("llama")
    with tempfile.TemporaryDirectory() as scratch:
        store = StoredParts(UPath(scratch) / ".parts")
        options = ValuationOptions(window_rows=128)
        for _ in feature_parts(loaded, read_rows(rows), options, store=store):
            pass
        with atomic_write(UPath(scratch) / "table.parquet") as stream:
            write_parts(stream, store.frames())
        size = (Path(scratch) / "table.parquet").stat().st_size / 2**20
    print(size, peak_megabytes())


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--count", type=int)
    arguments = parser.parse_args()
    if arguments.count:
        run(arguments.count)
        return
    results = {}
    for count in (500, 5_000):
        command = [sys.executable, "-m", "benchmarks.feature_memory", "--count", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        size, peak = map(float, done.stdout.split()[-2:])
        results[f"{count} rows"] = {"table_megabytes": round(size), "peak_megabytes": round(peak)}
    save("feature_memory", results)


if __name__ == "__main__":
    main()

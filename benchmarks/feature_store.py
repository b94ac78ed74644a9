"""Where the feature table should live: Parquet files, one Delta table, or one Lance dataset.

    python -m benchmarks.feature_store

Feature tables of random tokens that compress as little as real ones, 20 shards of 500 rows of 50
tokens. Three stores: a Parquet file a shard, by the project's own functions; a Delta table
partitioned by shard (`deltalake`); a Lance dataset (`pylance`). What is timed:

- write: every shard once, as one commit, and again so that a killed process could go on (parts of
  their own for Parquet; a commit for each part for the others);
- look-up: the lines of 100 sample ids, over all shards;
- scan: every row as a polars frame, in windows of 512 rows;
- merge: 1 % of one shard's rows with new features and 1 % new rows, by sample id;
- tidy: compaction and removal of what no version needs.

Each store runs in a process of its own on one core, the stores take turns, and the files are in the
page cache. Parquet's files are flushed to the disk as they are written (fsync); the other two leave
that to the system. A store whose library is absent is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from upath import UPath

from benchmarks.harness import peak_megabytes, reset_peak, save
from benchmarks.revaluation import BYTES_OF, TOKENS, WINDOW
from forvalue_dagster.engine.columns import IDENTITY, OUTCOME
from forvalue_dagster.engine.feature_table import FEATURE_RESULTS
from forvalue_dagster.storage.atomic import atomic_write
from forvalue_dagster.storage.feature_store import FeatureStore
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.storage.parquet import write_parts, write_table
from forvalue_dagster.storage.parts import StoredParts
from forvalue_dagster.valuation.columns import FORWARD_STATISTICS

PART = 125
IDS = 100
WIDTH = BYTES_OF["last_hidden"]
MARK = json.dumps({"code version": 0, "hidden": "int8", "weights": "random " * 20})
# Rounded states are near to normal: 256 levels of one, so that a byte has as much to say.
LEVELS = np.sort(np.random.default_rng(0).normal(0, 16, 256).round()).astype(np.int8)
Parts = list[pl.DataFrame]
Lookup = Callable[[pl.Series], pl.DataFrame]


class ParquetStore:
    """A file a shard, replaced whole, as the project keeps it."""

    name = "Parquet file a shard"
    needs: tuple[str, ...] = ()
    commit = "the upload of the one object; the last writer of a shard wins"

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "features"
        self.storage = Storage(base_dir=str(folder))

    def write(self, shard: str, parts: Parts) -> None:
        with atomic_write(self.path(shard)) as stream:
            write_parts(stream, iter(parts))

    def write_resumable(self, shard: str, parts: Parts) -> None:
        self._write_kept(shard, parts)

    def merge(self, shard: str, changed: pl.DataFrame) -> None:
        ids = pl.read_parquet(self.path(shard).path, columns=["sample_id"])["sample_id"]
        stay = ids.filter(~ids.is_in(changed["sample_id"].implode()))
        known = FeatureStore(self.storage, UPath(self.folder)).lines(MARK, stay)
        self._write_kept(shard, (part for source in (known, [changed]) for part in source))

    def lookups(self) -> dict[str, Lookup]:
        return {"the project's": self._by_store, "polars filter": self._by_filter}

    def scan(self, shards: list[str]) -> Iterator[pl.DataFrame]:
        for shard in shards:
            yield from windows(pl.scan_parquet(self.path(shard).path))

    def tidy(self) -> None:
        """Nothing is left over."""

    def path(self, shard: str) -> UPath:
        return UPath(self.folder / f"{shard}.parquet")

    def _by_store(self, ids: pl.Series) -> pl.DataFrame:
        store = FeatureStore(self.storage, UPath(self.folder), wanted=ids)
        return pl.concat(store.lines(MARK, ids))

    def _by_filter(self, ids: pl.Series) -> pl.DataFrame:
        return filtered(pl.scan_parquet(self.folder / "*.parquet"), ids)

    def _write_kept(self, shard: str, parts: Iterable[pl.DataFrame]) -> None:
        kept = StoredParts(UPath(self.folder / f".{shard}.parts"))
        for number, part in enumerate(parts):
            kept.save(f"{number:07d}", part, 0)
        write_table(self.path(shard), kept)
        kept.sweep(lambda attempt: True)


class DeltaStore:
    """One table, partitioned by shard; no statistics of the binary columns."""

    name = "Delta table"
    needs = ("deltalake", "arro3-core", "Deprecated")
    commit = "conditional put of the next log entry, shared by all shards"

    def __init__(self, folder: Path) -> None:
        from deltalake import WriterProperties

        self.folder, self.resumable = folder / "features", folder / "resumable"
        self.zstd = WriterProperties(compression="ZSTD")

    def write(self, shard: str, parts: Parts) -> None:
        self._append(self.folder, reader(parts))

    def write_resumable(self, shard: str, parts: Parts) -> None:
        for part in parts:
            self._append(self.resumable, reader([part]))

    def merge(self, shard: str, changed: pl.DataFrame) -> None:
        from deltalake import DeltaTable

        merger = DeltaTable(self.folder).merge(
            arrow(changed),
            f"stored.shard = '{shard}' AND stored.sample_id = changed.sample_id",
            source_alias="changed",
            target_alias="stored",
            writer_properties=self.zstd,
        )
        merger.when_matched_update_all().when_not_matched_insert_all().execute()

    def lookups(self) -> dict[str, Lookup]:
        return {"polars filter": lambda ids: filtered(pl.scan_delta(str(self.folder)), ids)}

    def scan(self, shards: list[str]) -> Iterator[pl.DataFrame]:
        for shard in shards:
            yield from windows(pl.scan_delta(str(self.folder)).filter(pl.col("shard") == shard))

    def tidy(self) -> None:
        from deltalake import DeltaTable

        table = DeltaTable(self.folder)
        table.optimize.compact(writer_properties=self.zstd)
        table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)

    def _append(self, folder: Path, data: pa.RecordBatchReader) -> None:
        from deltalake import write_deltalake

        write_deltalake(
            folder,
            data,
            partition_by="shard",
            mode="append",
            configuration={"delta.dataSkippingStatsColumns": "sample_id,row"},
            writer_properties=self.zstd,
        )


class LanceStore:
    """One dataset; the binary columns compressed as Parquet's are."""

    name = "Lance dataset"
    needs = ("pylance", "lance-namespace", "lance-namespace-urllib3-client")
    commit = "conditional put of the next manifest, shared by all shards"

    def __init__(self, folder: Path) -> None:
        self.folder, self.resumable = folder / "features", folder / "resumable"

    def write(self, shard: str, parts: Parts) -> None:
        self._append(self.folder, parts)

    def write_resumable(self, shard: str, parts: Parts) -> None:
        for part in parts:
            self._append(self.resumable, [part])

    def merge(self, shard: str, changed: pl.DataFrame) -> None:
        merger = self._open().merge_insert(["shard", "sample_id"])
        merger.when_matched_update_all().when_not_matched_insert_all()
        merger.execute(reader([changed], compressed=True))

    def lookups(self) -> dict[str, Lookup]:
        return {"filter": self._by_filter, "filter by index": self._by_index}

    def scan(self, shards: list[str]) -> Iterator[pl.DataFrame]:
        for shard in shards:
            for batch in self._open().to_batches(filter=f"shard = '{shard}'", batch_size=WINDOW):
                yield pl.DataFrame(batch)

    def tidy(self) -> None:
        dataset = self._open()
        dataset.optimize.compact_files()
        dataset.cleanup_old_versions(timedelta(0), delete_unverified=True)

    def _by_filter(self, ids: pl.Series) -> pl.DataFrame:
        quoted = ", ".join(f"'{one}'" for one in ids)
        return pl.DataFrame(self._open().to_table(filter=f"sample_id IN ({quoted})"))

    def _by_index(self, ids: pl.Series) -> pl.DataFrame:
        dataset = self._open()
        if not dataset.describe_indices():
            dataset.create_scalar_index("sample_id", "BTREE")
        return self._by_filter(ids)

    def _open(self) -> Any:
        import lance

        return lance.dataset(self.folder)

    def _append(self, folder: Path, parts: Parts) -> None:
        import lance

        lance.write_dataset(reader(parts, compressed=True), folder, mode="append")


STORES = {store.name: store for store in (ParquetStore, DeltaStore, LanceStore)}


def windows(table: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    for first in range(0, table.select(pl.len()).collect().item(), WINDOW):
        yield table.slice(first, WINDOW).collect()


def filtered(table: pl.LazyFrame, ids: pl.Series) -> pl.DataFrame:
    return table.filter(pl.col("sample_id").is_in(ids.implode())).collect()


def arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def reader(parts: Parts, *, compressed: bool = False) -> pa.RecordBatchReader:
    schema = arrow(parts[0].clear()).schema
    if compressed:
        zstd = {"lance-encoding:compression": "zstd"}
        schema = pa.schema(
            field.with_metadata(zstd) if pa.types.is_large_binary(field.type) else field
            for field in schema
        )
    batches = (b for part in parts for b in arrow(part).cast(schema).to_batches())
    return pa.RecordBatchReader.from_batches(schema, batches)


def lines(shard: str, first: int, count: int, seed: int) -> pl.DataFrame:
    """Random lines of a feature table, as large as real ones."""
    generator = np.random.default_rng([seed, first])

    def binary(width: int, values: Callable[[int], np.ndarray]) -> pl.Series:
        flat = values(count * width).reshape(count, width)
        return pl.Series([line.tobytes() for line in flat], dtype=pl.Binary)

    def normal(size: int) -> np.ndarray:
        return generator.standard_normal(size, np.float32)

    columns: dict[str, Any] = {
        "sample_id": [generator.bytes(16).hex() for _ in range(count)],
        "shard": [shard] * count,
        "row": range(first, first + count),
        **{name: generator.normal(size=count) for name in FORWARD_STATISTICS},
        "last_hidden": binary(
            TOKENS * WIDTH, lambda size: LEVELS[generator.integers(0, 256, size, np.uint8)]
        ),
        "hidden_scale": binary(TOKENS, normal),
        "outlier_dims": binary(
            TOKENS * 4, lambda size: generator.integers(0, 8, size, np.int16) * 70
        ),
        "outlier_values": binary(TOKENS * 4, normal),
        "error_tokens": binary(
            TOKENS * 16, lambda size: (49_152 * generator.random(size) ** 3).astype(np.int32)
        ),
        "error_values": binary(TOKENS * 16, lambda size: normal(size).astype(np.float16)),
        "prompt_state": binary(WIDTH, normal),
        "response_tokens": [TOKENS] * count,
        "truncated": [False] * count,
        "status": ["scored"] * count,
        "reason": [None] * count,
        "fingerprint": [MARK] * count,
    }
    schema = {**IDENTITY, **FEATURE_RESULTS, **OUTCOME, "fingerprint": pl.String()}
    return pl.DataFrame(columns).select(pl.col(name).cast(kind) for name, kind in schema.items())


class Meter:
    """Seconds, bytes written and peak extra memory of what runs inside, by name."""

    def __init__(self) -> None:
        self.results: dict[str, dict[str, float]] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        os.sync()  # what was written before does not count here
        reset_peak()
        memory, written, start = peak_megabytes(), _written(), time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        entry = self.results.setdefault(name, {"seconds": 0, "megabytes_written": 0, "peak": 0})
        entry["seconds"] += seconds
        entry["megabytes_written"] += (_written() - written) / 1e6
        entry["peak"] = max(entry["peak"], peak_megabytes() - memory)


def _written() -> int:
    """Bytes that this process has handed to write calls (Linux), whichever files still exist."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("wchar"):
            return int(line.split()[1])
    raise SystemExit("This system does not tell what a process has written.")


def run(name: str, folder: Path, shards: int, rows: int) -> dict[str, Any]:
    """Measure one store in this process."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    store, meter = STORES[name](folder), Meter()
    names = [f"shard{number:03d}" for number in range(shards)]
    ids, sizes = [], {}
    for number, shard in enumerate(names):
        starts = range(0, rows, PART)
        parts = [lines(shard, first, min(PART, rows - first), number) for first in starts]
        ids.append(pl.concat([part["sample_id"] for part in parts]))
        # The first write also loads the library: a shard of its own, in a folder of its own.
        if not number:
            STORES[name](folder / "warm-up").write(shard, parts)
        with meter.measure("write"):
            store.write(shard, parts)
        with meter.measure("write, resumable"):
            store.write_resumable(shard, parts)
    sizes["written"] = size_of(store.folder)
    asked = pl.concat(ids).sample(IDS, seed=0)
    for how, lookup in store.lookups().items():
        before = size_of(store.folder)
        lookup(asked)  # builds the index, where there is one
        sizes[f"index of {how}"] = size_of(store.folder) - before
        with meter.measure(f"look-up, {how}"):
            found = lookup(asked)
        assert set(found["sample_id"]) == set(asked), how
    with meter.measure("scan"):
        counted = sum(len(window) for window in store.scan(names))
    assert counted == shards * rows, counted
    few = max(rows // 100, 1)
    changed = [
        lines(names[1], 0, few, shards).with_columns(sample_id=ids[1].sample(few, seed=0)),
        lines(names[1], rows, few, shards),
    ]
    with meter.measure("merge"):
        store.merge(names[1], pl.concat(changed))
    sizes["merged"] = size_of(store.folder)
    check(store, pl.concat(changed), names, shards * rows + few)
    with meter.measure("tidy"):
        store.tidy()
    sizes["tidied"] = size_of(store.folder)
    check(store, pl.concat(changed), names, shards * rows + few)
    return {"measured": meter.results, "megabytes": {key: n / 1e6 for key, n in sizes.items()}}


def check(store: Any, changed: pl.DataFrame, shards: list[str], rows: int) -> None:
    """Stop unless the store has as many rows as it should, and the changed ones as they are."""
    stored = pl.concat(
        window.select("sample_id", "last_hidden", "nll") for window in store.scan(shards)
    )
    same = stored.join(changed, on=["sample_id", "last_hidden", "nll"], how="semi")
    if (len(stored), len(same)) != (rows, len(changed)):
        raise SystemExit(f"{store.name}: {len(stored)} rows, {len(same)} changed; expected {rows}.")


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def installed_megabytes(packages: Iterable[str]) -> float:
    paths = (file.locate() for package in packages for file in files(package) or [])
    return round(sum(os.stat(path).st_size for path in paths if os.path.exists(path)) / 1e6, 1)


def installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def summary(runs: list[dict[str, Any]], parquet: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of a store's runs, and of its times over those of Parquet in the same round."""
    steps = {}
    for step in runs[0]["measured"]:
        measured = [one["measured"][step] for one in runs]
        middle = {key: statistics.median(one[key] for one in measured) for key in measured[0]}
        steps[step] = {
            "seconds": round(middle["seconds"], 3),
            "megabytes_written": round(middle["megabytes_written"], 1),
            "peak_extra_megabytes": round(middle["peak"]),
        }
        beside = "look-up, polars filter" if step.startswith("look-up") else step
        if any(other["measured"][beside]["seconds"] < 0.001 for other in parquet):
            continue  # Parquet has nothing to do
        steps[step]["times_parquet"] = round(
            statistics.median(
                one["seconds"] / other["measured"][beside]["seconds"]
                for one, other in zip(measured, parquet, strict=True)
            ),
            2,
        )
    megabytes = {
        key: round(statistics.median(one["megabytes"][key] for one in runs), 2)
        for key in runs[0]["megabytes"]
    }
    return {"steps": steps, "megabytes": megabytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--rows", type=int, default=500, help="of a shard")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="where the tables are made, then removed")
    parser.add_argument("--store", choices=STORES, help="this store alone, in this process")
    arguments = parser.parse_args()
    if arguments.store:
        done = run(arguments.store, arguments.scratch, arguments.shards, arguments.rows)
        print(json.dumps(done))
        return
    present = {}
    for name, store in STORES.items():
        if all(map(installed, store.needs)):
            present[name] = store
        else:
            print(f"{name} is left out: it needs `pip install {store.needs[0]}`.", flush=True)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in present}
    sizes = ["--shards", str(arguments.shards), "--rows", str(arguments.rows)]
    settings = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "LANCE_LOG": "error"}
    for repeat in range(arguments.repeats):
        for name in present:
            with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
                command = [sys.executable, "-m", "benchmarks.feature_store", "--store", name]
                done = subprocess.run(
                    [*command, "--scratch", folder, *sizes],
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                    env=os.environ | settings,
                )
            runs[name].append(json.loads(done.stdout))
            seconds = {k: round(v["seconds"], 3) for k, v in runs[name][-1]["measured"].items()}
            print(f"repeat {repeat + 1}, {name}: {seconds}", flush=True)
    results = {}
    for name, store in present.items():
        results[name] = summary(runs[name], runs[ParquetStore.name])
        results[name]["libraries"] = {package: version(package) for package in store.needs}
        results[name]["installed_megabytes"] = installed_megabytes(store.needs)
        results[name]["atomic commit on S3"] = store.commit
    save(
        "feature_store",
        {
            "shards": arguments.shards,
            "rows a shard": arguments.rows,
            "rows a part": PART,
            "tokens a row": TOKENS,
            "repeats": arguments.repeats,
            "results": results,
        },
    )


if __name__ == "__main__":
    main()

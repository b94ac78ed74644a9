"""Write kept and dropped rows with their text, as a table and as JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256

import dagster as dg
import polars as pl
from upath import UPath

from forvalue_dagster.data.canonical_json import content_id
from forvalue_dagster.data.own_columns import beside, together_lazily
from forvalue_dagster.data.read import source_lines
from forvalue_dagster.engine.columns import PLACE
from forvalue_dagster.storage.atomic import atomic_write
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.storage.parquet import StoredTable, file_path, store_table


def store_rows(
    storage: Storage,
    raw: Mapping[str, pl.LazyFrame],
    kept: tuple[dg.AssetKey, pl.DataFrame],
    dropped: tuple[dg.AssetKey, pl.DataFrame],
) -> tuple[dict[dg.AssetKey, StoredTable], dict[str, str]]:
    """Write kept and dropped rows, each as a table and as JSON Lines.

    Args:
        storage: the storage that holds the files.
        raw: shard → its rows.
        kept: key of the asset, and shard, row number and scores of its rows.
        dropped: the same for the dropped rows.

    Returns:
        The tables, and name of a file → its SHA-256.
    """
    tables = {
        key: store_table(file_path(storage, key, ".parquet"), with_text(raw, rows))
        for key, rows in (kept, dropped)
    }
    digests = {table.path.name: table.digest for table in tables.values()}
    for (key, rows), lines in ((kept, kept_lines), (dropped, dropped_lines)):
        path = file_path(storage, key, ".jsonl")
        digests[path.name] = write_lines(path, lines(raw, rows))
    return tables, digests


def with_text(raw: Mapping[str, pl.LazyFrame], decided: pl.DataFrame) -> pl.LazyFrame:
    """Join decided rows with their text; a score replaces a source column of the same name."""
    scores = [name for name in decided.columns if name not in PLACE]
    parts = []
    for rows, chosen in _by_shard(raw, decided):
        own = rows.collect_schema().names()
        renamed = rows.select(pl.col(name).alias(beside(name, scores)) for name in own)
        parts.append(renamed.join(chosen.lazy(), on=PLACE, maintain_order="left"))
    return together_lazily(parts).drop("source")


def _by_shard(
    raw: Mapping[str, pl.LazyFrame], decided: pl.DataFrame
) -> Iterator[tuple[pl.LazyFrame, pl.DataFrame]]:
    """Yield each shard's rows with its decided rows: a join with all would be quadratic."""
    shards = decided.partition_by("shard", as_dict=True)
    for shard, rows in sorted(raw.items()):
        yield rows, shards.get((shard,), decided.clear())


def kept_lines(raw: Mapping[str, pl.LazyFrame], kept: pl.DataFrame) -> Iterator[str]:
    """Yield the kept rows in their source's own form, one shard in memory at a time."""
    for rows, chosen in _by_shard(raw, kept.select(PLACE)):
        frame = rows.join(chosen.lazy(), on=PLACE, how="semi").collect()
        _hold_against_ids(frame)
        yield from source_lines(frame)


def dropped_lines(raw: Mapping[str, pl.LazyFrame], dropped: pl.DataFrame) -> Iterator[str]:
    """Yield {drop_reason, shard, row, source} for each dropped row; source has its own form."""
    for rows, chosen in _by_shard(raw, dropped.select(*PLACE, "drop_reason")):
        frame = rows.join(chosen.lazy(), on=PLACE, how="semi").collect()
        reasons = frame.select(PLACE).join(chosen, on=PLACE, how="left", maintain_order="left")
        for record, line in zip(reasons.to_dicts(), source_lines(frame), strict=True):
            yield json.dumps(record | {"source": line}, ensure_ascii=False, sort_keys=True)


def write_lines(path: UPath, lines: Iterable[str]) -> str:
    """Write lines of text, whole or not at all, and return the SHA-256 of the file."""
    content = sha256()
    with atomic_write(path) as stream:
        for line in lines:
            written = line.encode("utf-8", "surrogatepass") + b"\n"
            content.update(written)
            stream.write(written)
    return content.hexdigest()


def _hold_against_ids(rows: pl.DataFrame) -> None:
    """Check that each row's conversation is the one that was valued under its id."""
    for shard, row, sample_id, messages, tools in rows.select(
        *PLACE, "sample_id", "messages", "tools"
    ).iter_rows():
        if content_id(messages, tools) != sample_id:
            raise dg.Failure(
                f"The conversation of row {row} of shard {shard!r} is not the one that was valued. "
                "Materialise raw_finetuning_data of that shard again.",
                allow_retries=False,
            )

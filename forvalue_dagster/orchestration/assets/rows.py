"""The assets with rows: raw shards and validation data, and their source files."""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import dagster as dg
import polars as pl

from forvalue_dagster.data.digest import digest
from forvalue_dagster.data.problems import plain_name
from forvalue_dagster.data.read import DESCRIPTIONS
from forvalue_dagster.data.reading import RowReading
from forvalue_dagster.orchestration.assets.shards import ShardTable, materialize_shards
from forvalue_dagster.orchestration.automation.conditions import (
    behind_checks,
    on_new_content,
)
from forvalue_dagster.orchestration.checks.rows import (
    FORM,
    UNUSED_LIKE_CONVERSATION,
    Suite,
    check_reading,
    check_rows,
    written_suites,
)
from forvalue_dagster.orchestration.display.plots import histogram
from forvalue_dagster.orchestration.naming import (
    MODEL_FILES,
    TRAINING_FILES,
    TRAINING_SHARDS,
    VALIDATION_FILES,
    Naming,
    code_version,
    resolved,
)
from forvalue_dagster.orchestration.options.plan import Plan
from forvalue_dagster.orchestration.options.sources import RowSource, UpstreamRows
from forvalue_dagster.quality.standing import FILE_STATE
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.storage.source_files import Survey

# Settings that do not change the rows.
_WITHOUT = ("path", "s3", "image_root", "line_bytes", "file_bytes")
# Number of columns named in metadata: a JSON file may have any number of keys.
_NAMES = 100


def build_source_assets(
    naming: Naming, plan: Plan, training_rows: RowSource | UpstreamRows
) -> list[dg.AssetSpec]:
    """Return external assets for the source files, which a sensor watches."""

    def files(name: str, description: str, shards: dg.PartitionsDefinition | None) -> dg.AssetSpec:
        return dg.AssetSpec(
            naming.key(name),
            group_name=naming.group,
            kinds={"file"},
            partitions_def=shards,
            description=description,
        )

    specs = [files(VALIDATION_FILES, "The files of the trusted rows.", None)]
    if isinstance(training_rows, RowSource):
        specs += [
            files(TRAINING_FILES, "The files of finetuning rows, a shard each.", naming.shards),
            files(TRAINING_SHARDS, "Which shards there are.", None),
        ]
    if plan.watches_model:
        specs.append(files(MODEL_FILES, "The files of the model.", None))
    return specs


def build_row_assets(
    naming: Naming,
    plan: Plan,
    training_rows: RowSource | UpstreamRows,
    validation_rows: RowSource,
    suites: Sequence[Suite],
) -> list[dg.AssetsDefinition]:
    """Build `raw_finetuning_data` (one partition for each shard) and `validation_data`."""
    decorate: Callable[..., Callable[[Callable[..., Any]], dg.AssetsDefinition]] = partial(
        dg.asset,
        key=naming.key("raw_finetuning_data"),
        group_name=naming.group,
        kinds={"polars", "parquet"},
        partitions_def=naming.shards,
        io_manager_key=naming.resource("parquet_io_manager"),
        dagster_type=pl.DataFrame,
        code_version=code_version(
            resolved(training_rows, without=_WITHOUT), written_suites(suites)
        ),
        metadata={"descriptions": DESCRIPTIONS},
        description="Finetuning rows as conversations, with the source's own columns.",
    )

    @decorate(
        deps=[naming.key(TRAINING_FILES)],
        automation_condition=on_new_content(),
        backfill_policy=plan.automation.many_shards,
        output_required=False,
    )
    @naming.own
    def rows_of_files(
        context: dg.AssetExecutionContext, training_rows: RowSource, storage: Storage
    ) -> Iterator[dg.Output[Any]]:
        found = training_rows.survey()

        def make(shard: str) -> ShardTable:
            made = _row_table(*training_rows.read_with_reading(shard, found.shards), found)
            made.metadata[FILE_STATE] = found.shards[shard].state
            return made

        def check(shard: str, made: ShardTable) -> Iterator[dg.AssetCheckResult]:
            assert isinstance(made.table, pl.DataFrame)
            yield check_reading(context.instance, context.asset_key, shard)
            yield from check_rows(context.asset_key, made.table, storage, suites, shard)

        yield from materialize_shards(context, storage, make, check)

    upstream = training_rows.key if isinstance(training_rows, UpstreamRows) else None

    @decorate(
        ins={"rows": dg.AssetIn(key=upstream or naming.key("rows"))},
        automation_condition=behind_checks(ignoring=naming.files),
    )
    @naming.own
    def rows_of_asset(
        context: dg.AssetExecutionContext, rows: Any, training_rows: UpstreamRows, storage: Storage
    ) -> Iterator[dg.Output[Any]]:
        def make(shard: str) -> ShardTable:
            return _row_table(*training_rows.rows_with_reading(rows, shard))

        yield from materialize_shards(context, storage, make)

    @dg.asset(
        key=naming.key("validation_data"),
        deps=[naming.key(VALIDATION_FILES)],
        group_name=naming.group,
        kinds={"polars", "parquet"},
        io_manager_key=naming.resource("parquet_io_manager"),
        code_version=code_version(
            resolved(validation_rows, without=_WITHOUT), written_suites(suites)
        ),
        metadata={"descriptions": DESCRIPTIONS},
        description="The trusted rows that training rows are compared with.",
        automation_condition=on_new_content(),
    )
    @naming.own
    def validation_data(
        context: dg.AssetExecutionContext, validation_rows: RowSource
    ) -> dg.Output[pl.DataFrame]:
        found = validation_rows.survey()
        made = _row_table(*validation_rows.read_with_reading(listing=found.shards), found)
        made.metadata[FILE_STATE] = found.state
        rows = made.table
        assert isinstance(rows, pl.DataFrame)
        groups = rows["group"].drop_nulls().value_counts(sort=True)
        if len(groups):
            made.metadata["groups"] = dg.MetadataValue.table(
                [dg.TableRecord(record) for record in groups.to_dicts()]
            )
        context.set_data_version(context.asset_key, dg.DataVersion(made.data_version))
        return dg.Output(rows, metadata=made.metadata)

    return [rows_of_files if upstream is None else rows_of_asset, validation_data]


def _row_table(rows: pl.DataFrame, reading: RowReading, found: Survey | None = None) -> ShardTable:
    sizes = rows["messages"].str.len_chars()
    repeated = (
        len(rows) - rows["sample_id"].null_count() - rows["sample_id"].drop_nulls().n_unique()
    )
    metadata = {
        "rows": dg.MetadataValue.int(len(rows)),
        "dagster/partition_row_count": len(rows),
        "unreadable_rows": dg.MetadataValue.int(len(rows) - rows["problem"].null_count()),
        "duplicate_rows": dg.MetadataValue.int(repeated),
        "lengths": histogram({"rows": sizes}, title="Length of conversations", unit="characters"),
    }
    metadata |= _shown(reading)
    if found is not None and found.passed_over:
        passed_over = sorted(found.passed_over.items())
        metadata["files_passed_over"] = dg.MetadataValue.table(
            [dg.TableRecord({"file": file, "reason": reason}) for file, reason in passed_over[:20]]
        )
        metadata["number_of_files_passed_over"] = dg.MetadataValue.int(len(passed_over))
    if images := int(rows["images"].list.len().sum()):
        metadata["images"] = dg.MetadataValue.int(images)
    # Images count by their names in the messages, which are hashes of their bytes. Rows without a
    # rejected answer have the same hash as before that column existed.
    unhashed = ["images", *(["rejected"] if rows["rejected"].null_count() == len(rows) else [])]
    return ShardTable(rows, metadata, digest(rows.drop(unhashed)))


def _shown(reading: RowReading) -> dict[str, Any]:
    """Return metadata on how rows were read: names of columns and counts, no text of a row."""
    names = {
        "columns_unused": reading.unused,
        UNUSED_LIKE_CONVERSATION: reading.suspicious,
    }
    shown: dict[str, Any] = {
        "columns_used": dg.MetadataValue.json(
            {_short(name): role for name, role in islice(reading.used.items(), _NAMES)}
        ),
        "problems": dg.MetadataValue.json(
            {str(kind): count for kind, count in reading.problems.items()}
        ),
    }
    for title, columns in names.items():
        shown[title] = dg.MetadataValue.json([_short(name) for name in columns[:_NAMES]])
        shown[f"number_of_{title}"] = dg.MetadataValue.int(len(columns))
    if reading.form is not None:
        shown[FORM] = dg.MetadataValue.text(_printable(reading.form))
    return shown


def _short(name: str) -> str:
    return _printable(plain_name(name))


def _printable(name: str) -> str:
    # A key of a JSON row may hold half of a surrogate pair, which the event log cannot store.
    return name.encode("utf-8", "backslashreplace").decode()

"""The assets that hold rows: raw shards and validation data. Bodies only call and report."""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

import dagster as dg
import polars as pl

from forvalue_dagster.data.read import DESCRIPTIONS
from forvalue_dagster.orchestration.naming import CODE_VERSION, Naming
from forvalue_dagster.orchestration.plots import histogram
from forvalue_dagster.orchestration.resources import RowSource


def build_row_assets(naming: Naming) -> list[dg.AssetsDefinition]:
    """Build `raw_finetuning_data` (a partition each shard) and `validation_data`."""

    @dg.asset(
        key=naming.key("raw_finetuning_data"),
        group_name=naming.group,
        kinds={"polars", "parquet"},
        partitions_def=naming.shards,
        io_manager_key="parquet_io_manager",
        code_version=CODE_VERSION,
        metadata={"descriptions": DESCRIPTIONS},
        description="Finetuning rows as conversations, with the source's own columns.",
    )
    def raw_finetuning_data(
        context: dg.AssetExecutionContext, training_rows: RowSource
    ) -> pl.DataFrame:
        rows = training_rows.read(context.partition_key)
        context.add_output_metadata(_describe_rows(rows))
        return rows

    @dg.asset(
        key=naming.key("validation_data"),
        group_name=naming.group,
        kinds={"polars", "parquet"},
        io_manager_key="parquet_io_manager",
        code_version=CODE_VERSION,
        metadata={"descriptions": DESCRIPTIONS},
        description="The trusted rows that training rows are valued against.",
    )
    def validation_data(
        context: dg.AssetExecutionContext, validation_rows: RowSource
    ) -> pl.DataFrame:
        rows = validation_rows.read()
        groups = rows["group"].drop_nulls().value_counts(sort=True)
        metadata = _describe_rows(rows)
        if len(groups):
            metadata["groups"] = dg.MetadataValue.table(
                [dg.TableRecord(record) for record in groups.to_dicts()]
            )
        context.add_output_metadata(metadata)
        return rows

    return [raw_finetuning_data, validation_data]


def _describe_rows(rows: pl.DataFrame) -> dict[str, dg.MetadataValue]:
    sizes = rows["messages"].str.len_chars()
    return {
        "rows": dg.MetadataValue.int(len(rows)),
        "unreadable_rows": dg.MetadataValue.int(len(rows) - rows["problem"].null_count()),
        "duplicate_rows": dg.MetadataValue.int(
            len(rows) - rows["sample_id"].null_count() - rows["sample_id"].drop_nulls().n_unique()
        ),
        "lengths": histogram({"rows": sizes}, title="Length of conversations", unit="characters"),
    }

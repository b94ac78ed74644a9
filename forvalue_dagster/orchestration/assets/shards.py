"""Steps over shards: one shard a run, or many, each with its own results.

Dagster can run an asset over a range of partitions in one step, but then gives all of them one
data version, and its checks no partition. So in such a run the step itself records, shard by
shard, the materialisation and the check results. As it then yields no output, Dagster skips the
steps of the same checks. A run of a single shard works as usual in Dagster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import dagster as dg
import polars as pl
from upath import UPath

from forvalue_dagster.orchestration.display.plots import without_plots
from forvalue_dagster.orchestration.naming import BLOCKING
from forvalue_dagster.quality.standing import (
    DATA_VERSION,
    check_evaluation,
    latest_materialization,
    provenance,
)
from forvalue_dagster.storage.in_force import FILE_DIGEST
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.storage.parquet import describe_columns, table_path, write_table
from forvalue_dagster.storage.parts import StoredParts


@dataclass(frozen=True)
class ShardTable:
    """The table that a step made for one shard.

    Attributes:
        table: the rows.
        metadata: metadata of the materialisation.
        data_version: a text that changes with the content.
    """

    table: pl.DataFrame | StoredParts
    metadata: dict[str, Any]
    data_version: str


# (shard, its table) → results of all checks on the step's asset.
Check = Callable[[str, ShardTable], Iterator[dg.AssetCheckResult]]


def materialize_shards(
    context: dg.AssetExecutionContext,
    storage: Storage,
    make: Callable[[str], ShardTable],
    check: Check | None = None,
    made: Callable[[UPath], None] | None = None,
) -> Iterator[dg.Output[Any]]:
    """Make every shard of the run; yield an output only if there is a single shard.

    In a run over many shards, a failed shard does not stop the others: the step fails at its end
    and names the shards that failed or were blocked by a check.

    Args:
        context: context of the asset's step.
        storage: location of the asset's tables.
        make: function that makes one shard's table.
        check: function that checks it, in a run over many shards.
        made: function called for each written table, in a run over many shards.

    Raises:
        dagster.Failure: if shards failed or were blocked; the message names them.
    """
    if context.has_partition_key:
        only = make(context.partition_key)
        context.set_data_version(context.asset_key, dg.DataVersion(only.data_version))
        yield dg.Output(only.table, metadata=only.metadata)
        return
    _refuse_more_assets(context)
    failed: dict[str, str] = {}
    blocked: dict[str, str] = {}
    shards = context.partition_keys
    with without_plots():
        for number, shard in enumerate(shards, start=1):
            try:
                stopped = _record(context, storage, shard, make(shard), check)
            except Exception as error:
                context.log.exception(f"Shard {shard!r} failed.")
                failed[shard] = f"{type(error).__name__}: {error}"
                continue
            if made is not None:
                made(table_path(storage, context.asset_key, shard))
            if stopped:
                blocked[shard] = "; ".join(stopped)
                context.log.warning(f"Shard {shard!r} is blocked: {blocked[shard]}")
            context.log.info(f"{number} of {len(shards)} shards done.")
    if failed or blocked:
        listing = "; ".join(f"{shard!r}: {why}" for shard, why in (failed | blocked).items())
        raise dg.Failure(
            f"Of {len(shards)} shards {len(failed)} failed and {len(blocked)} were blocked: "
            f"{listing[:10_000]}",
            # A blocked shard stays blocked on a retry; a failed one may succeed.
            allow_retries=bool(failed),
        )


def _refuse_more_assets(context: dg.AssetExecutionContext) -> None:
    """Fail if the run has other assets, which would wait for an output."""
    chosen = context.run.asset_selection or context.job_def.asset_layer.executable_asset_keys
    others = sorted(key.to_user_string() for key in set(chosen) - {context.asset_key})
    if others:
        raise dg.Failure(
            f"A run over several shards makes one asset; this one is to make {', '.join(others)}, "
            "too. Select one asset after the other, or launch a run for each shard (automation "
            "does the former).",
            allow_retries=False,
        )


def _record(
    context: dg.AssetExecutionContext,
    storage: Storage,
    shard: str,
    made: ShardTable,
    check: Check | None,
) -> list[str]:
    """Write and record one shard; return the objections of its blocking checks."""
    key = context.asset_key
    path = table_path(storage, key, shard)
    table = made.table
    digest = write_table(path, table)
    schema = table.schema if table.schema is not None else {}
    descriptions = context.assets_def.metadata_by_key[key].get("descriptions", {})
    metadata = {
        name: value
        for name, value in made.metadata.items()
        if not isinstance(value, dg.NullMetadataValue)
    }
    context.log_event(
        dg.AssetMaterialization(
            key,
            partition=shard,
            metadata={
                **metadata,
                "path": dg.MetadataValue.path(str(path)),
                FILE_DIGEST: digest,
                "dagster/column_schema": describe_columns(schema, descriptions),
            },
            tags={
                **provenance(context, key, shard),
                DATA_VERSION: made.data_version,
            },
        )
    )
    if check is None:
        return []
    # Another run may have made the shard in between, with other rows than those checked here.
    materialization = latest_materialization(context.instance, key, shard, context.run_id)
    if materialization is None:
        context.log.warning(f"Shard {shard!r} was made by another run meanwhile; not checked here.")
        return []
    objections = []
    for result in check(shard, made):
        blocking = result.check_name in BLOCKING
        context.log_event(check_evaluation(result, shard, materialization, blocking=blocking))
        if blocking and not result.passed and result.severity == dg.AssetCheckSeverity.ERROR:
            objections.append(str(result.description or result.check_name))
    return objections

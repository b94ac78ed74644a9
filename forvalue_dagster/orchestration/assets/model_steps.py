"""The assets that need forward passes: the validation profile and each shard's features."""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import dagster as dg
import polars as pl

from forvalue_dagster.data.read import DESCRIPTIONS
from forvalue_dagster.engine.columns import COLUMN_DESCRIPTIONS
from forvalue_dagster.orchestration.assets.feature_step import (
    FEATURE_ROWS,
    parts_of,
    pass_shard,
    worker_job,
)
from forvalue_dagster.orchestration.assets.shards import ShardTable, materialize_shards
from forvalue_dagster.orchestration.automation.conditions import behind_checks
from forvalue_dagster.orchestration.display.describe import describe_probe, outcome_counts
from forvalue_dagster.orchestration.display.plots import histogram
from forvalue_dagster.orchestration.display.progress import engine_warnings, log_progress
from forvalue_dagster.orchestration.naming import Naming, code_version
from forvalue_dagster.orchestration.options.plan import Plan
from forvalue_dagster.orchestration.options.resources import (
    FEATURE_SETTINGS,
    PROFILE_SETTINGS,
    Valuation,
    settings,
)
from forvalue_dagster.orchestration.trained_adapter import (
    adapter_pointer,
    model_dependency,
    trained_adapter,
)
from forvalue_dagster.storage.feature_store import FeatureStore
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.storage.parquet import (
    describe_columns,
    scan_table,
    table_path,
    unchanged,
)
from forvalue_dagster.storage.parts import StoredParts
from forvalue_dagster.storage.tensors import TensorFile

# One type for all instances: names of types must be unique in a project.
_PARTS = dg.PythonObjectDagsterType(StoredParts)


def build_profile_asset(naming: Naming, plan: Plan, valuation: Valuation) -> dg.AssetsDefinition:
    """Build `validation_profile`."""

    @dg.asset(
        key=naming.key("validation_profile"),
        ins={"validation_data": dg.AssetIn(key=naming.key("validation_data"))},
        deps=model_dependency(naming, plan),
        group_name=naming.group,
        kinds={"torch", "safetensors"},
        io_manager_key=naming.resource("tensor_io_manager"),
        code_version=code_version(settings(valuation, PROFILE_SETTINGS)),
        description="A summary of the validation rows for scoring: mean gradient of each group, "
        "second moment of the hidden states, forward statistics, token features.",
        automation_condition=behind_checks(ignoring=naming.files),
        pool=plan.compute.pool_of("validation_profile"),
        op_tags=plan.compute.tags("validation_profile"),
        retry_policy=plan.compute.retry_policy,
    )
    @naming.own
    def validation_profile(
        context: dg.AssetExecutionContext,
        validation_data: pl.DataFrame,
        valuation: Valuation,
        storage: Storage,
    ) -> dg.Output[TensorFile]:
        from forvalue_dagster.engine.scoring import build_profile

        adapter = trained_adapter(naming, plan, storage)
        with engine_warnings(context.log), valuation.session(adapter) as loaded:
            profile, outcome = build_profile(
                loaded,
                validation_data,
                valuation.options(),
                log_progress(context.log, len(validation_data)),
            )
        probe = profile.noise
        context.set_data_version(context.asset_key, dg.DataVersion(profile.identity))
        return dg.Output(
            TensorFile(*profile.to_tensors()),
            metadata={
                **outcome_counts(outcome),
                "groups": ", ".join(
                    f"{group} ({count})"
                    for group, count in zip(profile.groups, profile.counts, strict=True)
                ),
                "model": valuation.name,
                "fingerprint": dg.MetadataValue.text(profile.fingerprint),
                "identity": profile.identity,
                "nll": histogram(
                    {"validation rows": pl.Series(profile.statistics["nll"].numpy())},
                    title="Mean response NLL of the validation rows",
                    unit="nats per token",
                ),
                **(describe_probe(probe) if probe is not None else {"noise_probe": "none"}),
            },
        )

    return validation_profile


def build_feature_asset(naming: Naming, plan: Plan, valuation: Valuation) -> dg.AssetsDefinition:
    """Build `sample_features`, with one partition for each shard."""
    key = naming.key("sample_features")
    raw_key = naming.key("raw_finetuning_data")

    decorate: Callable[..., Callable[[Callable[..., Any]], dg.AssetsDefinition]] = partial(
        dg.asset,
        key=key,
        group_name=naming.group,
        kinds={"torch", "parquet"},
        partitions_def=naming.shards,
        io_manager_key=naming.resource("parquet_io_manager"),
        code_version=code_version(settings(valuation, FEATURE_SETTINGS)),
        metadata={"descriptions": DESCRIPTIONS | COLUMN_DESCRIPTIONS},
        description="Features of each row from one forward pass, which do not depend on the "
        "validation set: statistics, and for each response token the rounded last hidden state "
        "and the largest prediction errors.",
        automation_condition=behind_checks(ignoring=naming.files),
        pool=plan.compute.pool_of("sample_features"),
        op_tags=plan.compute.tags("sample_features"),
        retry_policy=plan.compute.retry_policy,
    )

    @decorate(
        ins={"raw_finetuning_data": dg.AssetIn(key=raw_key)},
        deps=model_dependency(naming, plan),
        dagster_type=_PARTS,
        backfill_policy=plan.automation.many_shards,
        output_required=False,
    )
    @naming.own
    def sample_features(
        context: dg.AssetExecutionContext,
        raw_finetuning_data: dict[str, pl.LazyFrame],
        valuation: Valuation,
        storage: Storage,
    ) -> Iterator[dg.Output[Any]]:
        folder = storage.path(*key.path)
        ids = pl.concat(rows.select("sample_id") for rows in raw_finetuning_data.values())
        store = FeatureStore(storage, folder, ids.collect()["sample_id"].drop_nulls().unique())
        adapter = trained_adapter(naming, plan, storage)

        def is_over(run_id: str) -> bool:
            run = context.instance.get_run_by_id(run_id)
            return run is None or run.is_finished

        with engine_warnings(context.log), valuation.session(adapter) as loaded:

            def make(shard: str) -> ShardTable:
                with unchanged(table_path(storage, raw_key, shard)):
                    rows = raw_finetuning_data[shard].collect()
                parts = parts_of(folder, shard, context.run_id, rows)
                done = pass_shard(loaded, rows, parts, store, valuation, context.log)
                parts.sweep(is_over)
                metadata = {**done.figures, **outcome_counts(done.lines), "nll": _nll(done.lines)}
                return ShardTable(parts, metadata, done.data_version)

            yield from materialize_shards(context, storage, make, made=store.refresh)

    if plan.compute.worker is None:
        return sample_features
    worker = plan.compute.worker

    @decorate(
        deps=[raw_key, *model_dependency(naming, plan)],
        check_specs=[
            dg.AssetCheckSpec(
                FEATURE_ROWS,
                asset=key,
                blocking=True,
                partitions_def=naming.shards,
                description="Every row of the shard is in its feature table.",
            )
        ],
    )
    @naming.own
    def features_of_worker(
        context: dg.AssetExecutionContext, valuation: Valuation, storage: Storage
    ) -> Iterator[Any]:
        shard = context.partition_key
        features = table_path(storage, key, shard)
        rows = table_path(storage, raw_key, shard)
        adapter = adapter_pointer(naming, storage) if plan.warm_up is not None else None
        job = worker_job(rows, features, context.run_id, valuation, storage, adapter)
        # Only a shard that the worker reported counts as made.
        results = worker(context, job).get_results(implicit_materializations=False)
        schema = scan_table(storage, features, checked=True).collect_schema()
        columns = describe_columns(schema, DESCRIPTIONS | COLUMN_DESCRIPTIONS)
        context.add_output_metadata({"dagster/column_schema": columns}, output_name="result")
        yield from results

    return features_of_worker


def _nll(lines: pl.DataFrame) -> dg.MetadataValue:
    return histogram({"rows": lines["nll"]}, title="Mean response NLL", unit="nats per token")

"""Optional assets that name, row by row, the training rows behind the model's answers."""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import dagster as dg
import polars as pl

from forvalue_dagster.data.digest import digest
from forvalue_dagster.engine.columns import ATTRIBUTION_COLUMNS
from forvalue_dagster.options.selection import Attribution
from forvalue_dagster.orchestration.assets.shards import ShardTable, materialize_shards
from forvalue_dagster.orchestration.automation.conditions import behind_checks, fan_in
from forvalue_dagster.orchestration.checks.judging import stored_profile
from forvalue_dagster.orchestration.naming import Naming, code_version
from forvalue_dagster.orchestration.options.plan import Plan
from forvalue_dagster.orchestration.options.resources import Valuation
from forvalue_dagster.orchestration.trained_adapter import trained_adapter
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.storage.tensors import TensorFile


def build_attribution_assets(
    naming: Naming, plan: Plan, attribution: Attribution
) -> list[dg.AssetsDefinition]:
    """Build `validation_attribution` over all shards and `training_attribution` for each."""
    decorate: Callable[..., Callable[[Callable[..., Any]], dg.AssetsDefinition]] = partial(
        dg.asset,
        group_name=naming.group,
        io_manager_key=naming.resource("parquet_io_manager"),
        kinds={"polars", "parquet"},
        metadata={"descriptions": ATTRIBUTION_COLUMNS},
    )
    features, rows = naming.key("sample_features"), naming.key("raw_finetuning_data")
    against = {
        "validation_profile": dg.AssetIn(key=naming.key("validation_profile")),
        "validation_data": dg.AssetIn(key=naming.key("validation_data")),
    }
    every_shard = {"allow_missing_partitions": True}

    @decorate(
        key=naming.key("training_attribution"),
        code_version=code_version({"top": attribution.top}),
        ins={"sample_features": dg.AssetIn(key=features), **against},
        partitions_def=naming.shards,
        description="For each training row, the validation rows that it helps and hurts most.",
        dagster_type=pl.DataFrame,
        automation_condition=behind_checks(ignoring=naming.files),
        backfill_policy=plan.automation.many_shards,
        output_required=False,
    )
    @naming.own
    def training_attribution(
        context: dg.AssetExecutionContext,
        sample_features: dict[str, pl.LazyFrame],
        validation_profile: TensorFile,
        validation_data: pl.DataFrame,
        valuation: Valuation,
        storage: Storage,
    ) -> Iterator[dg.Output[Any]]:
        from forvalue_dagster.engine.attribution import attribute

        validation = _profiled(validation_data, validation_profile)

        def make(shard: str) -> ShardTable:
            pairs = _pairs([sample_features[shard]], validation_profile, valuation)
            table = attribute(pairs, validation, attribution.top, "training")
            return ShardTable(table, {"dagster/partition_row_count": len(table)}, digest(table))

        yield from materialize_shards(context, storage, make)

    @decorate(
        key=naming.key("validation_attribution"),
        code_version=code_version(attribution.model_dump()),
        ins={
            "sample_features": dg.AssetIn(key=features, metadata=every_shard),
            "raw_finetuning_data": dg.AssetIn(key=rows, metadata=every_shard),
            **against,
        },
        description="For each validation row, the training rows of all shards that help and hurt "
        "it most.",
        automation_condition=fan_in("exclude", ignoring=naming.files, shared=naming.shared),
        pool=plan.compute.pool_of("validation_attribution") if attribution.exact else None,
        op_tags=plan.compute.tags("validation_attribution") if attribution.exact else None,
        retry_policy=plan.compute.retry_policy if attribution.exact else None,
    )
    @naming.own
    def validation_attribution(
        sample_features: dict[str, pl.LazyFrame],
        raw_finetuning_data: dict[str, pl.LazyFrame],
        validation_profile: TensorFile,
        validation_data: pl.DataFrame,
        valuation: Valuation,
        storage: Storage,
    ) -> pl.DataFrame:
        from forvalue_dagster.engine.attribution import attribute, pairwise, refine_attribution

        tables = [table for _, table in sorted(sample_features.items())]
        pairs = _pairs(tables, validation_profile, valuation)
        validation = _profiled(validation_data, validation_profile)
        if not attribution.exact:
            return attribute(pairs, validation, attribution.top, "validation")
        candidates = attribute(pairs, validation, 2 * attribution.top, "validation")
        rows = pl.concat(raw_finetuning_data.values(), how="diagonal_relaxed")
        with valuation.session(trained_adapter(naming, plan, storage)) as loaded:

            def exact(places: pl.DataFrame) -> Any:
                chosen = places.lazy().join(
                    rows, on=["shard", "row"], how="left", maintain_order="left"
                )
                return pairwise(loaded, chosen.collect(), validation, valuation.options())

            return refine_attribution(candidates, exact, validation, attribution.top)

    return [training_attribution, validation_attribution]


def _pairs(tables: list[pl.LazyFrame], profile: TensorFile, valuation: Valuation) -> Iterator[Any]:
    from forvalue_dagster.engine.attribution import pairs_from_features

    stored = stored_profile(profile)
    for table in tables:
        yield from pairs_from_features(table, stored, valuation.options())


def _profiled(validation: pl.DataFrame, profile: TensorFile) -> pl.DataFrame:
    """Return the validation rows that the profile holds, in its order."""
    return validation[profile.tensors["rows"].tolist()]

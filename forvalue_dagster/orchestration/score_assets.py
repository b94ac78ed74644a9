"""The value scores of each shard, from stored features or by a pass of their own."""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

from collections.abc import Callable
from functools import partial
from typing import Any

import dagster as dg
import polars as pl

from forvalue_dagster.data.read import DESCRIPTIONS
from forvalue_dagster.engine.columns import COLUMN_DESCRIPTIONS
from forvalue_dagster.orchestration.describe import EXTREMES, extremes, outcome_counts, share
from forvalue_dagster.orchestration.naming import CODE_VERSION, Naming, Plan
from forvalue_dagster.orchestration.plots import histogram
from forvalue_dagster.orchestration.progress import engine_warnings, log_progress
from forvalue_dagster.orchestration.resources import Valuation
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.orchestration.warm_up import model_dependency, trained_adapter
from forvalue_dagster.quality.distribution import ValueHistogram
from forvalue_dagster.quality.standing import latest_materialization
from forvalue_dagster.storage.tensors import TensorFile

# Metadata: how values are spread, and how they were when the shard was last valued.
HISTOGRAM = "value_histogram"


def build_score_asset(naming: Naming, plan: Plan) -> dg.AssetsDefinition:
    """Build `value_scores`, a partition each shard."""
    decorate: Callable[..., Callable[[Callable[..., Any]], dg.AssetsDefinition]] = partial(
        dg.asset,
        key=naming.key("value_scores"),
        group_name=naming.group,
        partitions_def=naming.shards,
        io_manager_key="parquet_io_manager",
        code_version=CODE_VERSION,
        metadata={"descriptions": DESCRIPTIONS | COLUMN_DESCRIPTIONS},
        description="How much a gradient step on each row raises the likelihood of the "
        "validation rows.",
    )
    features_in = dg.AssetIn(key=naming.key("sample_features"))
    rows_in = dg.AssetIn(key=naming.key("raw_finetuning_data"))
    profile_in = dg.AssetIn(key=naming.key("validation_profile"))

    @decorate(
        ins={"sample_features": features_in, "validation_profile": profile_in},
        kinds={"polars", "parquet"},
    )
    def scores_from_features(
        context: dg.AssetExecutionContext,
        sample_features: pl.LazyFrame,
        validation_profile: TensorFile,
        valuation: Valuation,
    ) -> pl.DataFrame:
        from forvalue_dagster.engine.feature_scoring import score_features
        from forvalue_dagster.valuation.profile import ValidationProfile

        profile = ValidationProfile.from_tensors(
            validation_profile.tensors, validation_profile.metadata
        )
        rows = sample_features.select(pl.len()).collect().item()
        progress = log_progress(context.log, rows)
        scores = score_features(
            sample_features, profile, valuation.options(), progress, overwrite=True
        )
        return _described(context, naming, scores)

    @decorate(
        ins={"raw_finetuning_data": rows_in, "validation_profile": profile_in},
        deps=model_dependency(naming, plan),
        kinds={"torch", "parquet"},
        pool=plan.pool,
        op_tags=plan.op_tags,
    )
    def exact_scores(
        context: dg.AssetExecutionContext,
        raw_finetuning_data: pl.DataFrame,
        validation_profile: TensorFile,
        valuation: Valuation,
        storage: Storage,
    ) -> pl.DataFrame:
        from forvalue_dagster.engine.scoring import score_rows
        from forvalue_dagster.valuation.profile import ValidationProfile

        profile = ValidationProfile.from_tensors(
            validation_profile.tensors, validation_profile.metadata
        )
        progress = log_progress(context.log, len(raw_finetuning_data))
        adapter = trained_adapter(naming, plan, storage)
        with engine_warnings(context.log), valuation.session(adapter) as loaded:
            on_device = profile.to(loaded.device)
            scores = score_rows(
                loaded, raw_finetuning_data, on_device, valuation.options(), progress
            )
        return _described(context, naming, scores)

    return exact_scores if plan.scoring == "exact" else scores_from_features


def _described(
    context: dg.AssetExecutionContext, naming: Naming, scores: pl.DataFrame
) -> pl.DataFrame:
    before = latest_materialization(
        context.instance, naming.key("value_scores"), context.partition_key
    )
    previous = before.metadata.get(HISTOGRAM) if before else None
    ranked = scores.filter(pl.col("status") == "scored").sort("value", descending=True)
    context.add_output_metadata(
        {
            **outcome_counts(scores),
            **({f"previous_{HISTOGRAM}": previous} if previous is not None else {}),
            **({HISTOGRAM: now.to_json()} if (now := ValueHistogram.of(ranked["value"])) else {}),
            "harmful_share": share(ranked["value"] < 0),
            "values": histogram(
                {"rows": scores["value"]}, title="Value of the shard's rows", unit="value"
            ),
            "most_valuable": extremes(ranked.head(EXTREMES)),
            "least_valuable": extremes(ranked.tail(EXTREMES).reverse()),
        }
    )
    return scores

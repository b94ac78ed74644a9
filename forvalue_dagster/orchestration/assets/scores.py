"""The asset `value_scores`: scores of each shard, from stored features or a forward pass."""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import dagster as dg
import polars as pl

from forvalue_dagster.data.digest import digest
from forvalue_dagster.data.read import DESCRIPTIONS
from forvalue_dagster.engine.columns import COLUMN_DESCRIPTIONS
from forvalue_dagster.orchestration.assets.shards import ShardTable, materialize_shards
from forvalue_dagster.orchestration.automation.conditions import behind_checks
from forvalue_dagster.orchestration.checks.judging import StoredProbe, stored_profile
from forvalue_dagster.orchestration.checks.scores import HISTOGRAM, ScoreJudge
from forvalue_dagster.orchestration.display.describe import (
    EXTREMES,
    extremes,
    outcome_counts,
    share,
)
from forvalue_dagster.orchestration.display.plots import histogram
from forvalue_dagster.orchestration.display.progress import engine_warnings, log_progress
from forvalue_dagster.orchestration.display.thumbnails import thumbnails
from forvalue_dagster.orchestration.naming import Naming, code_version, resolved
from forvalue_dagster.orchestration.options.plan import Plan
from forvalue_dagster.orchestration.options.policies import (
    NOT_OF_SHARDS,
    GatePolicy,
    WarningPolicy,
)
from forvalue_dagster.orchestration.options.resources import (
    FEATURE_SETTINGS,
    SCORE_SETTINGS,
    Valuation,
    settings,
)
from forvalue_dagster.orchestration.trained_adapter import model_dependency, trained_adapter
from forvalue_dagster.quality.distribution import ValueHistogram
from forvalue_dagster.quality.standing import latest_materialization
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.storage.parquet import scan_table, table_path, unchanged
from forvalue_dagster.storage.tensors import TensorFile


def build_score_asset(
    naming: Naming, plan: Plan, valuation: Valuation, gate: GatePolicy
) -> dg.AssetsDefinition:
    """Build `value_scores`, with one partition for each shard."""
    decisive = SCORE_SETTINGS if plan.scoring == "features" else FEATURE_SETTINGS + SCORE_SETTINGS
    decorate: Callable[..., Callable[[Callable[..., Any]], dg.AssetsDefinition]] = partial(
        dg.asset,
        key=naming.key("value_scores"),
        group_name=naming.group,
        partitions_def=naming.shards,
        io_manager_key=naming.resource("parquet_io_manager"),
        dagster_type=pl.DataFrame,
        # With the gate's rules, which the checks of the scores apply.
        code_version=code_version(
            settings(valuation, decisive),
            plan.scoring,
            resolved(gate, without=NOT_OF_SHARDS),
        ),
        metadata={"descriptions": DESCRIPTIONS | COLUMN_DESCRIPTIONS},
        description="How much a gradient step on each row raises the likelihood of the "
        "validation rows.",
        backfill_policy=plan.automation.many_shards,
        output_required=False,
    )
    raw_key = naming.key("raw_finetuning_data")
    profile_in = dg.AssetIn(key=naming.key("validation_profile"))

    def shard_scores(
        context: dg.AssetExecutionContext,
        storage: Storage,
        score: Callable[[str], pl.DataFrame],
        judge: ScoreJudge | None,
        shown: int,
    ) -> Iterator[dg.Output[Any]]:
        def make(shard: str) -> ShardTable:
            scores = score(shard).sort("row")
            metadata = _describe(context, scores, shard)
            if shown and context.has_partition_key:
                rows = scan_table(storage, table_path(storage, raw_key, shard))
                metadata |= thumbnails(scores, rows, shown)
            return ShardTable(scores, metadata, digest(scores))

        def check(shard: str, made: ShardTable) -> Iterator[dg.AssetCheckResult]:
            assert judge is not None
            assert isinstance(made.table, pl.DataFrame)
            path = table_path(storage, raw_key, shard)
            with unchanged(path):
                rows = scan_table(storage, path).collect()
            before = made.metadata.get(f"previous_{HISTOGRAM}")
            return judge.check(shard, made.table, rows, before)

        yield from materialize_shards(context, storage, make, check)

    @decorate(
        ins={
            "sample_features": dg.AssetIn(key=naming.key("sample_features")),
            "validation_profile": profile_in,
        },
        kinds={"polars", "parquet"},
        automation_condition=behind_checks(ignoring=naming.files),
    )
    @naming.own
    def scores_from_features(
        context: dg.AssetExecutionContext,
        sample_features: dict[str, pl.LazyFrame],
        validation_profile: TensorFile,
        valuation: Valuation,
        gate: GatePolicy,
        warnings: WarningPolicy,
        storage: Storage,
    ) -> Iterator[dg.Output[Any]]:
        from forvalue_dagster.engine.feature_scoring import FeatureScoring

        scoring = FeatureScoring.of(
            stored_profile(validation_profile), valuation.options(), overwrite=True
        )

        def score(shard: str) -> pl.DataFrame:
            features = sample_features[shard]
            with unchanged(table_path(storage, naming.key("sample_features"), shard)):
                rows = features.select(pl.len()).collect().item()
                return scoring.score(features, log_progress(context.log, rows))

        judge = _judge(context, naming, storage, validation_profile, gate, warnings)
        yield from shard_scores(context, storage, score, judge, valuation.thumbnails)

    @decorate(
        ins={
            "raw_finetuning_data": dg.AssetIn(key=raw_key),
            "validation_profile": profile_in,
        },
        deps=model_dependency(naming, plan),
        kinds={"torch", "parquet"},
        pool=plan.compute.pool_of("value_scores"),
        op_tags=plan.compute.tags("value_scores"),
        retry_policy=plan.compute.retry_policy,
        automation_condition=behind_checks(ignoring=naming.files),
    )
    @naming.own
    def exact_scores(
        context: dg.AssetExecutionContext,
        raw_finetuning_data: dict[str, pl.LazyFrame],
        validation_profile: TensorFile,
        valuation: Valuation,
        gate: GatePolicy,
        warnings: WarningPolicy,
        storage: Storage,
    ) -> Iterator[dg.Output[Any]]:
        from forvalue_dagster.engine.scoring import score_rows

        adapter = trained_adapter(naming, plan, storage)
        judge = _judge(context, naming, storage, validation_profile, gate, warnings)
        with engine_warnings(context.log), valuation.session(adapter) as loaded:
            profile = stored_profile(validation_profile).to(loaded.device)

            def score(shard: str) -> pl.DataFrame:
                with unchanged(table_path(storage, raw_key, shard)):
                    rows = raw_finetuning_data[shard].collect()
                progress = log_progress(context.log, len(rows))
                return score_rows(loaded, rows, profile, valuation.options(), progress)

            yield from shard_scores(context, storage, score, judge, valuation.thumbnails)

    return exact_scores if plan.scoring == "exact" else scores_from_features


def _judge(
    context: dg.AssetExecutionContext,
    naming: Naming,
    storage: Storage,
    profile: TensorFile,
    gate: GatePolicy,
    warnings: WarningPolicy,
) -> ScoreJudge | None:
    """Return the checks for a run over many shards; a single shard's checks have own steps."""
    if context.has_partition_key:
        return None
    path = storage.path(*naming.key("validation_data").path).with_suffix(".parquet")
    validation = scan_table(storage, path).collect()
    return ScoreJudge(context.asset_key, StoredProbe.of(profile), validation, gate, warnings)


def _describe(
    context: dg.AssetExecutionContext, scores: pl.DataFrame, shard: str
) -> dict[str, Any]:
    before = latest_materialization(context.instance, context.asset_key, shard)
    previous = before.metadata.get(HISTOGRAM) if before else None
    ranked = scores.filter(pl.col("status") == "scored").sort("value", descending=True)
    now = ValueHistogram.of(ranked["value"])
    return {
        "values": histogram(
            {"rows": scores["value"]}, title="Value of the shard's rows", unit="value"
        ),
        "harmful_share": share(ranked["value"] < 0),
        **outcome_counts(scores),
        "most_valuable": extremes(ranked.head(EXTREMES)),
        "least_valuable": extremes(ranked.tail(EXTREMES).reverse()),
        "dagster/partition_row_count": len(scores),
        # For the next materialisation, not for people, so at the end.
        **({HISTOGRAM: now.to_json()} if now else {}),
        **({f"previous_{HISTOGRAM}": previous} if previous is not None else {}),
    }

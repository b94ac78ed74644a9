"""The check `feature_fidelity`: do values from features rank rows like exact values?"""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

import dagster as dg
import polars as pl

from forvalue_dagster.orchestration.checks.judging import stored_profile
from forvalue_dagster.orchestration.naming import Naming
from forvalue_dagster.orchestration.options.plan import Plan
from forvalue_dagster.orchestration.options.resources import Valuation
from forvalue_dagster.orchestration.trained_adapter import trained_adapter
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.storage.tensors import TensorFile

FIDELITY = "feature_fidelity"


def build_fidelity_check(naming: Naming, plan: Plan) -> dg.AssetChecksDefinition:
    """Build `feature_fidelity`, which values a sample of each shard exactly, and only warns."""
    scores_key = naming.key("value_scores")

    @dg.asset_check(
        asset=scores_key,
        name=FIDELITY,
        blocking=False,
        partitions_def=naming.shards,
        additional_ins={
            "raw_finetuning_data": dg.AssetIn(key=naming.key("raw_finetuning_data")),
            "validation_profile": dg.AssetIn(key=naming.key("validation_profile")),
        },
        description="On a sample of the shard's rows, values from features give the same ranking "
        "as exact values.",
        pool=plan.compute.pool_of(FIDELITY),
        op_tags=plan.compute.tags(FIDELITY),
        retry_policy=plan.compute.retry_policy,
    )
    @naming.own
    def feature_fidelity(
        value_scores: pl.DataFrame,
        raw_finetuning_data: pl.LazyFrame,
        validation_profile: TensorFile,
        valuation: Valuation,
        storage: Storage,
    ) -> dg.AssetCheckResult:
        from forvalue_dagster.engine.fidelity import measure_fidelity, seeded_sample
        from forvalue_dagster.engine.scoring import score_rows

        scored = value_scores.filter(pl.col("status") == "scored")
        sample = seeded_sample(scored, valuation.fidelity_rows)
        if len(sample) < 2:
            return dg.AssetCheckResult(
                passed=True, description="Fewer than two scored rows: no order to compare."
            )
        rows = raw_finetuning_data.join(
            sample.lazy().select("shard", "row"), on=["shard", "row"], how="semi"
        ).collect()
        profile = stored_profile(validation_profile)
        with valuation.session(trained_adapter(naming, plan, storage)) as loaded:
            exact = score_rows(loaded, rows, profile.to(loaded.device), valuation.options())
        fidelity = measure_fidelity(sample, exact)
        passed = fidelity.spearman >= valuation.min_fidelity
        return dg.AssetCheckResult(
            passed=passed,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"Rank correlation {fidelity.spearman:.4f} with the exact values of "
            f"{fidelity.rows} rows, {'at least' if passed else 'below'} {valuation.min_fidelity}; "
            f"{fidelity.top_overlap:.0%} of their top tenth is the same.",
            metadata={
                "spearman": round(fidelity.spearman, 5),
                "top_overlap": round(fidelity.top_overlap, 3),
                "largest_error": round(fidelity.largest_error, 6),
                "rows": fidelity.rows,
            },
        )

    return feature_fidelity

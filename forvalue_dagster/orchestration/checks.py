"""Asset checks: expectations on rows, nothing lost, and the noise gate of each shard."""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

from collections.abc import Iterator

import dagster as dg
import polars as pl

from forvalue_dagster.orchestration.naming import Naming, Plan
from forvalue_dagster.orchestration.plots import histogram
from forvalue_dagster.orchestration.resources import GatePolicy, Storage, Valuation
from forvalue_dagster.orchestration.warm_up import trained_adapter
from forvalue_dagster.quality.verdicts import judge_shard
from forvalue_dagster.storage.tensors import TensorFile

ROW_EXPECTATIONS = "row_expectations"
ROW_CONSERVATION = "row_conservation"
NOISE_GATE = "noise_gate"
FIDELITY = "feature_fidelity"


def build_row_checks(naming: Naming) -> list[dg.AssetChecksDefinition]:
    """Build `row_expectations` of the raw rows and of the validation rows."""

    def expectations(name: str, shards: dg.PartitionsDefinition | None) -> dg.AssetChecksDefinition:
        @dg.asset_check(
            asset=naming.key(name),
            name=ROW_EXPECTATIONS,
            blocking=True,
            partitions_def=shards,
            description="Great Expectations on the rows: present, unique by place, readable, with "
            "a response, no duplicates.",
        )
        def row_expectations(rows: pl.DataFrame) -> dg.AssetCheckResult:
            from forvalue_dagster.quality.expectations import (
                checked_columns,
                default_suite,
                validate,
            )

            return validate(checked_columns(rows), default_suite())

        return row_expectations

    return [
        expectations("raw_finetuning_data", naming.shards),
        expectations("validation_data", None),
    ]


def build_score_checks(naming: Naming) -> list[dg.AssetChecksDefinition]:
    """Build `row_conservation` and `noise_gate`, one verdict each shard, in one step."""
    scores_key, shards = naming.key("value_scores"), naming.shards

    @dg.multi_asset_check(
        name=naming.name("score_checks"),
        specs=[
            dg.AssetCheckSpec(
                ROW_CONSERVATION,
                asset=scores_key,
                blocking=True,
                partitions_def=shards,
                additional_deps=[naming.key("raw_finetuning_data")],
                description="Every raw row is scored or skipped with a reason, once.",
            ),
            dg.AssetCheckSpec(
                NOISE_GATE,
                asset=scores_key,
                blocking=True,
                partitions_def=shards,
                description="The estimated share of noisy rows is within the limit: rows whose "
                "mean response NLL exceeds that of 95 % of the validation rows, beyond the 5 % "
                "expected.",
            ),
        ],
        ins={
            "value_scores": dg.AssetIn(key=scores_key),
            "raw_finetuning_data": dg.AssetIn(key=naming.key("raw_finetuning_data")),
        },
    )
    def score_checks(
        context: dg.AssetCheckExecutionContext,
        value_scores: pl.DataFrame,
        raw_finetuning_data: pl.LazyFrame,
        gate: GatePolicy,
    ) -> Iterator[dg.AssetCheckResult]:
        places = raw_finetuning_data.select("shard", "row").collect()
        yield check_conservation(scores_key, value_scores, places)
        yield check_noise(scores_key, context.partition_key, value_scores, gate.max_noise_share)

    return [score_checks]


def check_conservation(
    key: dg.AssetKey, scores: pl.DataFrame, places: pl.DataFrame
) -> dg.AssetCheckResult:
    """Compare the scored and skipped rows with the raw ones, place by place."""
    missing = places.join(scores, on=["shard", "row"], how="anti").height
    strange = scores.join(places, on=["shard", "row"], how="anti").height
    repeated = scores.height - scores.select("shard", "row").n_unique()
    scored = scores.filter(pl.col("status") == "scored")
    explained = scores.filter((pl.col("status") == "skipped") & pl.col("reason").is_not_null())
    values = scored["value"]
    unexplained = scores.height - scored.height - explained.height
    not_finite = values.len() - int(values.is_finite().fill_null(False).sum())
    problems = {
        "rows without a score": missing,
        "scores without a row": strange,
        "rows scored twice": repeated,
        "rows skipped without a reason": unexplained,
        "scored rows without a finite value": not_finite,
    }
    wrong = [f"{count} {what}" for what, count in problems.items() if count]
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=ROW_CONSERVATION,
        passed=not wrong,
        description="; ".join(wrong)
        or f"{places.height} rows in = {scored.height} scored + {explained.height} skipped.",
        metadata={
            "rows_in": places.height,
            "scored": scored.height,
            "skipped": explained.height,
        },
    )


def check_noise(
    key: dg.AssetKey, shard: str, scores: pl.DataFrame, max_noise_share: float
) -> dg.AssetCheckResult:
    """Report the shard's verdict."""
    verdict = judge_shard(shard, scores, max_noise_share)
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=NOISE_GATE,
        passed=verdict.passed,
        description=f"{verdict.summary[0].upper()}{verdict.summary[1:]}.",
        metadata={
            "noise_share": round(verdict.noise_share, 4),
            "max_noise_share": max_noise_share,
            "scored": verdict.scored,
            "nll": histogram(
                {
                    "like the validation rows": scores.filter(~pl.col("atypical_nll"))["nll"],
                    "above 95 % of them": scores.filter("atypical_nll")["nll"],
                },
                title="Mean response NLL of the shard's rows",
                unit="nats per token",
            ),
        },
    )


def build_fidelity_check(naming: Naming, plan: Plan) -> dg.AssetChecksDefinition:
    """Build `feature_fidelity`, which values a sample of each shard exactly and warns."""
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
        description="Values from features rank a seeded sample of the shard's rows as exact "
        "values do.",
        pool=plan.pool,
        op_tags=plan.op_tags,
    )
    def feature_fidelity(
        value_scores: pl.DataFrame,
        raw_finetuning_data: pl.LazyFrame,
        validation_profile: TensorFile,
        valuation: Valuation,
        storage: Storage,
    ) -> dg.AssetCheckResult:
        from forvalue_dagster.engine.fidelity import measure_fidelity, seeded_sample
        from forvalue_dagster.engine.scoring import score_rows
        from forvalue_dagster.valuation.profile import ValidationProfile

        scored = value_scores.filter(pl.col("status") == "scored")
        sample = seeded_sample(scored, valuation.fidelity_rows)
        if len(sample) < 2:
            return dg.AssetCheckResult(
                passed=True, description="Fewer than two scored rows: no order to compare."
            )
        rows = raw_finetuning_data.join(
            sample.lazy().select("shard", "row"), on=["shard", "row"], how="semi"
        ).collect()
        profile = ValidationProfile.from_tensors(
            validation_profile.tensors, validation_profile.metadata
        )
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

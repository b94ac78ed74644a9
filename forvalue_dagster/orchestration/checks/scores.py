"""Asset checks on value scores: row conservation, leakage, each shard's noise gate, warnings.

Leakage is checked here and not on the raw rows, because it must be checked again for a new
validation set, which leads to new scores but not to new rows.
"""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg
import polars as pl

from forvalue_dagster.options.gate import GateRules
from forvalue_dagster.orchestration.checks.judging import StoredProbe
from forvalue_dagster.orchestration.display.describe import (
    EXTREMES,
    MAX_ROWS_LISTED,
    listing,
    outcome_counts,
    share,
)
from forvalue_dagster.orchestration.display.plots import histogram
from forvalue_dagster.orchestration.naming import (
    BLOCKING,
    LEAKAGE,
    NOISE_FRACTION,
    ROW_CONSERVATION,
    Naming,
)
from forvalue_dagster.orchestration.options.policies import GatePolicy, WarningPolicy
from forvalue_dagster.quality.distribution import ValueHistogram, stability_index
from forvalue_dagster.quality.standing import latest_materialization
from forvalue_dagster.quality.verdicts import ShardVerdict
from forvalue_dagster.storage.tensors import TensorFile

# Metadata keys: the distribution of values now, and when the shard was last valued.
HISTOGRAM = "value_histogram"
NEAR_LEAKAGE = "validation_near_leakage"
NOISE_WARNING = "noise_warning"
VALUE_DISTRIBUTION = "value_distribution"
TRUNCATION = "truncation"
SKIPPED = "skipped"

_CHECKS = {
    ROW_CONSERVATION: "Every raw row is scored or skipped with a reason, once.",
    LEAKAGE: "No training row equals or contains a validation row. Letter case, width, "
    "punctuation, accents, invisible characters and look-alike letters are ignored.",
    NEAR_LEAKAGE: "No training row has a validation row's prompt, or most of its words in the "
    "same order.",
    NOISE_FRACTION: "The lower end of the 95 % interval of the share of noisy rows is within the "
    "limit, the noise probe is reliable, there are enough rows of known kinds, and the prompts "
    "are like the validation prompts.",
    NOISE_WARNING: "The estimated share of noisy rows is within the limit too, and no rule of the "
    "gate was waived.",
    VALUE_DISTRIBUTION: "Few rows are harmful, and values are distributed as when the shard was "
    "last valued.",
    TRUNCATION: "Few rows were cut to the model's window.",
    SKIPPED: "Few rows are without a score.",
}


def build_score_checks(naming: Naming) -> dg.AssetChecksDefinition:
    """Build the checks of `value_scores`, with a result for each shard, in one step."""
    key = naming.key("value_scores")

    @dg.multi_asset_check(
        name=naming.name("score_checks"),
        specs=[
            dg.AssetCheckSpec(
                name,
                asset=key,
                blocking=name in BLOCKING,
                partitions_def=naming.shards,
                additional_deps=[
                    naming.key("raw_finetuning_data"),
                    naming.key("validation_data"),
                    naming.key("validation_profile"),
                ],
                description=description,
            )
            for name, description in _CHECKS.items()
        ],
        ins={
            "value_scores": dg.AssetIn(key=key),
            "raw_finetuning_data": dg.AssetIn(key=naming.key("raw_finetuning_data")),
            "validation_data": dg.AssetIn(key=naming.key("validation_data")),
            "validation_profile": dg.AssetIn(key=naming.key("validation_profile")),
        },
    )
    @naming.own
    def score_checks(
        context: dg.AssetCheckExecutionContext,
        value_scores: pl.DataFrame,
        raw_finetuning_data: pl.DataFrame,
        validation_data: pl.DataFrame,
        validation_profile: TensorFile,
        gate: GatePolicy,
        warnings: WarningPolicy,
    ) -> Iterator[dg.AssetCheckResult]:
        latest = latest_materialization(context.instance, key, context.partition_key)
        judge = ScoreJudge(key, StoredProbe.of(validation_profile), validation_data, gate, warnings)
        previous = latest.metadata.get(f"previous_{HISTOGRAM}") if latest else None
        yield from judge.check(context.partition_key, value_scores, raw_finetuning_data, previous)

    return score_checks


@dataclass(frozen=True)
class ScoreJudge:
    """All checks of value scores.

    Attributes:
        key: key of the scores.
        probe: noise probe of the profile that the scores were computed with.
        validation: the validation rows.
        rules: the gate's rules.
        warnings: the thresholds of warnings.
    """

    key: dg.AssetKey
    probe: StoredProbe
    validation: pl.DataFrame
    rules: GateRules
    warnings: WarningPolicy

    def check(
        self, shard: str, scores: pl.DataFrame, rows: pl.DataFrame, previous: object
    ) -> Iterator[dg.AssetCheckResult]:
        """Return the results of all checks for a shard.

        Args:
            shard: the partition.
            scores: its value scores.
            rows: its rows.
            previous: distribution of its values when it was last valued, from metadata.
        """
        key, warnings = self.key, self.warnings
        yield check_conservation(key, scores, rows.select("shard", "row"))
        yield from check_leakage(key, rows, self.validation, warnings)
        yield from check_noise(key, scores, self.probe.judge(shard, scores, self.rules))
        before = None
        if isinstance(previous, dg.JsonMetadataValue) and isinstance(previous.data, Mapping):
            before = ValueHistogram.from_json(previous.data)
        yield check_distribution(key, scores, before, warnings)
        truncated = share(scores.filter(pl.col("status") == "scored")["truncated"])
        yield check_share(key, TRUNCATION, truncated, warnings.max_truncated_share, scores)
        skipped = share(scores["status"] == "skipped")
        yield check_share(key, SKIPPED, skipped, warnings.max_skipped_share, scores)


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


def check_leakage(
    key: dg.AssetKey, rows: pl.DataFrame, validation: pl.DataFrame, warnings: WarningPolicy
) -> Iterator[dg.AssetCheckResult]:
    """Report training rows that equal, or nearly equal, validation rows."""
    from forvalue_dagster.quality.leakage import find_leaks

    leaks = find_leaks(rows, validation, warnings.near_leak_similarity)
    for name, found, what in (
        (LEAKAGE, leaks.filter(pl.col("kind") == "row"), "are validation rows"),
        (
            NEAR_LEAKAGE,
            leaks.filter(pl.col("kind") != "row"),
            "share the prompt or most words of a validation row",
        ),
    ):
        places = found["row"].head(MAX_ROWS_LISTED).to_list()
        more = "…" if len(found) > MAX_ROWS_LISTED else ""
        named = f" (rows {', '.join(map(str, places))}{more})"
        yield dg.AssetCheckResult(
            asset_key=key,
            check_name=name,
            passed=found.is_empty(),
            severity=dg.AssetCheckSeverity.ERROR if name == LEAKAGE else dg.AssetCheckSeverity.WARN,
            description=f"{len(found)} of {len(rows)} rows {what}"
            + (f"{named}. Remove them from one of the two sets." if len(found) else "."),
            metadata={
                "leaks": len(found),
                "rows": len(rows),
                "validation_rows": len(validation),
                **listing("leaking_rows", found.with_columns(pl.col("similarity").round(3))),
            },
        )


def check_noise(
    key: dg.AssetKey, scores: pl.DataFrame, verdict: ShardVerdict
) -> Iterator[dg.AssetCheckResult]:
    """Report the shard's verdict in two checks: one that blocks, and one that warns.

    Two, because Dagster's automation stops everything downstream of a failed blocking check,
    whatever its severity.
    """
    description = f"{verdict.summary[0].upper()}{verdict.summary[1:]}."
    figures: dict[str, Any] = {
        name: round(value, 4)
        for name, value in {
            "noise_fraction": verdict.noise_fraction,
            "interval_lower": verdict.noise_lower,
            "interval_upper": verdict.noise_upper,
            "max_noise_fraction": verdict.max_noise_fraction,
            "unexplained": verdict.unexplained,
            "noise_fraction_with_copies": verdict.noise_of_all,
            "prompt_shift_auc": verdict.shift,
        }.items()
        if value is not None
    }
    yield dg.AssetCheckResult(
        asset_key=key,
        check_name=NOISE_FRACTION,
        passed=verdict.passed,
        description=description,
        metadata={
            "verdict": verdict.verdict,
            **figures,
            "scored": verdict.scored,
            "distinct": verdict.distinct,
            "noise_probability": histogram(
                {"rows": scores["noise_probability"]},
                title="Noise probability of the shard's rows",
                unit="probability at even odds",
            ),
            **listing("most_probably_noisy", _worst(scores, "noise_probability", descending=True)),
        },
    )
    yield dg.AssetCheckResult(
        asset_key=key,
        check_name=NOISE_WARNING,
        passed=verdict.verdict == "pass",
        severity=dg.AssetCheckSeverity.WARN,
        description=description,
        metadata={"verdict": verdict.verdict, **figures},
    )


def check_distribution(
    key: dg.AssetKey,
    scores: pl.DataFrame,
    previous: ValueHistogram | None,
    warnings: WarningPolicy,
) -> dg.AssetCheckResult:
    """Report the share of harmful rows, and drift since the shard was last valued."""
    values = scores.filter(pl.col("status") == "scored")["value"]
    harmful = share(values < 0)
    drift = stability_index(previous, values) if previous and len(values) else None
    drifted = drift is not None and drift > warnings.max_drift
    told = f"{harmful:.1%} of the rows harm (limit {warnings.max_harmful_share:.1%})"
    told += (
        f"; population stability index {drift:.3f} (limit {warnings.max_drift})"
        if drift is not None
        else "; valued for the first time, so nothing to compare with"
    )
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=VALUE_DISTRIBUTION,
        passed=harmful <= warnings.max_harmful_share and not drifted,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{told[0].upper()}{told[1:]}.",
        metadata={
            "harmful_share": harmful,
            **({"stability_index": round(drift, 4)} if drift is not None else {}),
            "values": histogram({"rows": values}, title="Value of the shard's rows", unit="value"),
            **listing("most_harmful", _worst(scores, "value", descending=False)),
        },
    )


def _worst(scores: pl.DataFrame, column: str, *, descending: bool) -> pl.DataFrame:
    """Return the first rows by a score: shard, row number and scores, never their text."""
    shown = ["sample_id", "row", column, "nll", "response_tokens"]
    present = [name for name in shown if name in scores.columns]
    rows = scores.filter(pl.col(column).is_not_null()).sort(column, descending=descending)
    return rows.select(present).head(EXTREMES).with_columns(pl.selectors.float().round(4))


def check_share(
    key: dg.AssetKey, name: str, observed: float, limit: float, scores: pl.DataFrame
) -> dg.AssetCheckResult:
    """Report a share of rows that should be small."""
    what = {TRUNCATION: "scored rows were cut", SKIPPED: "rows are without a score"}[name]
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=name,
        passed=observed <= limit,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{observed:.1%} of the {what} (limit {limit:.1%}).",
        metadata={"share": observed, "limit": limit, **outcome_counts(scores)},
    )

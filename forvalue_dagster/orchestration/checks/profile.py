"""The check `profile_fitness`: can training rows be valued with this validation profile?"""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

from typing import Any

import dagster as dg
import polars as pl

from forvalue_dagster.orchestration.checks.judging import stored_profile
from forvalue_dagster.orchestration.display.describe import describe_probe, listing
from forvalue_dagster.orchestration.naming import Naming
from forvalue_dagster.orchestration.options.policies import GatePolicy, WarningPolicy
from forvalue_dagster.quality.verdicts import probe_objection
from forvalue_dagster.storage.tensors import TensorFile

FITNESS = "profile_fitness"
# Smallest percentage of distinct validation rows without a warning.
_MIN_DISTINCT = 0.9


def build_profile_check(naming: Naming) -> dg.AssetChecksDefinition:
    """Build `profile_fitness`, which only warns."""

    @dg.asset_check(
        asset=naming.key("validation_profile"),
        name=FITNESS,
        description="There are enough different validation rows in every group, the noise probe "
        "tells damaged rows from clean ones, and few validation rows look damaged.",
    )
    @naming.own
    def profile_fitness(
        validation_profile: TensorFile, gate: GatePolicy, warnings: WarningPolicy
    ) -> dg.AssetCheckResult:
        from forvalue_dagster.valuation.noise import probabilities

        profile = stored_profile(validation_profile)
        problems = []
        counts = dict(zip(profile.groups, profile.counts, strict=True))
        thin = [name for name, count in counts.items() if count < warnings.min_group_rows]
        if thin:
            problems.append(
                f"fewer than {warnings.min_group_rows} rows in {', '.join(map(repr, thin))}"
            )
        nll = profile.statistics["nll"].numpy().round(6).tolist()
        distinct = len(set(nll)) / len(nll)
        if distinct < _MIN_DISTINCT:
            problems.append(f"only {distinct:.0%} of the rows are distinct")
        objection = probe_objection(profile.noise, gate)
        if objection:
            problems.append(objection)
        metadata: dict[str, Any] = {
            "rows": sum(counts.values()),
            "distinct_share": round(distinct, 4),
            **listing(
                "groups", pl.DataFrame({"group": list(counts), "rows": list(counts.values())})
            ),
        }
        if profile.noise is not None:
            damaged = float((probabilities(profile.noise.clean) > 0.5).mean())
            metadata |= {"look_damaged": round(damaged, 4), **describe_probe(profile.noise)}
            if damaged > warnings.max_validation_noise:
                problems.append(
                    f"{damaged:.0%} of the validation rows look damaged themselves (limit "
                    f"{warnings.max_validation_noise:.0%})"
                )
        if profile.prompts is None:
            problems.append("the prompts are too few or all alike: a domain shift goes unseen")
        return dg.AssetCheckResult(
            passed=not problems,
            severity=dg.AssetCheckSeverity.WARN,
            description="; ".join(problems)
            or f"{sum(counts.values())} rows; training rows can be valued with them.",
            metadata=metadata,
        )

    return profile_fitness

"""Collect what a dataset was made from, for its manifest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dagster as dg

from forvalue_dagster.orchestration.naming import BLOCKING_CHECKS, Naming
from forvalue_dagster.orchestration.options.plan import Plan
from forvalue_dagster.orchestration.trained_adapter import model_dependency
from forvalue_dagster.quality.lineage import trace_shard
from forvalue_dagster.quality.manifest import MadeFrom, Manifest, ShardEntry
from forvalue_dagster.quality.standing import latest_materialization


def traced(
    instance: dg.DagsterInstance, entry: ShardEntry, naming: Naming, plan: Plan
) -> ShardEntry:
    """Record what a shard's tables were made from; block it if they do not fit together."""
    names = ["raw_finetuning_data"]
    if plan.scoring == "features":
        names.append("sample_features")
    names.append("value_scores")
    tables = {naming.key(name): BLOCKING_CHECKS.get(name, ()) for name in names}
    made_from, source, problems = trace_shard(instance, entry.shard, tables)
    for name, made in entry.made_from.items():
        if made_from[name].storage_id != made.storage_id:
            problems.append(f"its {name} was made again meanwhile: start the run again")
    return replace(
        entry,
        blocked_by=(*entry.blocked_by, *problems),
        made_from=made_from,
        source=source,
    )


def shared(instance: dg.DagsterInstance, naming: Naming, plan: Plan) -> dict[str, MadeFrom]:
    """Record the profile and validation rows that every shard was valued with."""
    keys = [naming.key("validation_profile")]
    if plan.refine is not None:
        keys += model_dependency(naming, plan)
    made = {key.to_user_string(): latest_materialization(instance, key) for key in keys}
    return {name: MadeFrom.of(own) for name, own in made.items() if own is not None}


def show_overrides(manifest: Manifest) -> dict[str, Any]:
    """Return metadata about the settings that the run's configuration changed, if any."""
    if not manifest.overrides:
        return {}
    return {"policy_of_this_run": "; ".join(manifest.overridden)}

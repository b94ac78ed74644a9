"""Refinement in the selection step: passes a few rows through the model."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg
import polars as pl

from forvalue_dagster.engine.columns import PLACE
from forvalue_dagster.engine.refine import Refinement, refine_scores
from forvalue_dagster.options.selection import Refine, Selection
from forvalue_dagster.orchestration.checks.judging import stored_profile
from forvalue_dagster.orchestration.naming import Naming
from forvalue_dagster.orchestration.options.plan import Plan
from forvalue_dagster.orchestration.options.resources import Valuation
from forvalue_dagster.orchestration.trained_adapter import trained_adapter
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.storage.tensors import load_tensors


def refine_shards(
    scores: Mapping[str, pl.DataFrame],
    raw: Mapping[str, pl.LazyFrame],
    selection: Selection,
    policy: Refine,
    *,
    naming: Naming,
    plan: Plan,
    valuation: Valuation,
    storage: Storage,
) -> tuple[dict[str, pl.DataFrame], Refinement]:
    """Compute the rows near the selection's boundary exactly.

    Args:
        scores: shard → its value scores, for the shards that passed.
        raw: shard → its rows.
        selection: the selection policy.
        policy: the refinement policy.
        naming: the graph's names.
        plan: the graph's plan.
        valuation: the model and its options.
        storage: location of the profile.
    """
    from forvalue_dagster.engine.scoring import score_rows

    stored = load_tensors(
        storage.path(*naming.key("validation_profile").path).with_suffix(".safetensors")
    )
    profile = stored_profile(stored)
    everything = pl.concat(scores.values(), how="diagonal")
    with valuation.session(trained_adapter(naming, plan, storage)) as loaded:
        on_device = profile.to(loaded.device)

        def rescore(lines: pl.DataFrame) -> pl.DataFrame:
            rows = pl.concat(
                raw[shard].join(lines.lazy().select(PLACE), on=PLACE, how="semi").collect()
                for shard in lines["shard"].unique()
            ).select("sample_id", *PLACE, "group", "messages", "tools", "images", "problem")
            exact = score_rows(loaded, rows, on_device, valuation.options())
            if skipped := exact.filter(pl.col("status") != "scored").height:
                raise dg.Failure(
                    f"{skipped} rows have features but cannot be scored exactly any more: the rows "
                    "or the model changed in between. Materialise sample_features again."
                )
            replaced = [name for name in exact.columns if name in lines.columns]
            return lines.update(exact.select(replaced), on=PLACE, maintain_order="left")

        refined, outcome = refine_scores(everything, selection, rescore, policy)
    return {
        shard: refined.filter(pl.col("shard") == shard).select(frame.columns)
        for shard, frame in scores.items()
    }, outcome


def describe_refinement(outcome: Refinement) -> dict[str, dg.MetadataValue]:
    """Return metadata about a refinement."""
    return {
        "refined_rows": dg.MetadataValue.int(outcome.refined),
        "refined_share": dg.MetadataValue.float(round(outcome.refined / max(outcome.rows, 1), 4)),
        "boundary": dg.MetadataValue.text(outcome.boundary),
    }

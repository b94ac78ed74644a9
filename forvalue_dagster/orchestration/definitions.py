"""One call that assembles the whole graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from warnings import catch_warnings, simplefilter

import dagster as dg

from forvalue_dagster.engine.options import Attribution, Refine
from forvalue_dagster.models.warm_up_config import WarmUp
from forvalue_dagster.orchestration.attribution_assets import build_attribution_assets
from forvalue_dagster.orchestration.automation import build_automation_sensor
from forvalue_dagster.orchestration.fidelity_check import build_fidelity_check
from forvalue_dagster.orchestration.filtering import build_filtered_dataset
from forvalue_dagster.orchestration.model_assets import build_feature_asset, build_profile_asset
from forvalue_dagster.orchestration.naming import Naming, Plan
from forvalue_dagster.orchestration.policies import GatePolicy, SelectionPolicy, WarningPolicy
from forvalue_dagster.orchestration.profile_check import build_profile_check
from forvalue_dagster.orchestration.resources import RowSource, Valuation
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.orchestration.row_assets import build_row_assets
from forvalue_dagster.orchestration.row_checks import Suite, build_row_checks
from forvalue_dagster.orchestration.score_assets import build_score_asset
from forvalue_dagster.orchestration.score_checks import build_score_checks
from forvalue_dagster.orchestration.sensors import build_shard_sensor
from forvalue_dagster.orchestration.warm_up import build_model_asset
from forvalue_dagster.storage.parquet import ParquetIOManager
from forvalue_dagster.storage.tensors import TensorIOManager


def valuation_definitions(
    *,
    training_rows: RowSource,
    validation_rows: RowSource,
    storage: Storage,
    valuation: Valuation | None = None,
    selection: SelectionPolicy | None = None,
    gate: GatePolicy | None = None,
    warnings: WarningPolicy | None = None,
    suites: Sequence[Suite] = (),
    scoring: Literal["features", "exact"] = "features",
    refine: Refine | None = None,
    attribution: Attribution | None = None,
    warm_up: WarmUp | None = None,
    key_prefix: Sequence[str] = (),
    group_name: str = "forvalue",
    pool: str | None = None,
    op_tags: dict[str, str] | None = None,
) -> dg.Definitions:
    """Build assets, checks, jobs, a sensor and resources that value and filter finetuning data.

    Args:
        training_rows: the folder whose files are the shards.
        validation_rows: the trusted rows.
        storage: where tables and tensors are written.
        valuation: the model, and how rows are valued.
        selection: which rows are kept.
        gate: what blocks a shard.
        warnings: thresholds of the checks that warn.
        suites: suites of Great Expectations that raw and validation rows are held to, beside the
            default one: JSON files, or objects.
        scoring: "features" values each row from its stored features, without the model; "exact"
            passes the rows through the model for every validation set.
        refine: compute the rows near the selection's boundary exactly; needs "features".
        attribution: add assets that name, for each validation row, the training rows that help
            and hurt it most, and the reverse.
        warm_up: train a LoRA adapter on the rows before anything is valued.
        key_prefix: put before every asset key.
        group_name: the group in the UI.
        pool: concurrency pool of the steps that run the model.
        op_tags: tags of those steps, for an executor or launcher.

    Returns:
        Definitions with the jobs `forvalue_profile` (validation rows, after a warm-up the
        model), `forvalue_shard` (one shard, to its scores and checks) and `forvalue_filter` (the
        dataset).

    Raises:
        ValueError: if the options contradict each other.
    """
    naming = Naming(tuple(key_prefix), group_name)
    gate, selection = gate or GatePolicy(), selection or SelectionPolicy()
    selection.selection()  # what contradicts itself is refused here, not in a run
    plan = Plan(scoring, refine, attribution, warm_up, pool, op_tags)
    assets = [
        *build_row_assets(naming),
        *([build_model_asset(naming, plan)] if warm_up else []),
        build_profile_asset(naming, plan),
        build_feature_asset(naming, plan),
        build_score_asset(naming, plan),
        *(build_attribution_assets(naming, plan, attribution) if attribution else []),
        build_filtered_dataset(naming, plan, gate.on_blocked_shard),
    ]
    with catch_warnings():
        # Partitions on checks are in preview in Dagster; without them a gate on shards leaks.
        simplefilter("ignore", dg.PreviewWarning)
        checks = [
            *build_row_checks(naming, suites),
            build_profile_check(naming),
            build_score_checks(naming),
        ]
        if scoring == "features":
            checks.append(build_fidelity_check(naming, plan))
    jobs = _jobs(naming, plan)
    return dg.Definitions(
        assets=assets,
        asset_checks=checks,
        jobs=jobs,
        sensors=[
            build_shard_sensor(naming, jobs[1]),
            build_automation_sensor(
                naming.name("automation"),
                dg.AssetSelection.assets(
                    naming.key("filtered_dataset"), naming.key("dropped_rows")
                ),
            ),
        ],
        resources={
            "training_rows": training_rows,
            "validation_rows": validation_rows,
            "valuation": valuation or Valuation(),
            "selection": selection,
            "gate": gate,
            "warnings": warnings or WarningPolicy(),
            "storage": storage,
            "parquet_io_manager": ParquetIOManager(storage=storage),
            "tensor_io_manager": TensorIOManager(storage=storage),
        },
    )


def _jobs(naming: Naming, plan: Plan) -> list[dg.UnresolvedAssetJobDefinition]:
    def job(name: str, description: str, *assets: str) -> dg.UnresolvedAssetJobDefinition:
        selection = dg.AssetSelection.assets(*(naming.key(asset) for asset in assets))
        return dg.define_asset_job(naming.name(name), selection, description=description)

    valued = ["value_scores"]
    if plan.scoring == "features" or plan.attribution:
        valued.append("sample_features")
    if plan.attribution:
        valued.append("training_attribution")
    return [
        job(
            "profile",
            "Read the validation rows and make their profile.",
            *(["valuation_model"] if plan.warm_up else []),
            "validation_data",
            "validation_profile",
        ),
        job(
            "shard",
            "Read one shard, compute its features and value scores, check them.",
            "raw_finetuning_data",
            *valued,
        ),
        job(
            "filter",
            "Build the filtered dataset from the shards that passed.",
            "filtered_dataset",
            "dropped_rows",
            *(["validation_attribution"] if plan.attribution else []),
        ),
    ]
